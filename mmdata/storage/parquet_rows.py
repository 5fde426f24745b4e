"""Parquet files with media in a column, as a store that is only read: a reference's offset is the number of the row.

Decided here: a parquet's values have no place in the file that one could point to, so they are addressed by row. Row groups
are read whole; the last one is kept, since rows are asked for in order.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO

from mmdata.errors import ConfigError
from mmdata.storage.store import Store

SCHEME = "parquet://"


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
        return _values(path, stamp, group, self.column)[row - (ends[group - 1] if group else 0)]

    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        return (self.value(name, offset) or b"")[: size + 1]

    def _read_only(self) -> ConfigError:
        return ConfigError(f"{self.url} is only read", hint="give a folder or a bucket to write to")


@lru_cache(maxsize=8)
def _ends(path: Path, _mtime_ns: int) -> list[int]:
    import pyarrow.parquet as pq

    meta = pq.read_metadata(path)
    return list(accumulate(meta.row_group(group).num_rows for group in range(meta.num_row_groups)))


@lru_cache(maxsize=1)
def _values(path: Path, _mtime_ns: int, group: int, column: str) -> list[bytes | None]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        values = file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks()
    for part in column.split(".")[1:]:
        values = values.field(part)
    found: list[bytes | None] = values.to_pylist()
    return found
