"""Published list files: find them, count their rows, read a range of rows.

Decided here: a file that cannot be opened as what it says is refused by name before the run; inside a readable file a
bad line costs that line alone, and keeps its row number.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.catalog.entry import ALIASES, Entry
from mmdata.errors import ConfigError, did_you_mean
from mmdata.storage import digest_file, digest_json

_UNREADABLE = (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid, pa.ArrowException, OSError)
HASH_LIMIT = 1 << 30
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl"}

csv.field_size_limit(1 << 20)


@dataclass(frozen=True)
class Slice:
    """Rows `start..stop` of one list file."""

    file: str
    digest: str
    start: int
    stop: int


@dataclass(frozen=True)
class Raw:
    """Rows as the file has them, column by column, and which of them could not be parsed."""

    columns: dict[str, list[Any]]
    bad: list[bool]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.bad)


def list_files(entry: Entry, root: Path) -> list[Path]:
    """Return the files of an entry, sorted by name; special files are refused."""
    found: set[Path] = set()
    for pattern in entry.files:
        hits = [path for path in root.glob(pattern) if not path.is_dir()]
        if not hits:
            raise ConfigError(
                f"{root / pattern}: no such file",
                hint="put the dataset's files beside the catalog, or name their folder by `data:` in the plan",
            )
        found.update(hits)
    for path in found:
        if not path.is_file():
            raise ConfigError(f"{path}: not a regular file", hint="list files must be plain files")
    return sorted(found)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; above 1 GiB that of its size, time and last 64 KiB."""
    stat = path.stat()
    if stat.st_size <= HASH_LIMIT:
        return digest_file(path)
    with path.open("rb") as file:
        file.seek(-65536, 2)
        return digest_json([stat.st_size, stat.st_mtime_ns, file.read().hex()])


def count_rows(entry: Entry, path: Path) -> int:
    """Return the number of rows of a file, bad ones included; refuse a file that is not what it says."""
    kind = _format(entry, path)
    if kind == "parquet":
        return int(_parquet(path).metadata.num_rows)
    try:
        return sum(1 for _ in _records(entry, path, kind))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def resolve(entry: Entry, path: Path) -> dict[str, str]:
    """Return which column of a file plays which part, or refuse the file by column and name."""
    present = _names(entry, path)
    wanted = ("images", "texts") if entry.shape == "documents" else ("url", "text")
    parts: dict[str, str] = {}
    for part in (*wanted, "sample_id"):
        given = getattr(entry.columns, part)
        name = given or next((alias for alias in ALIASES[part] if alias in present), None)
        if given is not None and given not in present:
            raise ConfigError(f"{path}: has no column `{given}`", hint=did_you_mean(given, present))
        if name is None and part in ("url", "images", "texts"):
            raise ConfigError(f"{path}: no column holds the {part}", hint=f"name it under `columns:`; {path.name} has {present}")
        if name is not None:
            parts[part] = name
    _check_text(entry, path, parts)
    for name in (*entry.columns.captions, *entry.carry):
        if name not in present:
            raise ConfigError(f"{path}: has no column `{name}`", hint=did_you_mean(name, present))
    return parts


def _check_text(entry: Entry, path: Path, parts: dict[str, str]) -> None:
    """Refuse a parquet whose url or text is no text; in the other formats every value is looked at on its own."""
    if _format(entry, path) != "parquet" or entry.shape == "documents":
        return
    schema = _parquet(path).schema_arrow
    for part in ("url", "text"):
        kind = schema.field(parts[part]).type if part in parts else pa.string()
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise ConfigError(f"{path}: column `{parts[part]}` is {kind}, not text", hint="name another column under `columns:`")


def read_raw(entry: Entry, path: Path, start: int, stop: int) -> Raw:
    """Return rows `start..stop` of a file with its own columns; a row that could not be parsed is bad."""
    try:
        if _format(entry, path) == "parquet":
            table = _parquet_range(path, start, stop)
            return Raw({name: table.column(name).to_pylist() for name in table.column_names}, [False] * table.num_rows)
        records = list(islice(_records(entry, path, _format(entry, path)), start, stop))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    names = _names(entry, path)
    columns = {name: [None if record is None else record.get(name) for record in records] for name in names}
    return Raw(columns, [record is None for record in records])


def _format(entry: Entry, path: Path) -> str:
    if entry.format != "auto":
        return entry.format
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _SUFFIXES:
        raise ConfigError(
            f"{path}: cannot tell the format from the name", hint=f"set `format:` ({', '.join(_SUFFIXES.values())})"
        )
    return _SUFFIXES[suffix]


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: cannot be read to its end: {error}", hint="fetch it again; it may be cut short or damaged")


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path}: not a readable parquet file: {error}", hint="fetch it again; it may be cut short") from error


def _parquet_range(path: Path, start: int, stop: int) -> pa.Table:
    file = _parquet(path)
    tables, first = [], 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        low, high = max(start - first, 0), min(stop - first, rows)
        if low < high:
            tables.append(file.read_row_group(group).slice(low, high - low))
        first += rows
    return pa.concat_tables(tables) if tables else file.schema_arrow.empty_table()


def _names(entry: Entry, path: Path) -> list[str]:
    kind = _format(entry, path)
    if kind == "parquet":
        names = list(_parquet(path).schema_arrow.names)
    elif entry.header is not None:
        names = list(entry.header)
    elif kind in ("csv", "tsv"):
        with _text(path) as file:
            names = next(csv.reader(file, delimiter=_delimiter(kind)), [])
    else:
        names = list(dict.fromkeys(key for record in islice(_records(entry, path, kind), 100) for key in record or ()))
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: two columns have the same name: {names}")
    return names


def _records(entry: Entry, path: Path, kind: str) -> Iterator[dict[str, Any] | None]:
    if kind == "json":
        yield from _json_records(path)
        return
    with _text(path) as file:
        if kind == "jsonl":
            yield from (_json_line(line) for line in file if line.strip())
        else:
            yield from _csv_records(entry, file, _delimiter(kind))


def _csv_records(entry: Entry, file: IO[str], delimiter: str) -> Iterator[dict[str, Any] | None]:
    # Tab-separated lists hold quotation marks as they are.
    plain = delimiter == "\t"
    reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    names = list(entry.header) if entry.header is not None else next(reader, [])
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        yield dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None


def _json_line(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json_records(path: Path) -> Iterator[dict[str, Any] | None]:
    try:
        with _text(path) as file:
            value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if isinstance(value, dict):  # parallel lists, as SBU has them
        lists = {key: column for key, column in value.items() if isinstance(column, list)}
        lengths = {len(column) for column in lists.values()}
        if len(lengths) != 1:
            raise ConfigError(f"{path}: a JSON list file holds one list of objects, or lists of one length")
        value = [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    yield from (record if isinstance(record, dict) else None for record in value)


def _text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="")
    return path.open(encoding="utf-8", errors="replace", newline="")


def _delimiter(kind: str) -> str:
    return "\t" if kind == "tsv" else ","
