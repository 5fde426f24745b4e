"""Where members lie in tar bytes: those of a whole archive, or those of one sample. Only headers are read.

Decided here: a member is a regular file whose name has a key and a suffix. The key is all before the first dot of the last
part of the name, folders included; the suffix is what follows that dot, in lower case. As in webdataset's reader, links,
devices, folders, hidden files and names below `__this__` are passed over. Extended headers (PAX, GNU long names) belong to
the member that follows them. An archive ends with a block of zeros; one that does not was cut short.
"""

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from mmdata.errors import RunError

TAR_BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of one extended header; real ones have a few hundred

_ZEROS = bytes(TAR_BLOCK)
_TAIL = 1 << 20  # bytes of an archive's end that are looked at in one piece
_REGULAR, _LINKS = b"0\x007", b"123467"
_EXTENDED, _NO_DATA = b"xXgLK", b"123456"
_MAGICS = (b"ustar", bytes(5))  # POSIX and GNU; and what was there before them
_META = re.compile(rb"__[^/]*__(/|\Z)")
_SUM, _OCTAL = slice(148, 156), 8 ** np.arange(5, -1, -1)
_HEAD = struct.Struct("100s24x11sB20xB188xB")  # name, size but its last byte, that byte, kind, first byte of the prefix
_PAX, _NEWLINE = ord("x"), ord("\n")
_TIMES = {num: b"%d mtime=" % num for num in range(11, 100)}  # how one record begins that is all of a body of this length
_SLASH, _UNDERSCORE = b"/_"  # a number is found in bytes ten times faster than bytes are
_PACKERS = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_COPY = "copy the tar again, or make it anew"


class Bytes(Protocol):
    """Bytes that are cut by slices: `bytes`, a mapped file, a window on an object in a store. Past the end there are none."""

    def __getitem__(self, place: slice, /) -> bytes:
        """Return the bytes of a range."""


class TarDamage(RunError):
    """What is wrong with tar bytes, and at which byte."""

    def __init__(self, what: str, at: int, hint: str = _COPY) -> None:
        super().__init__(f"byte {at:,}: {what}", hint=hint)
        self.what = what
        self.at = at


class _Record(NamedTuple):
    """One record of an archive: a regular file's name (else None), where its data lies, and where the next header is."""

    name: bytes | None
    offset: int
    size: int
    after: int


class Walk:
    """The regular files of tar bytes, in order: (name, offset of the data, size). It hops from header to header.

    end   for the bytes of one sample: how many there are; for a whole archive None, and its end is looked for
    """

    def __init__(self, data: Bytes, end: int | None = None) -> None:
        self.at = 0  # in the end: where the archive's own end begins
        self.skipped = 0  # links and devices
        self.heads: list[bytes] = []  # that were passed and not yet checked
        self._places: list[int] = []
        self._data, self._end = data, end

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        data, end, heads, places, at = self._data, self._end, self.heads, self._places, self.at
        while at != end:
            head = data[at : at + TAR_BLOCK]
            # A plain file below 1 GiB, in USTAR without prefix: nearly all members of nearly all corpora.
            if len(head) == 512 and head[156] == head[124] == 48 and not head[345] and head[135] <= 32:
                try:
                    size = int(head[124:135], 8)
                except ValueError:
                    raise TarDamage("no tar header", at) from None
                heads.append(head)
                places.append(at)
                stop = head.find(0)
                yield head[: stop if stop < 100 else 100], at + 512, size
                at += size + 1023 & -512
                continue
            record = self._record(head, at)
            if record is None:
                self._only_zeros(at + TAR_BLOCK)
                break
            if record.name is not None:
                yield record.name, record.offset, record.size
            at = record.after
        self.at = at

    def check(self) -> None:
        """Compare the headers passed since the last call with their checksums; raise TarDamage for the first wrong one.

        Call it now and then, and when something is wrong: a header that was damaged before it is then the reason.
        """
        heads, places = self.heads[:], self._places[:]
        self.heads.clear()
        self._places.clear()
        for index in _doubtful(heads):
            if not _sum_is_right(heads[index]):
                raise TarDamage("this header's checksum is wrong", places[index])

    def _record(self, head: bytes, at: int) -> _Record | None:
        """Read any record with the extended headers before it; None at the archive's end."""
        if self._end is None and head == _ZEROS:
            return None
        own: dict[bytes, bytes] = {}
        while (kind := head[156:157]) in _EXTENDED and head:
            size = self._size(head, at)
            own |= self._extended(kind, at, size)
            at = _after(at + TAR_BLOCK, size)
            head = self._data[at : at + TAR_BLOCK]
        size, offset = self._size(head, at), at + TAR_BLOCK
        if own.get(b"size", b"0").isdigit():
            size = int(own.get(b"size", size))
        else:
            raise TarDamage("a PAX header with a size that is no number", at)
        if kind == b"S" or any(key.startswith(b"GNU.sparse") for key in own):
            raise TarDamage("a sparse file, which has its holes left out", at, "pack it again without `--sparse`")
        name = own.get(b"path") or _name(head)
        if kind in _REGULAR and not name.endswith(b"/"):
            return _Record(name, offset, size, _after(offset, size))
        self.skipped += kind in _LINKS
        return _Record(None, offset, 0, offset if kind in _NO_DATA else _after(offset, size))

    def _only_zeros(self, at: int) -> None:
        """Read what is behind the archive's end; in tars that were joined there are further members."""
        while piece := self._data[at : at + _TAIL]:
            if piece.strip(b"\0"):
                where = at + len(piece) - len(piece.lstrip(b"\0"))
                raise TarDamage("bytes behind the archive's end", where, "tars that were joined: unpack them, pack them anew")
            at += len(piece)

    def _extended(self, kind: bytes, at: int, size: int) -> dict[bytes, bytes]:
        """Return what an extended header says of the next record, by PAX's keywords."""
        body = self._data[at + TAR_BLOCK : at + TAR_BLOCK + size] if size <= MAX_EXTENDED else b""
        if len(body) != size:
            what = f"an extended header of {size:,} bytes" if size > MAX_EXTENDED else "the archive is cut short in a header"
            raise TarDamage(what, at)
        if kind in b"LK":
            return {b"path": body.partition(b"\0")[0]} if kind == b"L" else {}
        try:
            said = _pax(body)
        except ValueError:
            raise TarDamage("a PAX header that cannot be read", at) from None
        if kind == b"g":
            if {b"path", b"size"} & said.keys():
                raise TarDamage("a global header that gives every member one path or size", at)
            return {}
        return said

    def _size(self, head: bytes, at: int) -> int:
        """Return the size in a header after a look at the header itself."""
        if at == 0 and head[:2] in _PACKERS:
            hint = "unpack it: there is no pointing into a compressed tar"
            raise TarDamage(f"compressed by {_PACKERS[head[:2]]}", at, hint)
        if len(head) < TAR_BLOCK:
            raise TarDamage("the archive is cut short: here a header or its end should be", at)
        size = _number(head[124:136])
        if size is None or head[257:262] not in _MAGICS or head == _ZEROS:
            raise TarDamage("no tar header", at)
        self.heads.append(head)
        self._places.append(at)
        return size


def members(data: bytes) -> list[tuple[str, bytes]]:
    """Cut the tar bytes of one sample into members: suffix after the first dot, data."""
    found, at, end = [], 0, len(data)
    try:
        while at < end:  # the usual headers only, for this runs once a member in a loader
            name, digits, after_digits, kind, prefix = _HEAD.unpack_from(data, at)
            start = at + TAR_BLOCK
            at = start + int(digits, 8)
            content = data[start:at]
            at = at + 511 & -512
            if digits[0] != 48 or after_digits > 32 or prefix:
                return _walked(data)
            if kind == _PAX and only_a_time(content):
                continue
            key, dot, rest = name.partition(b".")
            if kind != 48 or not _is_plain(key, dot):
                return _walked(data)
            found.append((_word(rest), content))
    except (ValueError, struct.error):
        return _walked(data)
    return found if at == end else _walked(data)


def only_a_time(body: bytes) -> bool:
    """Say whether a PAX header tells a time and nothing else: webdataset and img2dataset write one before each member."""
    start = _TIMES.get(len(body))
    return start is not None and body.startswith(start) and body[-1] == _NEWLINE


def _walked(data: bytes) -> list[tuple[str, bytes]]:
    """Cut the bytes of a sample by all the rules."""
    found = []
    try:
        for name, offset, size in Walk(data, len(data)):
            place = split_name(name)
            if place is not None:
                found.append((place[1].decode(errors="surrogateescape"), data[offset : offset + size]))
    except TarDamage as damage:
        raise RunError(f"holds no tar header after {damage.at} bytes: {damage.what}") from damage
    return found


def split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Return the key and the suffix in the name of a file; None when it is no member of a sample."""
    key, dot, suffix = name.partition(b".")
    if dot and key and key[0] != _UNDERSCORE and _SLASH not in name:  # nearly all of them
        return key, suffix.lower()
    slash = name.rfind(b"/") + 1
    dot_at = name.find(b".", slash)
    if dot_at <= slash or _META.match(name):
        return None
    return name[:dot_at], name[dot_at + 1 :].lower()


def _is_plain(key: bytes, dot: bytes) -> bool:
    return bool(dot and key and key[0] != _UNDERSCORE and key[-1] != _SLASH and 0 not in key)


@lru_cache(maxsize=1024)
def _word(rest: bytes) -> str:
    """Return the suffix in what a name's field has behind the first dot; ValueError when the dot is a folder's."""
    suffix = rest.partition(b"\0")[0]
    if _SLASH in suffix:
        raise ValueError(suffix)
    return suffix.lower().decode(errors="surrogateescape")


def _after(offset: int, size: int) -> int:
    return offset + (size + TAR_BLOCK - 1 & -TAR_BLOCK)


def _name(head: bytes) -> bytes:
    name = head[:100].partition(b"\0")[0]
    if head[257:263] == b"ustar\0" and head[345]:  # GNU has times in the place of the prefix
        return head[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _number(field: bytes) -> int | None:
    """Return a number of a header: octal digits, or 256-based behind a first byte of 0x80; None when it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip(b" ")
    return None if digits.strip(b"01234567") else int(digits or b"0", 8)


def _pax(body: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX header, `LENGTH KEY=VALUE` and a line's end each; raise ValueError when it is not that."""
    said, at = {}, 0
    while at < len(body):
        digits = body[at : at + 20].partition(b" ")[0]
        length = int(digits)
        key, equals, value = body[at + len(digits) + 1 : at + length].partition(b"=")
        if length <= len(digits) or at + length > len(body) or not equals or not value.endswith(b"\n"):
            raise ValueError("not a record")
        said[key] = value[:-1]
        at += length
    return said


def right_sums(heads: np.ndarray) -> np.ndarray:
    """Say which headers, (N, 512) uint8, have the sum of their bytes as their checksum, in six octal digits; (N,) bool."""
    field = heads[:, _SUM].astype(np.int64)
    sums = heads.sum(1, dtype=np.uint32) - field.sum(1) + 8 * ord(" ")
    right: np.ndarray = (field[:, :6] - ord("0")) @ _OCTAL == sums
    return right


def _doubtful(heads: list[bytes]) -> list[int]:
    """Return the headers of which `right_sums` is not sure."""
    if len(heads) < 8:  # not worth an array
        return list(range(len(heads)))
    table = np.frombuffer(b"".join(heads), np.uint8).reshape(-1, TAR_BLOCK)
    return np.flatnonzero(~right_sums(table)).tolist()


def _sum_is_right(head: bytes) -> bool:
    """Compare a header with its checksum; some old writers summed signed bytes."""
    rest = head[:148] + head[156:]
    total = sum(rest) + 8 * ord(" ")
    return _number(head[_SUM]) in (total, total - 256 * sum(byte > 127 for byte in rest))
