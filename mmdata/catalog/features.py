"""Features of a pool's samples: the `.npz` beside each parquet file of metadata, one array a name, one line a row.

Decided here: only plain numbers are read, nothing is unpickled. A file is refused, with the reason, when it is missing, cut
short, damaged, or has not one line for each row; that is found before a run, as with lists. Of an array that lies in it as it
is, only what is asked for is read; a compressed one is unpacked up to there.
"""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from mmdata.catalog.files import stamp_of
from mmdata.catalog.lists import WHOLE_BYTES, UnreadableError
from mmdata.errors import did_you_mean

_TYPES = {np.dtype("<f2"): pa.float16(), np.dtype("<f4"): pa.float32()}
_BLOCK = 1 << 20
# What reading a damaged archive, or numpy's header in one, may raise; an encrypted member is a RuntimeError.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, SyntaxError, tokenize.TokenError,
)  # fmt: skip
_AGAIN = "fetch it again; it may be cut short or damaged"


@dataclass(frozen=True)
class Array:
    """What the header of an array says: rows, numbers a row, their type; and where the first number lies in the member."""

    rows: int
    width: int
    dtype: np.dtype
    offset: int

    @property
    def type(self) -> pa.DataType:
        """The type of its rows as a column."""
        return pa.list_(_TYPES[self.dtype], self.width)


def features_beside(parquet: Path) -> Path:
    """Return the `.npz` of a parquet file of metadata: the same name up to `.parquet`."""
    return parquet.with_name(parquet.name.split(".parquet")[0] + ".npz")


def read_header(path: Path, name: str) -> Array:
    """Return what an array's header says; raise UnreadableError for a file or an array that cannot be read."""
    with _naming(path), zipfile.ZipFile(path) as file, _member(file, path, name) as member:
        return _header(member, path, name)


def check_features(path: Path, names: tuple[str, ...], rows: int) -> None:
    """Raise UnreadableError unless a file holds these arrays whole, each with a line for each of `rows` rows."""
    if not path.is_file():
        hint = "fetch the pool's npz files too, or leave `features` out"
        raise UnreadableError(f"{path}: no such file, and the features of {rows:,} rows should lie there", hint=hint)
    with _naming(path), zipfile.ZipFile(path) as file:
        for name in names:
            with _member(file, path, name) as member:
                found = _header(member, path, name)
                if found.rows != rows:
                    raise UnreadableError(
                        f"{path}: `{name}` has {found.rows:,} rows, but the parquet beside it {rows:,}", hint="fetch both again"
                    )
                size = found.offset + rows * found.width * found.dtype.itemsize
                whole = path.stat().st_size <= WHOLE_BYTES
                held = _read_through(member, found.offset) if whole else file.getinfo(member.name).file_size
                if held != size:
                    raise UnreadableError(f"{path}: `{name}` has {held:,} bytes, not {size:,}", hint=_AGAIN)


def read_features(path: Path, name: str, start: int, stop: int) -> np.ndarray:
    """Return rows `start..stop` of an array, (N, width); the last few that were asked for are kept."""
    return _read(path, name, start, stop, stamp_of(path))


@lru_cache(maxsize=4)
def _read(path: Path, name: str, start: int, stop: int, _stamp: tuple[int, int, int]) -> np.ndarray:
    with _naming(path), zipfile.ZipFile(path) as file, _member(file, path, name) as member:
        found = _header(member, path, name)
        line = found.width * found.dtype.itemsize
        member.seek(found.offset + start * line)
        data = member.read((stop - start) * line)
    if len(data) != (stop - start) * line:
        raise UnreadableError(f"{path}: rows {start}..{stop} of `{name}` are not there", hint=_AGAIN)
    return np.frombuffer(data, found.dtype).reshape(stop - start, found.width)


def _header(member: IO[bytes], path: Path, name: str) -> Array:
    major, _ = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(member)
    if dtype not in _TYPES or len(shape) != 2 or fortran:
        what = f"{len(shape)} dimensions of {dtype}" + (" in Fortran's order" if fortran else "")
        raise UnreadableError(f"{path}: `{name}` holds {what}", hint="features are rows of float16 or float32")
    return Array(shape[0], shape[1], dtype, member.tell())


def _read_through(member: IO[bytes], offset: int) -> int:
    """Return the bytes of a member, read to its end, where its checksum is compared."""
    size = offset
    while block := member.read(_BLOCK):
        size += len(block)
    return size


@contextmanager
def _member(file: zipfile.ZipFile, path: Path, name: str) -> Iterator[IO[bytes]]:
    names = {item.removesuffix(".npy"): item for item in file.namelist()}
    if name not in names:
        raise UnreadableError(f"{path}: holds no array `{name}`", hint=did_you_mean(name, names))
    with file.open(names[name]) as member:
        yield member


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of damage which file has it."""
    try:
        yield
    except _DAMAGE as error:
        raise UnreadableError(f"{path}: not a readable npz file: {error}", hint=_AGAIN) from error
