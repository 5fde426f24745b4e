"""Plain headers of a mapped tar, a thousand at a time: the quick way through most of most corpora.

Decided here: only what needs no second look is taken, in whole samples: regular files below 1 GiB, USTAR names of up to 99
bytes, suffixes of up to 7, right checksums, and PAX headers that tell a time and nothing else (webdataset and img2dataset
write one before each member). From the first other record on the walk does it; so does it where something is wrong, and
nothing is ever raised here.
"""

import mmap
import struct
from typing import NamedTuple

import numpy as np

from mmdata.shards.members import TAR_BLOCK, only_a_time, right_sums

BATCH = 1024  # headers at once: 512 KiB, which stay in a core's cache
WIDTH = 8  # bytes of a suffix, with the NUL behind it

_SIZE_AND_KIND = struct.Struct("124x11s21xB")


class PlainSamples(NamedTuple):
    """Whole samples that follow one another: keys, the suffixes of each, end to end in `WIDTH` bytes each, and members.

    firsts   the number of each sample's first member among these
    stop     the byte where the next sample begins
    """

    keys: list[bytes]
    suffixes: list[bytes]
    firsts: list[int]
    offsets: np.ndarray
    sizes: np.ndarray
    stop: int


def plain_samples(mapped: mmap.mmap, at: int) -> PlainSamples | None:
    """Read plain samples from byte `at` on; None when there is not one of which the end is seen."""
    hops = _hop(mapped, at)
    heads, num = _usual(mapped, hops.places)
    _, num_times = _usual(mapped, hops.times)
    num = min([num, *hops.before[num_times : num_times + 1]])
    names = np.ascontiguousarray(heads[:num, :100])
    dots = (names == ord(".")).argmax(1)
    suffixes = heads[np.arange(num)[:, None], dots[:, None] + np.arange(1, WIDTH + 1)]
    other = np.flatnonzero(~(_are_plain(names, dots) & (suffixes[:, -1] == 0)))
    num = int(other[0]) if len(other) else num
    # A member belongs to the sample of the one before if their names differ behind the dot only.
    differ = (names[1:num] != names[: max(num - 1, 0)]).argmax(1)
    edges = [0, *(np.flatnonzero(differ <= dots[1:num]) + 1).tolist()]
    if len(edges) < 2:
        return None
    firsts, last = edges[:-1], edges[-1]
    text, codes = names[firsts].tobytes(), suffixes.tobytes()
    keys = [text[100 * turn : 100 * turn + dot] for turn, dot in enumerate(dots[firsts].tolist())]
    own = [codes[WIDTH * start : WIDTH * stop] for start, stop in zip(firsts, edges[1:], strict=True)]
    offsets, sizes = np.array(hops.places[:last]) + TAR_BLOCK, np.array(hops.sizes[:last])
    return PlainSamples(keys, own, firsts, offsets, sizes, int(offsets[-1] + sizes[-1]) + 511 & -512)


class _Hops(NamedTuple):
    """Where headers of regular files are, the sizes in them; and where PAX headers are, and before which of the files."""

    places: list[int]
    sizes: list[int]
    times: list[int]
    before: list[int]


def _hop(mapped: mmap.mmap, at: int) -> _Hops:
    """Go from header to header as long as they are of regular files and of their times."""
    found, unpack = _Hops([], [], [], []), _SIZE_AND_KIND.unpack_from
    places, sizes, times, before = found
    try:
        while len(places) < BATCH:
            digits, kind = unpack(mapped, at)
            size = int(digits, 8)
            if kind == 48:
                places.append(at)
                sizes.append(size)
            elif kind == 120 and 0 < size <= TAR_BLOCK and only_a_time(mapped[at + TAR_BLOCK : at + TAR_BLOCK + size]):
                times.append(at)
                before.append(len(places))
            else:
                break
            at += size + 1023 & -512
    except (ValueError, struct.error):  # no digits, or the end of the file
        pass
    return found


def _usual(mapped: mmap.mmap, places: list[int]) -> tuple[np.ndarray, int]:
    """Return the headers at these places, (N, 512) uint8, and how many of them, from the first on, are as usual."""
    blocks, rows = len(mapped) // TAR_BLOCK, np.array(places, np.int64) // TAR_BLOCK
    heads = np.frombuffer(mapped, np.uint8, blocks * TAR_BLOCK).reshape(-1, TAR_BLOCK)[rows[rows < blocks]]
    right = (heads[:, 124] == ord("0")) & (heads[:, 135] <= ord(" ")) & (heads[:, 345] == 0) & right_sums(heads)
    wrong = np.flatnonzero(~right)
    return heads, int(wrong[0]) if len(wrong) else len(heads)


def _are_plain(names: np.ndarray, dots: np.ndarray) -> np.ndarray:
    found: np.ndarray = (dots > 0) & (names[:, 0] != ord("_")) & (names[:, -1] == 0) & ((names == 0).argmax(1) > dots)
    # The first dot is a name's dot when no folder has one and it does not hide the file.
    found &= ~((names == ord("/")) & (np.arange(100) >= dots[:, None] - 1)).any(1)
    return found
