"""From sample records to one shard: borders by size, then the tar and its index pieces.

Decided here: a border never falls between samples of equal order, so a shard is a range of orders of one split and can be
written by anyone who knows the two ends.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.errors import RunError
from mmdata.schema import PAYLOAD
from mmdata.shards.corpus import BLOCK_DTYPE, ID_DTYPE, KINDS, SAMPLE_DTYPE, SUFFIXES
from mmdata.shards.members import TAR_BLOCK
from mmdata.shards.payloads import read_payloads
from mmdata.shards.tar import BLOCK, RECORD, Member, TarFile, member_bytes, tar_bytes
from mmdata.storage import Store, digest_bytes

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
WINDOW = 16 << 20
ROWS_AT_A_TIME = 256  # records that are Python objects at a time

_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"), (0, b"\x89PNG", "png"), (0, b"GIF8", "gif"), (8, b"WEBP", "webp"),
    (4, b"ftypavi", "avif"), (4, b"ftyp", "mp4"),
)  # fmt: skip


@dataclass(frozen=True)
class EmitPlace:
    """Where a shard is written: the run's store, the corpus folder in it, the shard's number, a local scratch folder.

    window  bytes of neighbouring samples that are read together, and held
    """

    store: Store
    folder: str
    unit: int
    scratch: Path
    window: int = WINDOW


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
    """Return the records of one shard."""
    order = records.column("order")
    inside = pc.and_(
        pc.greater_equal(order, pa.scalar(unit["first"], pa.uint64())),
        pc.less_equal(order, pa.scalar(unit["last"], pa.uint64())),
    )
    return records.filter(pc.and_(pc.equal(records.column("split"), unit["split"]), inside))


def in_order(records: pa.Table) -> pa.Table:
    """Return records in the corpus's order."""
    keys = ("split", "order", "sample_id", "json")
    return records.combine_chunks().sort_by([(name, "ascending") for name in keys])


class ShardFile:
    """A shard being written to a local file: its tar, and beside it the records of its indexes."""

    def __init__(self, path: Path, number: int, split: int = 0) -> None:
        self.number, self.split = number, split
        self.tar = TarFile(path, hashed=True)
        self._samples: list[tuple[int, ...]] = []
        self._blocks: list[tuple[int, ...]] = []
        self._ids: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tar.close()

    def add(self, record: dict[str, Any], media: Iterable[bytes]) -> None:
        """Write one sample; `media` are the bytes of its blocks' payloads, in order."""
        members, suffixes = _members(record, iter(media))
        start = self.tar.offset
        key = f"{self.number:05d}{len(self._samples):06d}"
        placed = dict(zip(sorted(members), self.tar.write(key, members), strict=True))
        first = len(self._blocks)  # indexes of a unit count their blocks from 0; the manifest step adds what comes before
        self._blocks += _index_blocks(record, suffixes, placed, start)
        sizes = (start // TAR_BLOCK, (self.tar.offset - start) // TAR_BLOCK)
        self._samples.append((self.number, len(self._blocks) - first, self.split, first, *sizes, 0))
        ident = record["sample_id"]
        self._ids.append((int(ident[:16], 16), int(ident[16:], 16)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the indexes by name, once the tar is closed."""
        rows = {"samples": self._samples, "blocks": self._blocks, "sample_ids": self._ids}
        arrays = {index: np.array(rows[index], dtype=dtype) for index, dtype in INDEXES}
        arrays["samples"]["xxh3"] = self.tar.xxh3
        return arrays


def write_unit(place: EmitPlace, name: str, unit: dict[str, Any], records: pa.Table) -> dict[str, str]:
    """Write one shard and its index pieces; return the SHA-256 of each file by name."""
    path = place.scratch / f"{name}.tar"
    records = in_order(records)
    with ShardFile(path, place.unit, unit["split"]) as shard:
        for window in windows(records.column("bytes").to_numpy(), place.window):
            _write_window(shard, place.store, records.slice(window.start, len(window)))
    if records.num_rows != unit["samples"] or path.stat().st_size != unit["bytes"]:
        raise RunError(f"{name}.tar: {records.num_rows} samples, {path.stat().st_size} bytes, but the borders said {unit}")
    assert shard.tar.sha256 is not None
    return _commit(place, name, shard.tar.sha256, shard.arrays())


def windows(sizes: np.ndarray, most: int) -> Iterator[range]:
    """Cut neighbours into ranges of at most `most` bytes together; what is larger than that is a range by itself."""
    total = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    start = 0
    while start < len(sizes):
        stop = int(np.searchsorted(total, total[start] + most, side="right")) - 1
        stop = max(stop, start + 1)
        yield range(start, stop)
        start = stop


def payloads_of(records: pa.Table) -> pa.StructArray:
    """Return the payload references of records, one after the other; blocks without media have none."""
    payloads = pc.list_flatten(records.column("blocks").combine_chunks()).field("payload")
    return payloads.filter(payloads.is_valid())


def _write_window(shard: ShardFile, store: Store, records: pa.Table) -> None:
    """Write neighbouring samples: their media are read in the order in which they lie."""
    refs = payloads_of(records).to_pylist()
    media: list[bytes] = [b""] * len(refs)
    for at, data in read_payloads(store, refs):
        media[at] = data
    media.reverse()  # so that each is let go of once it is written
    for start in range(0, records.num_rows, ROWS_AT_A_TIME):
        for record in records.slice(start, ROWS_AT_A_TIME).to_pylist():
            num = sum(block["payload"] is not None for block in record["blocks"])
            shard.add(record, [media.pop() for _ in range(num)])


def _members(record: dict[str, Any], media: Iterator[bytes]) -> tuple[dict[str, bytes], list[str]]:
    """Return a sample's members by suffix, and for each block the suffix of its media, empty for none."""
    members = {"json": record["json"].encode()}
    suffixes = []
    for block in record["blocks"]:
        suffix = ""
        if block["payload"] is not None:
            data = next(media)
            suffix = suffix_of(data)
            members[f"{block['position']}.{suffix}" if record["document"] else suffix] = data
        if not record["document"]:
            members["txt"] = (block["text"] or "").encode()
        suffixes.append(suffix)
    return members, suffixes


def _index_blocks(
    record: dict[str, Any], suffixes: list[str], placed: dict[str, Member], start: int
) -> Iterator[tuple[int, ...]]:
    document = record["document"]
    for block, suffix in zip(record["blocks"], suffixes, strict=True):
        if suffix:
            member = placed[f"{block['position']}.{suffix}" if document else suffix]
            yield (
                KINDS.index(block["kind"]), SUFFIXES.index(suffix), block["position"], member.offset - start, member.size,
                block["height"] or 0, block["width"] or 0, 0,
            )  # fmt: skip
        if block["text"] is not None:
            member = placed["json" if document else "txt"]
            yield 0, 0, block["position"], member.offset - start, member.size, 0, 0, len(block["text"])


def _commit(place: EmitPlace, name: str, sha256: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    path = place.scratch / f"{name}.tar"
    digests = {f"{name}.tar": sha256}
    target = f"{place.folder}/{name}.tar"
    if not place.store.create_from(target, path) and digest_bytes(place.store.read(target)) != sha256:
        raise RunError(f"{target} exists with other bytes", hint="use a new run folder")
    path.unlink()
    for index, array in arrays.items():
        data = array.tobytes()
        place.store.create_same(f"{place.folder}/units/{name}.{index}", data)
        digests[f"units/{name}.{index}"] = digest_bytes(data)
    return digests


def suffix_of(data: bytes) -> str:
    """Return the file suffix of media by its first bytes."""
    for at, magic, suffix in _MAGIC:
        if data.startswith(magic, at):
            return suffix
    raise RunError(
        f"media that starts with {data[:8]!r} is of no known kind", hint="add a stage that decodes it, such as `measure`"
    )
