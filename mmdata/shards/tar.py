"""Write tars whose bytes follow from their content alone, and say where each member lies.

Headers come from webdataset's own writer, in USTAR with fixed owner, mode and time. USTAR has one 512-byte header a
member and pads to 512, so every offset is known before a byte is written; that is also checked while writing.
"""

import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from mmdata.errors import ConfigError
from mmdata.failpoint import step

_ALONE = "_webdataset_alone"
BLOCK = 512
RECORD = 10_240


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


class TarFile:
    """A tar being written to a local file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._writer = _tar_writer()(self._file, encoder=False, mtime=0)
        self.offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, key: str, members: dict[str, bytes]) -> list[Member]:
        """Append one sample and return where its members lie, in the order they were written."""
        names = sorted(members)  # the order of webdataset's writer
        self._writer.write({"__key__": key, **{name: members[name] for name in names}})
        placed = []
        for name in names:
            size = len(members[name])
            placed.append(Member(f"{key}.{name}", self.offset + BLOCK, size))
            self.offset += member_bytes(size)
        if self._writer.tarstream.offset != self.offset:
            raise AssertionError("webdataset's writer no longer writes USTAR: offsets would be wrong")
        return placed

    def close(self) -> None:
        """Finish the archive."""
        try:
            with step("tar"):
                self._writer.close()
        finally:
            self._file.close()
