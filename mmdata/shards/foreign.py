"""Where media lie in files of somebody else's: members of WebDataset tars, plain files, values of a parquet.

Decided here: a foreign tar is never unpacked and none of its names is used as a path; only plain files in it count. A tar
that is compressed cannot be pointed into, and one whose last member is cut short is refused, by name.
"""

import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.errors import ConfigError, did_you_mean
from mmdata.shards.tar import BLOCK, Member
from mmdata.storage import ParquetRows, digest_bytes, rows_url

MAX_MEDIA_BYTES = 32 << 20  # as much as a download takes
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "avif")
VIDEO_SUFFIXES = ("mp4",)
NO_MEDIA, TOO_LARGE = "bad_row", "too_large"
Ref = dict[str, Any]  # a value of `mmdata.schema.PAYLOAD`
Place = Ref | str  # or the outcome of a row whose image is not there or too large


class Sample(NamedTuple):
    """Neighbouring members of one key, by what follows the first dot of their names, in lower case."""

    key: str
    members: dict[str, Member]


def tar_samples(path: Path) -> tuple[Sample, ...]:
    """Return the samples of a tar in their order; raise ConfigError when it is damaged. The last few are remembered."""
    stat = path.stat()
    return _tar_samples(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _tar_samples(path: Path, size: int, _mtime_ns: int) -> tuple[Sample, ...]:
    samples: list[Sample] = []
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if info.isreg() and not info.issparse():
                    _place(samples, info)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a readable tar: {error}", hint="unpack it if it is compressed, else copy it again"
        ) from error
    if end > size:
        raise ConfigError(f"{path}: its last member ends at byte {end:,}, the file at {size:,}", hint="copy it again")
    return tuple(samples)


def _place(samples: list[Sample], info: tarfile.TarInfo) -> None:
    """Add a member to the sample it belongs to: the key is all before the first dot of the last part of its name."""
    folder, slash, name = info.name.rpartition("/")
    stem, dot, suffix = name.partition(".")
    if not stem or not dot:
        return
    key, suffix = folder + slash + stem, suffix.lower()
    if not samples or samples[-1].key != key or suffix in samples[-1].members:
        samples.append(Sample(key, {}))
    samples[-1].members[suffix] = Member(info.name, info.offset_data, info.size)


def image_column(path: Path, name: str | None = None) -> str:
    """Return the column of a parquet file that holds images, `image.bytes` for a struct; raise ConfigError if it is unclear."""
    schema = pq.read_schema(path)
    if name is not None and name not in schema.names:
        raise ConfigError(f"{path}: has no column `{name}`", hint=did_you_mean(name, schema.names))
    chosen = [schema.field(name)] if name is not None else list(schema)
    found = [full for field in chosen if (full := _bytes_of(field)) is not None]
    if len(found) != 1:
        raise ConfigError(f"{path}: {len(found)} columns can hold images", hint="name one with `image:`; it holds bytes")
    return found[0]


def _bytes_of(field: pa.Field) -> str | None:
    kinds = (pa.types.is_binary, pa.types.is_large_binary)
    if any(kind(field.type) for kind in kinds):
        return str(field.name)
    if pa.types.is_struct(field.type) and any(part.name == "bytes" for part in field.type):
        return f"{field.name}.bytes"
    return None


def row_refs(path: Path, column: str, rows: Sequence[int]) -> Iterator[Place]:
    """Yield where the image of each row of a parquet file lies."""
    store = ParquetRows(rows_url(path.parent, column))
    for row in rows:
        data = store.value(path.name, row)
        if not data or len(data) > MAX_MEDIA_BYTES:
            yield TOO_LARGE if data else NO_MEDIA
            continue
        yield _ref(store.url, path.name, row, data)


def media_member(sample: Sample, prefix: str = "", suffixes: Sequence[str] = SUFFIXES) -> Member | None:
    """Return the member of a sample that holds media, of those whose suffix begins so."""
    return next((sample.members[prefix + suffix] for suffix in suffixes if prefix + suffix in sample.members), None)


def tar_refs(tar: Path, members: Sequence[Member | None]) -> Iterator[Place]:
    """Yield where the media of members of a tar lie."""
    with tar.open("rb") as file:
        for member in members:
            if member is None or member.size > MAX_MEDIA_BYTES:
                yield TOO_LARGE if member else NO_MEDIA
                continue
            file.seek(member.offset)
            yield _ref(tar.parent.absolute().as_posix(), tar.name, member.offset, file.read(member.size))


def file_ref(folder: Path, key: str) -> Place:
    """Return where the image file of a key in a folder lies."""
    for suffix in SUFFIXES:
        file = folder / f"{key}.{suffix}"
        if file.is_file():
            large = file.stat().st_size > MAX_MEDIA_BYTES
            return TOO_LARGE if large else _ref(folder.absolute().as_posix(), file.name, 0, file.read_bytes())
    return NO_MEDIA


def _ref(home: str, name: str, offset: int, data: bytes) -> Ref:
    place = {"set": home, "tar": name, "offset": offset, "size": len(data)}
    return {**place, "sha256": digest_bytes(data), "trusted": False}
