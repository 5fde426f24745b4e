"""Parquet that `datasets.load_dataset(OUT)` reads as it is: `data/SPLIT-00000-of-00005.parquet`, one file a tar.

Decided here: row groups are bounded in bytes, for readers hold one in memory. Beside `json`, which is every sample's JSON as
it was, what a random choice of samples has in its JSON as plain numbers, flags or texts gets a column of that type, to filter
by: a document has null there, and so has a value of another type. Images are Hugging Face's `Image`, videos are bytes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.errors import RunError
from mmdata.shards.contents import VIDEO_PAIR, choose_samples, kinds_of
from mmdata.shards.corpus import KINDS, Corpus
from mmdata.shards.counter import Counter
from mmdata.shards.export.records import Media, Record, Shape, read_records
from mmdata.shards.sealed import ShardFacts

GROUP_BYTES = 64 << 20
GROUP_ROWS = 10_000
LOOKED_AT = 2_000
MAX_COLUMNS = 100

FILE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_IMAGE: dict[str, object] = {"_type": "Image"}
_NAMES = {pa.string(): "string", pa.binary(): "binary", pa.bool_(): "bool", pa.int64(): "int64", pa.float64(): "float64"}
# What a column of these types of JSON values holds; values that are null say nothing.
_TYPES: dict[frozenset[type], pa.DataType] = {
    frozenset({bool}): pa.bool_(), frozenset({int}): pa.int64(), frozenset({str}): pa.string(),
    frozenset({float}): pa.float64(), frozenset({int, float}): pa.float64(),
}  # fmt: skip
_FITTING: dict[pa.DataType, tuple[type, ...]] = {
    pa.bool_(): (bool,), pa.int64(): (int,), pa.string(): (str,), pa.float64(): (int, float),
}  # fmt: skip
_COPIES = frozenset({"caption"})  # `text` has it


def write(corpus: Corpus, folder: Path, counter: Counter) -> None:
    """Write a parquet file for every tar."""
    shape = Shape.of(corpus)
    plain = plain_columns(corpus, shape)
    schema = _schema(corpus, shape, plain)
    # Media is compressed as it is: only columns that are named are.
    codecs = {name: "zstd" for name in schema.names if name not in ("image", "video", "media")}
    (folder / "data").mkdir()
    for name, first, shard in _files(corpus):
        indexes = range(first, first + shard.samples)
        with pq.ParquetWriter(folder / "data" / name, schema, compression=codecs, use_dictionary=list(plain)) as writer:
            for group in _groups(read_records(corpus, indexes), shape, plain):
                writer.write_table(_table(group, schema, shard), row_group_size=len(group))
                counter.add(len(group))


def plain_columns(corpus: Corpus, shape: Shape) -> dict[str, pa.DataType]:
    """Return the names in samples' JSON whose values are plain, and their types, from at most 2,000 samples."""
    taken = {*shape.columns(), *_COPIES}
    seen: dict[str, set[type]] = {}
    for record in read_records(corpus, choose_samples(corpus, LOOKED_AT).tolist()):
        for name, value in record.facts().items() if record.blocks is None else ():
            if value is not None and name not in taken:
                seen.setdefault(name, set()).add(type(value))
    found = {name: _TYPES[frozenset(types)] for name, types in seen.items() if frozenset(types) in _TYPES}
    return dict(list(found.items())[:MAX_COLUMNS])


def _files(corpus: Corpus) -> Iterator[tuple[str, int, ShardFacts]]:
    """Yield, for each tar with samples, its parquet's name and its first sample."""
    shards = [shard for shard in corpus.manifest.shards if shard.samples]
    num = {split: sum(shard.split == split for shard in shards) for split in corpus.splits}
    place, first = dict.fromkeys(num, 0), 0
    for shard in shards:
        yield f"{shard.split}-{place[shard.split]:05d}-of-{num[shard.split]:05d}.parquet", first, shard
        place[shard.split] += 1
        first += shard.samples


def _groups(records: Iterator[Record], shape: Shape, plain: dict[str, pa.DataType]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for record in records:
        size = sum(len(media.data) for media in record.media) + len(record.json)
        if group and (num_bytes + size > GROUP_BYTES or len(group) == GROUP_ROWS):
            yield group
            group, num_bytes = [], 0
        group.append(_row(record, shape, plain))
        num_bytes += size
    yield group


def _row(record: Record, shape: Shape, plain: dict[str, pa.DataType]) -> dict[str, Any]:
    image, video = record.of_pair("image"), record.of_pair("video")
    row: dict[str, Any] = {"sample_id": record.sample_id, "text": record.text, "json": record.json}
    row |= {"image": image and _file(record, image)} if shape.images else {}
    row |= {"video": video and video.data} if shape.videos else {}
    if shape.documents:
        document = record.blocks is not None
        row["blocks"] = json.dumps(record.blocks) if document else None
        row["media"] = [_file(record, media) for media in record.media] if document else None
    facts = record.facts() if record.blocks is None else {}
    return row | {name: _fitting(facts.get(name), kind) for name, kind in plain.items()}


def _file(record: Record, media: Media) -> dict[str, object]:
    return {"bytes": media.data, "path": f"{record.sample_id}.{media.suffix}"}


def _fitting(value: object, kind: pa.DataType) -> object:
    if type(value) not in _FITTING[kind]:
        return None
    if kind == pa.int64():
        return value if -(1 << 63) <= value < 1 << 63 else None  # type: ignore[operator]
    if kind == pa.string():
        return value if _is_utf8(value) else None  # type: ignore[arg-type]
    return float(value) if kind == pa.float64() else value  # type: ignore[arg-type]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character: JSON can spell it
        return False
    return True


def _table(group: list[dict[str, Any]], schema: pa.Schema, shard: ShardFacts) -> pa.Table:
    try:
        return pa.Table.from_pylist(group, schema=schema)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise RunError(
            f"{shard.name}: samples cannot be columns of a parquet: {error}", hint="export them to another format"
        ) from error


def _schema(corpus: Corpus, shape: Shape, plain: dict[str, pa.DataType]) -> pa.Schema:
    """Return the columns, with the features that `datasets` looks for in a schema's metadata."""
    types = {"sample_id": pa.string(), "text": pa.string(), "json": pa.string(), "image": FILE, "video": pa.binary()}
    types |= {"blocks": pa.string(), "media": pa.list_(FILE)}
    fields = {name: types[name] for name in shape.columns()} | plain
    features: dict[str, object] = {
        name: {"dtype": _NAMES[kind], "_type": "Value"} for name, kind in fields.items() if kind in _NAMES
    }
    features |= {"image": _IMAGE} if shape.images else {}
    if shape.documents:
        features["media"] = {"feature": _document_media(corpus), "_type": "Sequence"}
    told = {"info": {"features": {name: features[name] for name in fields}}}
    return pa.schema([pa.field(name, kind) for name, kind in fields.items()], {b"huggingface": json.dumps(told).encode()})


def _document_media(corpus: Corpus) -> dict[str, object]:
    """Return the feature of an item of a document's media: an image, unless documents have videos."""
    videos = np.count_nonzero(corpus.blocks["kind"] == KINDS.index("video"))
    if videos == np.count_nonzero(kinds_of(corpus) == VIDEO_PAIR):
        return _IMAGE
    return {"bytes": {"dtype": "binary", "_type": "Value"}, "path": {"dtype": "string", "_type": "Value"}}
