"""Parquet files with media in a column, as a store that is only read: a reference's offset is the number of the row.

Decided here: a parquet's values have no place in the file that one could point to, so they are addressed by row. Row groups
are read whole and the latest are kept: a corpus in another order is made quickly only where row groups are small.
"""

from bisect import bisect_right
from collections import OrderedDict
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO

from mmdata.errors import ConfigError, RunError
from mmdata.storage.store import Store

SCHEME = "parquet://"
MAX_GROUP_BYTES = 2 << 30
MAX_HELD_BYTES = 256 << 20


def rows_url(folder: Path, column: str) -> str:
    """Return the url of a column of the parquet files in a folder; `image.bytes` is a field of a struct."""
    return f"{SCHEME}{folder.absolute().as_posix()}?{column}"


class ParquetRows(Store):
    """One column of the parquet files in a folder."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        folder, _, self.column = url.removeprefix(SCHEME).rpartition("?")
        self.root = Path(folder)

    def open(self, name: str) -> IO[bytes]:
        """Open a whole file."""
        return (self.root / name).open("rb")

    def create(self, name: str, data: bytes) -> bool:
        """Refuse."""
        raise self._read_only()

    def create_from(self, name: str, path: Path) -> bool:
        """Refuse."""
        raise self._read_only()

    def put(self, name: str, data: bytes) -> None:
        """Refuse."""
        raise self._read_only()

    def exists(self, name: str) -> bool:
        """Say whether there is such a file."""
        return (self.root / name).is_file()

    def size(self, name: str) -> int:
        """Return the bytes that a file has."""
        return (self.root / name).stat().st_size

    def list(self, prefix: str) -> list[str]:
        """Return the names of the files in a folder."""
        return sorted(path.name for path in (self.root / prefix).glob("*"))

    def delete(self, name: str) -> None:
        """Refuse."""
        raise self._read_only()

    def sub(self, name: str) -> "ParquetRows":
        """Return the store of a folder below this one."""
        return ParquetRows(rows_url(self.root / name, self.column))

    def value(self, name: str, row: int) -> bytes | None:
        """Return the value of a row; null when it has none, or there is no such row."""
        path = self.root / name
        stamp = path.stat().st_mtime_ns
        ends = _ends(path, stamp)
        group = bisect_right(ends, row)
        if group >= len(ends):
            return None
        return _GROUPS.get(path, stamp, group, self.column)[row - (ends[group - 1] if group else 0)]

    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        return (self.value(name, offset) or b"")[: size + 1]

    def _read_only(self) -> ConfigError:
        return ConfigError(f"{self.url} is only read", hint="give a folder or a bucket to write to")


@lru_cache(maxsize=8)
def _ends(path: Path, _mtime_ns: int) -> list[int]:
    import pyarrow.parquet as pq

    meta = pq.read_metadata(path)
    return list(accumulate(meta.row_group(group).num_rows for group in range(meta.num_row_groups)))


class _Groups:
    """Row groups that were read lately, as many as fit into `MAX_HELD_BYTES`, and always one."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Path, int, int, str], list[bytes | None]] = OrderedDict()
        self._bytes = 0

    def get(self, path: Path, mtime_ns: int, group: int, column: str) -> list[bytes | None]:
        """Return the values of a row group."""
        key = (path, mtime_ns, group, column)
        if key not in self._held:
            values = _read(path, group, column)
            self._bytes += _size(values)
            self._held[key] = values
            while self._bytes > MAX_HELD_BYTES and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        self._held.move_to_end(key)
        return self._held[key]


_GROUPS = _Groups()


def _size(values: list[bytes | None]) -> int:
    return sum(len(value) for value in values if value is not None)


def _read(path: Path, group: int, column: str) -> list[bytes | None]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        claimed = file.metadata.row_group(group).total_byte_size
        if claimed > MAX_GROUP_BYTES:
            raise RunError(f"{path}: row group {group} has {claimed:,} bytes", hint="write it with fewer rows a row group")
        values = file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks()
    for part in column.split(".")[1:]:
        values = values.field(part)
    found: list[bytes | None] = values.to_pylist()
    return found
