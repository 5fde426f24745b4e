"""Write tars whose bytes follow from their content alone, and say where each member lies.

Headers are those of webdataset's own writer, in USTAR with fixed owner, mode and time. It makes one, and every other is that
one with its name, size and checksum filled in. A name or size that has no plain place in a header is left to the writer itself,
and so is everything if a header filled in here is not, byte for byte, what it writes. USTAR has one 512-byte header a member
and pads to 512, so every offset is known before a byte is written; of what was left to the writer that is checked.
"""

import hashlib
import importlib.util
import io
import sys
import types
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import xxhash

from mmdata.errors import ConfigError
from mmdata.failpoint import step

_ALONE = "_webdataset_alone"
BLOCK = 512
RECORD = 10_240
BATCH_BYTES = 1 << 20  # written and hashed at a time: one call each, and still in a core's cache
AHEAD = 4  # batches that may wait for their SHA-256
_MAX_NAME = 100
_MAX_SIZE = 8**11  # what eleven octal digits can say
_NUL = b"\0"
_PADS = tuple(bytes(-size % BLOCK) for size in range(BLOCK))


class Member(NamedTuple):
    """Where a member's data lies in its tar."""

    name: str
    offset: int
    size: int


class _Header(NamedTuple):
    """What is the same in all headers: before the size, behind it, behind the checksum; and what it adds to a checksum."""

    owner: bytes
    time: bytes
    rest: bytes
    sum: int

    def fill(self, name: bytes, size: int, name_sum: int) -> bytes:
        """Return the header of a member; `name_sum` is the sum of the bytes of its name."""
        digits = b"%011o\0" % size
        check = b"%06o\0 " % (self.sum + name_sum + sum(digits))
        return b"".join((name.ljust(_MAX_NAME, _NUL), self.owner, digits, self.time, check, self.rest))


def member_bytes(size: int) -> int:
    """Return the bytes that a member of `size` bytes takes in a tar, header and padding included."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def tar_bytes(content: int) -> int:
    """Return the size of a finished tar whose members take `content` bytes."""
    return -(-(content + 2 * BLOCK) // RECORD) * RECORD


@cache
def _tar_writer() -> Any:  # noqa: ANN401 - webdataset has no types
    """Return webdataset's writer without the rest of the package, which would load torch: 500 MB in every worker."""
    found = importlib.util.find_spec("webdataset")
    if found is None or found.submodule_search_locations is None:
        raise ConfigError("webdataset is not installed", hint="pip install webdataset")
    package = types.ModuleType(_ALONE)
    package.__path__ = list(found.submodule_search_locations)
    sys.modules[_ALONE] = package
    return importlib.import_module(f"{_ALONE}.writer").TarWriter


def _by_webdataset(key: str, members: dict[str, bytes]) -> bytes:
    """Return the tar bytes of one sample as webdataset's writer makes them."""
    buffer = io.BytesIO()
    with _tar_writer()(buffer, encoder=False, mtime=0) as writer:
        writer.write({"__key__": key, **members})
        size = int(writer.tarstream.offset)
    return buffer.getvalue()[:size]


@cache
def _header() -> _Header | None:
    """Cut a header of webdataset's writer into its parts; null where headers filled in from them would not be its own."""
    made = _by_webdataset("key", {"bin": b""})
    owner, time, rest = made[100:124], made[136:148], made[156:BLOCK]
    header = _Header(owner, time, rest, sum(owner) + sum(time) + sum(rest) + 8 * ord(" "))
    probes = (("a" * 95, bytes(8)), ("000001", bytes(511)), ("-", bytes(BLOCK)))
    right = all(
        header.fill(name, len(data), sum(name)) == _by_webdataset(key, {"json": data})[:BLOCK]
        for key, data in probes
        for name in [f"{key}.json".encode()]
    )
    return header if right else None


class TarFile:
    """A tar being written to a local file.

    With `hashed`, `xxh3` holds one number a sample, over all its tar bytes, and `sha256` that of the whole file once it is
    closed; a thread makes it, so up to 7 MiB are held beside the sample that is being written.
    """

    def __init__(self, path: Path, *, hashed: bool = False) -> None:
        self.path = path
        self.offset = 0
        self.xxh3: list[int] = []
        self.sha256: str | None = None
        self._file: BinaryIO = path.open("wb")
        self._header = _header()
        self._suffixes: dict[str, tuple[bytes, int]] = {}
        self._pieces: list[bytes] = []
        self._pending = 0
        self._ends: list[int] = []  # of the samples that are pending, from the first pending byte
        self._hash = _Hash() if hashed else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, key: str, members: dict[str, bytes]) -> list[Member]:
        """Append one sample and return where its members lie, in the order they were written."""
        names = sorted(members)  # the order of webdataset's writer
        filled = self._fill(key, names, members)
        pieces = [_by_webdataset(key, members)] if filled is None else filled
        start, placed = self.offset, []
        for name in names:
            size = len(members[name])
            placed.append(Member(f"{key}.{name}", self.offset + BLOCK, size))
            self.offset += BLOCK + size + -size % BLOCK
        if filled is None and len(pieces[0]) != self.offset - start:
            raise AssertionError("webdataset's writer no longer writes USTAR: offsets would be wrong")
        self._take(pieces, self.offset - start)
        return placed

    def close(self) -> None:
        """Finish the archive."""
        try:
            with step("tar"):
                self._flush()
                self._put(bytes(tar_bytes(self.offset) - self.offset))
            if self._hash is not None:
                self.sha256 = self._hash.digest()
        finally:
            if self._hash is not None:
                self._hash.close()
            self._file.close()

    def _fill(self, key: str, names: list[str], members: dict[str, bytes]) -> list[bytes] | None:
        """Return a sample in pieces, a header, data and padding each; null where a header cannot be filled in."""
        header = self._header
        if header is None or not key.isascii():
            return None
        stem = key.encode()
        stem_sum = sum(stem)
        pieces: list[bytes] = []
        for name in names:
            suffix, suffix_sum = self._suffixes.get(name) or self._suffix(name)
            data = members[name]
            size = len(data)
            if not suffix or len(stem) + len(suffix) > _MAX_NAME or size >= _MAX_SIZE:
                return None
            pieces += (header.fill(stem + suffix, size, stem_sum + suffix_sum), data, _PADS[size % BLOCK])
        return pieces

    def _suffix(self, name: str) -> tuple[bytes, int]:
        """Return a suffix with its dot, and the sum of its bytes; nothing for one that webdataset's writer must look at."""
        suffix = f".{name}".encode() if name.isascii() and name[:1] not in ("", "_") else b""
        return self._suffixes.setdefault(name, (suffix, sum(suffix)))

    def _take(self, pieces: list[bytes], size: int) -> None:
        """Let a sample wait for others, so that many are written at once; a large one is written as it is."""
        if self._pending + size > BATCH_BYTES:
            self._flush()
        if size > BATCH_BYTES:
            self._put_large(pieces)
            return
        self._pieces += pieces
        self._pending += size
        self._ends.append(self._pending)

    def _put_large(self, pieces: list[bytes]) -> None:
        checksum = xxhash.xxh3_64()
        for piece in pieces:
            if self._hash is not None:
                checksum.update(piece)
            self._put(piece)
        if self._hash is not None:
            self.xxh3.append(checksum.intdigest())

    def _flush(self) -> None:
        if not self._pieces:
            return
        data, start = b"".join(self._pieces), 0
        if self._hash is not None:
            view = memoryview(data)
            for end in self._ends:
                self.xxh3.append(xxhash.xxh3_64_intdigest(view[start:end]))
                start = end
        self._put(data)
        self._pieces, self._pending, self._ends = [], 0, []

    def _put(self, data: bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)
        self._file.write(data)


class _Hash:
    """SHA-256 of what is written, in a thread of its own: it takes as long as writing does, and holds no lock meanwhile."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "sha256")
        self._waiting: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        """Take bytes; wait when too many wait already, but not for each: on a busy machine that costs a turn every time."""
        self._waiting.append(self._thread.submit(self._sha256.update, data))
        if len(self._waiting) > AHEAD:
            self._waiting.popleft().result()

    def digest(self) -> str:
        """Return the digest of all bytes taken, hexadecimal."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._sha256.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
