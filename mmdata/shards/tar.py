"""Write tars whose bytes follow from their content alone, and say where each member lies.

Headers are those of webdataset's writer, in USTAR with fixed owner, mode and time. USTAR has one 512-byte header a member
and pads to 512, so every offset is known before a byte is written. They are made here, from the standard library's: with
webdataset comes torch, which costs a worker that only downloads seconds and 250 MiB; a test holds the bytes against its own.
"""

import tarfile
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from mmdata.failpoint import step

BLOCK = 512
RECORD = 10_240
MAX_NAME_BYTES = 100
MAX_SIZE = 8**11 - 1


class Member(NamedTuple):
    """Where a member's data lies in its tar."""

    name: str
    offset: int
    size: int


def member_bytes(size: int) -> int:
    """Return the bytes that a member of `size` bytes takes in a tar, header and padding included."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def tar_bytes(content: int) -> int:
    """Return the size of a finished tar whose members take `content` bytes."""
    return -(-(content + 2 * BLOCK) // RECORD) * RECORD


class TarFile:
    """A tar being written to a local file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self.offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, key: str, members: dict[str, bytes]) -> list[Member]:
        """Append one sample and return where its members lie, in the order they were written."""
        placed = []
        for suffix in sorted(members):  # the order of webdataset's writer
            name, data = f"{key}.{suffix}", members[suffix]
            self._file.write(header(name, len(data)))
            self._file.write(data)
            self._file.write(bytes(-len(data) % BLOCK))
            placed.append(Member(name, self.offset + BLOCK, len(data)))
            self.offset += member_bytes(len(data))
        return placed

    def close(self) -> None:
        """Finish the archive."""
        if self._file.closed:
            return
        try:
            with step("tar"):
                self._file.write(bytes(tar_bytes(self.offset) - self.offset))
        finally:
            self._file.close()


def header(name: str, size: int) -> bytes:
    """Return the header of a member: its name is at most 100 bytes and its size below 8 GiB, or ValueError is raised."""
    encoded = name.encode()
    if len(encoded) > MAX_NAME_BYTES or size > MAX_SIZE:
        raise ValueError(f"a member `{name[:MAX_NAME_BYTES]}` of {size} bytes does not fit into USTAR")
    block = bytearray(_template())
    block[: len(encoded)] = encoded
    block[124:135] = b"%011o" % size
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@cache
def _template() -> bytes:
    """Return a header without name, size and checksum; while that is worked out its own field counts as blanks."""
    info = tarfile.TarInfo("x")
    info.mode, info.uname, info.gname, info.mtime = 0o444, "bigdata", "bigdata", 0
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[:1], block[148:156] = b"\0", b" " * 8
    return bytes(block)
