"""The index records of a foreign tar, from its headers alone.

Decided here: a sample is a run of members with one key. A key that comes back later in the same tar, or a suffix that comes
twice in a sample, is an error: other readers would make two samples of one, or lose a member. Images and videos are blocks
in the order of their names, numbers in them by value; a member `txt` is the text. Documents are not recognised. What no
sample owns (folders, links, extended headers) belongs to the sample that follows, at the end of the tar to the last one,
so samples lie end to end. A sample's id is 128 bits of the SHA-256 of the tar's name and the key.
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from mmap import mmap
from typing import Self

import numpy as np

from mmdata.shards.corpus import BLOCK_DTYPE, ID_DTYPE, KINDS, SAMPLE_DTYPE, SUFFIXES
from mmdata.shards.members import TAR_BLOCK, Bytes, TarDamage, Walk, split_name
from mmdata.shards.plain import WIDTH, PlainSamples, plain_samples
from mmdata.storage import Store

CHECK_EVERY = 1024  # headers whose checksums are compared at once: 512 KiB, which stay in a core's cache
MAX_BLOCKS = (1 << 16) - 1  # of a sample
WINDOW, MAX_WINDOW = 64 << 10, 8 << 20

_SPELLED = {b"jpeg": "jpg"}
_DIGITS = re.compile(rb"(\d+)")
_SORT = "pack it again with the members of a sample side by side: `tar --sort=name`"


class Window:
    """An object of a store, read forward in ranges: wide ones while each header lies close to the one before.

    size   bytes of the object        read   bytes read so far
    """

    def __init__(self, store: Store, name: str) -> None:
        self.size, self.read = store.size(name), 0
        self._store, self._name = store, name
        self._held, self._at, self._width = b"", 0, WINDOW

    def __getitem__(self, place: slice) -> bytes:
        start, stop = place.start, min(place.stop, self.size)
        if start >= stop:
            return b""
        if start < self._at or stop > self._at + len(self._held):
            near = 0 <= start - self._at <= 2 * len(self._held)
            self._width = min(2 * self._width, MAX_WINDOW) if near else WINDOW
            width = min(max(self._width, stop - start), self.size - start)
            self._held, self._at = self._store.read_range(self._name, start, width), start
            self.read += width
        return self._held[start - self._at : stop - self._at]


class TarIndex:
    """The records of one tar, made from its headers by `fill`.

    samples     (N,) SAMPLE_DTYPE, blocks (M,) BLOCK_DTYPE, sample_ids (N,) u8,u8: shard, split and xxh3 are zero
    skipped     links and devices, which hold no data
    num_blank   samples without an image, a video or a text
    """

    samples: np.ndarray
    blocks: np.ndarray
    sample_ids: np.ndarray

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped = self.num_blank = 0
        self._offsets, self._sizes = array("q"), array("q")  # of all members
        self._begun: dict[bytes, int] = {}  # by key, in order: the number of its first member
        self._patterns = array("q")  # by sample: the number of its suffixes in `_known`
        self._known: dict[tuple[bytes, ...], int] = {}
        self._coded: dict[bytes, int] = {}  # the same, by suffixes as `plain_samples` gives them
        self._like: tuple[bytes, ...] = ()  # the suffixes of the sample before, what they make of a key, and their number
        self._tails: list[bytes] = []
        self._pattern = 0
        self._own: list[bytes] | None = None  # those of this sample, once it is not like the one before
        self._key: bytes | None = None

    def fill(self, data: Bytes) -> Self:
        """Walk the headers; raise TarDamage with the byte where something is wrong."""
        walk = Walk(data)
        try:
            walk.at = self._read_plain(data)
            self._read(walk)
            walk.check()
            self.skipped = walk.skipped
            self._build(walk.at)
        except TarDamage:
            walk.check()
            raise
        return self

    def places(self, suffix: bytes) -> Iterator[tuple[int, int] | None]:
        """Yield where the data of this member of each sample lies: offset in the tar, and size; None when it has none."""
        turns = {number: own.index(suffix) if suffix in own else None for own, number in self._known.items()}
        for first, pattern in zip(self._begun.values(), self._patterns, strict=True):
            turn = turns[pattern]
            yield None if turn is None else (self._offsets[first + turn], self._sizes[first + turn])

    def _read_plain(self, data: Bytes) -> int:
        """Take the plain samples at the start of a mapped file; return the byte from which on it takes a walk."""
        at = 0
        if isinstance(data, mmap):
            while (plain := plain_samples(data, at)) is not None and self._take(plain):
                at = plain.stop
        return at

    def _take(self, plain: PlainSamples) -> bool:
        """Take samples unless one is wrong; the walk then finds out what it is."""
        for codes in set(plain.suffixes) - self._coded.keys():
            own = tuple(codes[at : at + WIDTH].partition(b"\0")[0].lower() for at in range(0, len(codes), WIDTH))
            if len(set(own)) < len(own):
                return False
            self._coded[codes] = self._known.setdefault(own, len(self._known))
        if len(set(plain.keys)) < len(plain.keys) or not self._begun.keys().isdisjoint(plain.keys):
            return False
        before = len(self._offsets)
        self._begun.update((key, before + first) for key, first in zip(plain.keys, plain.firsts, strict=True))
        self._patterns.extend([self._coded[codes] for codes in plain.suffixes])
        self._offsets.frombytes(plain.offsets.tobytes())
        self._sizes.frombytes(plain.sizes.tobytes())
        return True

    def _read(self, walk: Walk) -> None:
        """Take the members. Most samples have the suffixes of the one before, so names are foretold and only compared."""
        offsets, sizes, turn = self._offsets, self._sizes, 0
        names: list[bytes | None] = [None]
        for name, offset, size in walk:
            if name != names[turn]:
                place = split_name(name)
                if place is None:
                    continue
                if place[0] != self._key:
                    self._end_sample(turn)
                    if len(walk.heads) >= CHECK_EVERY:
                        walk.check()
                    names, turn = self._begin(place[0], offset), 0
                if name != names[turn]:
                    self._differ(place[1], turn, offset)
                    names, turn = [None], -1
            turn += 1
            offsets.append(offset)
            sizes.append(size)
        self._end_sample(turn)

    def _begin(self, key: bytes, offset: int) -> list[bytes | None]:
        """Begin a sample; return the names that its members have if it is like the one before."""
        if key in self._begun:
            first = self._offsets[self._begun[key]] - TAR_BLOCK
            what = f"sample `{_text(key)}`, which began at byte {first:,}, goes on after other samples"
            raise TarDamage(what, offset - TAR_BLOCK, _SORT)
        self._begun[key] = len(self._offsets)
        self._key, self._own = key, None
        names: list[bytes | None] = [key + tail for tail in self._tails]
        names.append(None)
        return names

    def _differ(self, suffix: bytes, turn: int, offset: int) -> None:
        """Note a member that the sample before did not have in this place."""
        if self._own is None:
            self._own = list(self._like[:turn])
        if suffix in self._own:
            what = f"sample `{_text(self._key or b'')}` has two members with the suffix `{_text(suffix)}`"
            raise TarDamage(what, offset - TAR_BLOCK, "give each member of a sample a suffix of its own")
        self._own.append(suffix)

    def _end_sample(self, turn: int) -> None:
        if self._key is None:
            return
        if self._own is not None or turn != len(self._like):
            self._like = tuple(self._own or self._like[:turn])
            self._tails = [b"." + suffix for suffix in self._like]
            self._pattern = self._known.setdefault(self._like, len(self._known))
        self._patterns.append(self._pattern)

    def _build(self, end: int) -> None:
        """Make the records of what was read; the archive's own end begins at byte `end`."""
        firsts, offsets, sizes = np.fromiter(self._begun.values(), np.int64), np.array(self._offsets), np.array(self._sizes)
        edges = (offsets + (sizes + TAR_BLOCK - 1 & -TAR_BLOCK))[firsts[1:] - 1]
        starts, stops = np.append(0, edges)[: len(firsts)], np.append(edges, end)[: len(firsts)]
        table, counts = self._table(firsts)
        offsets, sizes = offsets[table[:, 3]], sizes[table[:, 3]]
        inside = offsets - np.repeat(starts, counts)
        large = np.flatnonzero(np.maximum(inside, sizes) >= 1 << 32)
        if len(large):
            what = "an image, a video or a text that reaches 4 GiB behind the start of its sample, or more"
            raise TarDamage(what, int(offsets[large[0]]) - TAR_BLOCK, "leave it out, or cut it into smaller ones")
        if end >= TAR_BLOCK << 32 or counts.max(initial=0) > MAX_BLOCKS:
            raise TarDamage(f"a tar of 2 TiB, or a sample of more than {MAX_BLOCKS:,} blocks", end, "cut it into smaller ones")
        self.blocks = np.zeros(len(table), BLOCK_DTYPE)
        for field, values in zip(("kind", "suffix", "position", "offset", "size"), (*table.T[:3], inside, sizes), strict=True):
            self.blocks[field] = values
        self.samples = np.zeros(len(firsts), SAMPLE_DTYPE)
        self.samples["num_blocks"], self.samples["first_block"] = counts, np.cumsum(counts) - counts
        self.samples["start"], self.samples["length"] = starts // TAR_BLOCK, (stops - starts) // TAR_BLOCK
        self.num_blank = int((counts == 0).sum())
        self.sample_ids = _ids(self.name, self._begun)

    def _table(self, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return kind, format, position and member of every block, (M, 4) int64, and how many blocks each sample has, (N,)."""
        patterns, plans = np.array(self._patterns), [_plan(suffixes) for suffixes in self._known]
        counts = np.array([len(plan) for plan in plans], np.int64)[patterns]
        before = np.cumsum(counts) - counts
        table = np.zeros((counts.sum(), 4), np.int64)
        by_pattern = np.argsort(patterns, kind="stable")
        ends = np.searchsorted(patterns[by_pattern], np.arange(len(plans)), side="right")
        for plan, which in zip(plans, np.split(by_pattern, ends), strict=False):  # what is left over is empty
            rows = before[which][:, None] + np.arange(len(plan))
            table[rows] = np.array(plan, np.int64).reshape(-1, 4)
            table[rows, 3] += firsts[which][:, None]
        return table, counts


def _ids(name: str, keys: Iterable[bytes]) -> np.ndarray:
    """Return the id of each sample, (N,) u8,u8."""
    home = name.encode() + b"\0"
    ids = b"".join([hashlib.sha256(home + key).digest()[:16] for key in keys])
    return np.frombuffer(ids, ">u8,>u8").astype(ID_DTYPE)


def _plan(suffixes: tuple[bytes, ...]) -> list[tuple[int, int, int, int]]:
    """Return the blocks of a sample with these members: kind, format, position and the member's place among them."""
    forms = {suffix: form for suffix in suffixes if (form := _form(suffix)) is not None}
    media = sorted(forms, key=_by_numbers)
    blocks = [(*forms[suffix], position, suffixes.index(suffix)) for position, suffix in enumerate(media)]
    if b"txt" in suffixes:
        position = len(media) if len(media) > 1 else 0  # the text of one image is at its side
        blocks.append((KINDS.index("text"), SUFFIXES.index("txt"), position, suffixes.index(b"txt")))
    return blocks


def _form(suffix: bytes) -> tuple[int, int] | None:
    """Return the kind and the format that the last part of a suffix names; None when it is no picture and no video."""
    last = suffix.rpartition(b".")[2]
    word = _SPELLED.get(last, last.decode(errors="replace"))
    if word not in SUFFIXES[1:]:
        return None
    return KINDS.index("video" if word == "mp4" else "image"), SUFFIXES.index(word)


def _by_numbers(suffix: bytes) -> list[bytes | int]:
    # Text and digits take turns, text first, so only like is compared with like.
    return [int(part) if turn % 2 else part for turn, part in enumerate(_DIGITS.split(suffix))]


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
