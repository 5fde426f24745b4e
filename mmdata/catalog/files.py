"""The files of an entry: find them, name them by their bytes, open each as what it is."""

from functools import lru_cache
from pathlib import Path

from mmdata.catalog.entry import Entry
from mmdata.catalog.lists import WHOLE_BYTES, ListFile
from mmdata.catalog.parquet import ParquetList
from mmdata.catalog.text import JsonList, TextList
from mmdata.errors import ConfigError
from mmdata.storage import digest_file, digest_json

_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".txt": "txt"}


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
        refuse_special(path)
    return sorted(found)


def refuse_special(path: Path) -> None:
    """Refuse what is no plain file, or cannot be written down, without opening it: a pipe would never answer."""
    if not path.is_file():
        raise ConfigError(f"{path}: not a regular file", hint="take it out of the folder: only plain files are read")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path}: its name is not UTF-8", hint="rename it") from None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; above 1 GiB that of its size, time and last 64 KiB."""
    return _file_digest(path, stamp_of(path))


def stamp_of(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file does: size, time and inode."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@lru_cache(maxsize=1 << 16)
def _file_digest(path: Path, stamp: tuple[int, int, int]) -> str:
    if stamp[0] <= WHOLE_BYTES:
        return digest_file(path)
    with path.open("rb") as file:
        file.seek(-65536, 2)
        return digest_json([stamp[0], stamp[1], file.read().hex()])


def open_list(entry: Entry, path: Path) -> ListFile:
    """Return the reader of a list file, by the entry's format or else by the file's name.

    The last few are kept, as long as their files do not change: a worker reads many ranges of one file.
    """
    return _open_list(entry.model_dump_json(), path, stamp_of(path))


@lru_cache(maxsize=4)
def _open_list(entry_json: str, path: Path, _stamp: tuple[int, int, int]) -> ListFile:
    entry = Entry.model_validate_json(entry_json)
    kind = _format(entry, path)
    if kind == "parquet":
        return ParquetList(entry, path)
    return JsonList(entry, path) if kind == "json" else TextList(entry, path, kind)


def _format(entry: Entry, path: Path) -> str:
    if entry.format != "auto":
        return entry.format
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES.values())
        raise ConfigError(f"{path}: cannot tell the format from the name", hint=f"set `format:` ({known})")
    return _SUFFIXES[suffix]
