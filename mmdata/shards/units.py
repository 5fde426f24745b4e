"""From sample records to one shard: borders by size, then the tar and its index pieces.

Decided here: a border never falls between samples of equal order, so a shard is a range of orders of one split and can be
written by anyone who knows the two ends.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from mmdata.errors import RunError
from mmdata.schema import PAYLOAD
from mmdata.shards.corpus import BLOCK_DTYPE, ID_DTYPE, KINDS, SAMPLE_DTYPE, SUFFIXES
from mmdata.shards.members import TAR_BLOCK
from mmdata.shards.tar import BLOCK, RECORD, Member, TarFile, member_bytes, tar_bytes
from mmdata.storage import Store, digest_bytes, digest_file, open_store

BLOCK_TYPE = pa.struct([
    pa.field("kind", pa.string()), pa.field("text", pa.string()), pa.field("payload", PAYLOAD),
    pa.field("position", pa.int32()), pa.field("width", pa.int32()), pa.field("height", pa.int32()),
])  # fmt: skip
RECORD_FIELDS = (
    pa.field("order", pa.uint64()), pa.field("sample_id", pa.string()), pa.field("split", pa.int32()),
    pa.field("document", pa.bool_()), pa.field("json", pa.string()), pa.field("blocks", pa.list_(BLOCK_TYPE)),
    pa.field("bytes", pa.int64()),
)  # fmt: skip
UNIT_FIELDS = (
    pa.field("split", pa.int32()), pa.field("first", pa.uint64()), pa.field("last", pa.uint64()),
    pa.field("samples", pa.int64()), pa.field("bytes", pa.int64()),
)  # fmt: skip
INDEXES = (("samples", SAMPLE_DTYPE), ("blocks", BLOCK_DTYPE), ("sample_ids", ID_DTYPE))

_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"), (0, b"\x89PNG", "png"), (0, b"GIF8", "gif"), (8, b"WEBP", "webp"),
    (4, b"ftypavi", "avif"), (4, b"ftyp", "mp4"),
)  # fmt: skip


@dataclass(frozen=True)
class EmitPlace:
    """Where a shard is written: the run's store, the corpus folder in it, the shard's number, a local scratch folder."""

    store: Store
    folder: str
    unit: int
    scratch: Path


def block_members(row: dict[str, Any]) -> dict[str, Any]:
    """Return the block of a row: what kind it is, its text, where its media lies and how large it is."""
    return {
        "kind": row["media"] or "text",
        "text": row["text"],
        "payload": row["payload"] if row["media"] else None,
        "position": row["position"],
        "width": row.get("width"),
        "height": row.get("height"),
    }


def record_bytes(record: dict[str, Any]) -> int:
    """Return the bytes that a sample takes in its tar."""
    sizes = [len(record["json"].encode())]
    for block in record["blocks"]:
        if block["payload"] is not None:
            sizes.append(block["payload"]["size"])
        if not record["document"]:
            sizes.append(len((block["text"] or "").encode()))
    return sum(member_bytes(size) for size in sizes)


def borders(sizes: pa.Table, max_samples: int, max_bytes: int) -> pa.Table:
    """Cut all samples, in order, into shards.

    sizes    `split`, `order`, `bytes` of every sample
    returns  one row a shard, UNIT_FIELDS: split, first and last order, number of samples, size of the tar
    """
    split, order, size = (sizes.column(name).to_numpy() for name in ("split", "order", "bytes"))
    ranks = np.lexsort((order, split))
    split, order, size = split[ranks], order[ranks], size[ranks]
    apart = (split[1:] != split[:-1]) | (order[1:] != order[:-1])
    groups = np.append(np.flatnonzero(apart) + 1, len(split))  # where a border may stand
    total = np.concatenate([[0], np.cumsum(size)])
    most = max_bytes // RECORD * RECORD - 2 * BLOCK  # what a tar of that size holds
    units: list[tuple[int, ...]] = []
    start = 0
    while start < len(split):
        by_bytes = int(np.searchsorted(total, total[start] + most, side="right")) - 1
        full = max(start + 1, min(start + max_samples, by_bytes))
        stop = min(int(groups[np.searchsorted(groups, full)]), int(np.searchsorted(split, split[start], side="right")))
        units.append((split[start], order[start], order[stop - 1], stop - start, tar_bytes(int(total[stop] - total[start]))))
        start = stop
    columns = zip(*units, strict=True) if units else [()] * len(UNIT_FIELDS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, UNIT_FIELDS, strict=True)]
    return pa.table(arrays, pa.schema(UNIT_FIELDS))


def choose(records: pa.Table, unit: dict[str, Any]) -> pa.Table:
    """Return the records of one shard, in order."""
    order = records.column("order")
    inside = pc.and_(
        pc.greater_equal(order, pa.scalar(unit["first"], pa.uint64())),
        pc.less_equal(order, pa.scalar(unit["last"], pa.uint64())),
    )
    chosen = records.filter(pc.and_(pc.equal(records.column("split"), unit["split"]), inside))
    return chosen.sort_by([("order", "ascending"), ("sample_id", "ascending"), ("json", "ascending")])


def write_unit(place: EmitPlace, name: str, unit: dict[str, Any], records: pa.Table) -> dict[str, str]:
    """Write one shard and its index pieces; return the SHA-256 of each file by name."""
    path = place.scratch / f"{name}.tar"
    rows: dict[str, list[tuple[Any, ...]]] = {index: [] for index, _ in INDEXES}
    with TarFile(path) as tar:
        for index, record in enumerate(records.to_pylist()):
            _write_sample(tar, place, unit, index, record, rows)
    if records.num_rows != unit["samples"] or path.stat().st_size != unit["bytes"]:
        raise RunError(f"{name}.tar: {records.num_rows} samples, {path.stat().st_size} bytes, but the borders said {unit}")
    arrays = {index: np.array(rows[index], dtype=dtype) for index, dtype in INDEXES}
    _checksums(path, arrays["samples"])
    return _commit(place, name, arrays)


def _write_sample(
    tar: TarFile,
    place: EmitPlace,
    unit: dict[str, Any],
    index: int,
    record: dict[str, Any],
    rows: dict[str, list[tuple[Any, ...]]],
) -> None:
    start = tar.offset
    placed = tar.write(f"{place.unit:05d}{index:06d}", _members(place.store, record))
    blocks = _index_blocks(record, placed, start)
    # Indexes of a unit count their blocks from 0; the manifest step adds what comes before.
    sizes = (start // TAR_BLOCK, (tar.offset - start) // TAR_BLOCK)
    rows["samples"].append((place.unit, len(blocks), unit["split"], len(rows["blocks"]), *sizes, 0))
    rows["blocks"] += blocks
    rows["sample_ids"].append((int(record["sample_id"][:16], 16), int(record["sample_id"][16:], 16)))


def _members(store: Store, record: dict[str, Any]) -> dict[str, bytes]:
    members = {"json": record["json"].encode()}
    for block in record["blocks"]:
        if block["payload"] is not None:
            data = fetch_payload(store, block["payload"])
            suffix = suffix_of(data)
            members[f"{block['position']}.{suffix}" if record["document"] else suffix] = data
        if not record["document"]:
            members["txt"] = (block["text"] or "").encode()
    return members


def fetch_payload(store: Store, ref: dict[str, Any]) -> bytes:
    """Return the bytes of a payload reference; a set outside the run is a path or URL of its own."""
    foreign = ref["set"].startswith("/") or "://" in ref["set"]
    home = open_store(ref["set"]) if foreign else store.sub(ref["set"])
    data = home.read_range(ref["tar"], ref["offset"], ref["size"])
    if digest_bytes(data) != ref["sha256"]:
        raise RunError(
            f"{home.url}/{ref['tar']}: the {ref['size']} bytes at {ref['offset']} are not what was stored",
            hint="the file is damaged or was changed: restore it, or start a new run folder",
        )
    return data


def suffix_of(data: bytes) -> str:
    """Return the file suffix of media by its first bytes."""
    for at, magic, suffix in _MAGIC:
        if data.startswith(magic, at):
            return suffix
    raise RunError(
        f"media that starts with {data[:8]!r} is of no known kind", hint="add a stage that decodes it, such as `measure`"
    )


def _index_blocks(record: dict[str, Any], placed: list[Member], start: int) -> list[tuple[Any, ...]]:
    by_suffix = {member.name.split(".", 1)[1]: member for member in placed}
    rows = []
    for block in record["blocks"]:
        prefix = f"{block['position']}." if record["document"] else ""
        if block["kind"] != "text":
            suffix = next(s for s in SUFFIXES[1:] if f"{prefix}{s}" in by_suffix)
            member = by_suffix[f"{prefix}{suffix}"]
            rows.append((
                KINDS.index(block["kind"]), SUFFIXES.index(suffix), block["position"], member.offset - start, member.size,
                block["height"] or 0, block["width"] or 0, 0,
            ))  # fmt: skip
        if block["text"] is not None:
            member = by_suffix["json" if record["document"] else "txt"]
            rows.append((0, 0, block["position"], member.offset - start, member.size, 0, 0, len(block["text"])))
    return rows


def _checksums(path: Path, samples: np.ndarray) -> None:
    with path.open("rb") as file:
        for row in samples:
            file.seek(int(row["start"]) * TAR_BLOCK)
            row["xxh3"] = xxhash.xxh3_64_intdigest(file.read(int(row["length"]) * TAR_BLOCK))


def _commit(place: EmitPlace, name: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    path = place.scratch / f"{name}.tar"
    digests = {f"{name}.tar": digest_file(path)}
    target = f"{place.folder}/{name}.tar"
    if not place.store.create_from(target, path) and digest_bytes(place.store.read(target)) != digests[f"{name}.tar"]:
        raise RunError(f"{target} exists with other bytes", hint="use a new run folder")
    path.unlink()
    for index, array in arrays.items():
        data = array.tobytes()
        place.store.create_same(f"{place.folder}/units/{name}.{index}", data)
        digests[f"units/{name}.{index}"] = digest_bytes(data)
    return digests
