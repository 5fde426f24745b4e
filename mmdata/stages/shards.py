"""The sink: kept samples into WebDataset shards, in one global order.

Decided here: order = hash(seed, sample_id), so it depends on nothing but the sample. The size of every member is known
from references, texts and JSON, so shard borders are drawn before a byte of media is read, and each shard is one task. Where
its media are read from, one by one where they lie or on end from sorted copies, changes no byte of it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field, field_validator

from mmdata.dedupe.kept import check_kept, source_of
from mmdata.errors import ConfigError
from mmdata.schema import BASE_NAMES, PAYLOAD_COLUMN, ROW
from mmdata.shards.manifest import Finish, write_manifest
from mmdata.shards.payloads import is_far, kind_of
from mmdata.shards.reference import FACTS_FILE
from mmdata.shards.reference_files import check_names
from mmdata.shards.sorting import sort_media
from mmdata.shards.units import (
    RECORD_FIELDS,
    WINDOW,
    EmitPlace,
    block_members,
    borders,
    choose,
    in_order,
    payloads_of,
    record_bytes,
    write_unit,
)
from mmdata.stages.kept import KEPT, finish_kept, kept_in, with_kept, write_kept
from mmdata.stages.passes import Emit, Fold, Pass, Scatter, Sort
from mmdata.stages.verbs import Sink
from mmdata.storage import Store

TRAIN = "train"
# Columns that say where rows came from and lie in the sample's JSON in any case.
JSON_BASE = ("sample_id", "source", "url")
RECORD_NAMES = [field.name for field in RECORD_FIELDS]
KINDS = b"kinds"  # metadata of the folded value: where the media lie


class Shards(Sink):
    """WebDataset tars of up to `samples` samples and `max_mib` MiB, with indexes beside them.

    `splits` gives shares of the whole to other splits than `train`; the samples of one `group` (a column) stay together.

    write       how a shard comes by its media; its bytes are the same. `gather` reads each where it lies. `scatter` reads
                all files of media from start to end first, and copies what is kept into tars in the corpus's order, which
                are deleted once the corpus is there: it takes the corpus's size once more meanwhile. `auto` is `gather`
                where media lie on a local disk, and `scatter` in an object store, and for parquet files
    memory_mib  MiB of media that one task of `scatter` holds
    reference   columns of which `reference/` is to hold what later corpora can be compared with: hashes, embeddings, and
                digests of `raw_sha256`, `normal(url)`, `folded(text)` or any other (see `against`)
    """

    name: ClassVar[str] = "shards"
    not_in_key: ClassVar[set[str]] = {"write", "memory_mib"}

    samples: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    max_mib: Annotated[int, Field(ge=1, le=65_536)] = 1024
    splits: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    group: str = "sample_id"
    seed: int = 0
    write: Literal["auto", "gather", "scatter"] = "auto"
    memory_mib: Annotated[int, Field(ge=1, le=65_536)] = 512
    reference: tuple[str, ...] = ()

    @field_validator("reference")
    @classmethod
    def _files(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        check_names(columns)
        return columns

    @field_validator("splits")
    @classmethod
    def _names(cls, splits: dict[str, float]) -> dict[str, float]:
        for name in splits:
            if not name.isidentifier() or not name.islower() or name == TRAIN:
                raise ValueError(f"`{name}` cannot name a split: use lower-case letters, not `train`")
        if sum(splits.values()) >= 1:
            raise ValueError("the shares add up to 1 or more, so nothing is left for `train`")
        return splits

    def reads(self, fields: dict[str, pa.Field]) -> tuple[str, ...]:
        """Read everything but embeddings that no reference keeps; further captions go along, unless a stage made rows of them."""
        if PAYLOAD_COLUMN not in fields:
            raise ConfigError("the sink writes media, but no stage gives `payload`", hint="add `download`, or a folder source")
        if self.group not in fields:
            raise ConfigError(f"the sink groups by `{self.group}`, which no stage writes", hint=f"columns: {', '.join(fields)}")
        check_kept(self.reference, fields)
        kept = set(map(source_of, self.reference))
        told = [name for name, column in fields.items() if name in kept or not pa.types.is_fixed_size_list(column.type)]
        return tuple(name for name in told if name != "captions" or "caption_kind" not in fields)

    def passes(self) -> tuple[Pass, ...]:
        """Records by order, then borders, then media by order if they are sorted, then one task a shard."""
        sort = Sort(self.memory_mib << 20, self._sorts, self._group, sort_media)
        return (
            Scatter(self._records, self._bucket),
            Fold(self._sizes, self._borders),
            *(() if self.write == "gather" else (sort,)),
            Emit(lambda value: value.num_rows, self._needs, self._choose, self._write),
        )

    def _records(self, table: pa.Table) -> pa.Table:
        return sample_records(table, self)

    def _bucket(self, records: pa.Table, num_buckets: int) -> np.ndarray:
        order = records.column("order").to_numpy()
        buckets: np.ndarray = ((order >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int64)
        return buckets

    def _sizes(self, records: pa.Table) -> pa.Table:
        sets = pc.unique(payloads_of(records).field("set")).to_pylist()
        kinds = ",".join(sorted({kind_of(set_) for set_ in sets}))
        return records.select(["split", "order", "bytes"]).replace_schema_metadata({KINDS: kinds, KEPT: kept_in(records)})

    def _borders(self, parts: list[pa.Table]) -> pa.Table:
        units = borders(pa.concat_tables(parts), self.samples, self.max_mib << 20)
        kinds = {kind for part in parts for kind in _kinds(part)}
        kept = next(((part.schema.metadata or {}).get(KEPT, b"{}") for part in parts), b"{}")
        return units.replace_schema_metadata({KINDS: ",".join(sorted(kinds)), KEPT: kept})

    def _sorts(self, value: pa.Table, store: Store) -> bool:
        far = any(is_far(kind, store) for kind in _kinds(value))
        return self.write == "scatter" or (self.write == "auto" and far)

    def _group(self, value: pa.Table, num_partitions: int) -> int:
        total: int = max(sum(value.column("bytes").to_pylist()), 1)
        return max(1, min(num_partitions, (self.memory_mib << 20) * num_partitions // total))

    def _needs(self, value: pa.Table, unit: int, num_buckets: int) -> Sequence[int]:
        ends = pa.chunked_array([[value.column("first")[unit].as_py(), value.column("last")[unit].as_py()]], pa.uint64())
        low, high = self._bucket(pa.table({"order": ends}), num_buckets)
        return range(int(low), int(high) + 1)

    def _choose(self, value: pa.Table, unit: int, records: pa.Table) -> pa.Table:
        return choose(records, value.slice(unit, 1).to_pylist()[0])

    def _write(self, place: EmitPlace, value: pa.Table, records: pa.Table) -> dict[str, str]:
        unit = value.slice(place.unit, 1).to_pylist()[0]
        name = f"{(TRAIN, *self.splits)[unit['split']]}-{place.unit:05d}"
        place = replace(place, window=self.memory_mib << 20 if self._sorts(value, place.store) else WINDOW)
        digests = write_unit(place, name, unit, records.select(RECORD_NAMES))
        return digests | (write_kept(place, in_order(records)) if self.reference else {})

    def finish(self, store: Store, folder: str, value: pa.Table, facts: Finish) -> None:
        """Write what the reference is; join the units' indexes and write the manifest, last."""
        if self.reference:
            digests = {FACTS_FILE: finish_kept(store, folder, (value.schema.metadata or {})[KEPT], facts)}
            facts = replace(facts, digests={**facts.digests, **digests})
        write_manifest(store, folder, value.to_pylist(), [TRAIN, *self.splits], facts)


def _kinds(table: pa.Table) -> list[str]:
    kinds = (table.schema.metadata or {}).get(KINDS, b"").decode()
    return kinds.split(",") if kinds else []


def order_of(seed: int, sample_id: str) -> int:
    """Return the place of a sample in the corpus: 64 bits of a keyed hash."""
    return xxhash.xxh3_64_intdigest(sample_id.encode(), seed=seed & 0xFFFFFFFFFFFFFFFF)


def sample_records(table: pa.Table, sink: Shards) -> pa.Table:
    """Turn kept rows into one record a sample: its order, its split, its JSON, texts, media and size in a tar."""
    table = table.sort_by([("sample_id", "ascending"), ("position", "ascending"), (ROW, "ascending")])
    told = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]  # those are for the reference
    samples: dict[tuple[str, int], list[dict[str, object]]] = {}
    places: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(table.select(told).to_pylist()):
        # Published ids repeat: two pairs with one id are two samples, the blocks of a document are one.
        number = 0 if row["document"] else int(row[ROW])
        samples.setdefault((str(row["sample_id"]), number), []).append(row)
        places.setdefault((str(row["sample_id"]), number), []).append(place)
    carried = [n for n in told if n not in (*BASE_NAMES, PAYLOAD_COLUMN) and not n.startswith("_")]
    records = [_record(blocks, carried, sink) for blocks in samples.values()]
    found = pa.Table.from_pylist(records, schema=pa.schema(RECORD_FIELDS))
    return with_kept(found, table, sink.reference, list(places.values())) if sink.reference else found


def _record(blocks: list[dict[str, object]], carried: list[str], sink: Shards) -> dict[str, object]:
    head = blocks[0]
    facts: dict[str, object] = {name: head[name] for name in JSON_BASE}
    if head["document"]:
        facts["blocks"] = [_block_json(block, carried) for block in blocks]
    else:
        captions = {"captions": head["captions"]} if head.get("captions") else {}
        facts |= {"caption": head["text"], **captions, **{name: head[name] for name in carried}}
    text = json.dumps(_finite(facts), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    group = next((str(block[sink.group]) for block in blocks if block[sink.group] is not None), str(head["sample_id"]))
    record = {
        "order": order_of(sink.seed, str(head["sample_id"])),
        "sample_id": head["sample_id"],
        "split": _split_of(group, sink),
        "document": head["document"],
        "json": text,
        "blocks": [block_members(block) for block in blocks],
    }
    return {**record, "bytes": record_bytes(record)}


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a value with null for numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _block_json(block: dict[str, object], carried: list[str]) -> dict[str, object]:
    if block["media"] is None:
        return {"type": "text", "position": block["position"], "text": block["text"]}
    facts = {name: block[name] for name in carried}
    text = {} if block["text"] is None else {"text": block["text"]}
    return {"type": block["media"], "position": block["position"], "url": block["url"], **text, **facts}


def _split_of(group: str, sink: Shards) -> int:
    place = xxhash.xxh3_64_intdigest(group.encode(), seed=(sink.seed + 1) & 0xFFFFFFFFFFFFFFFF) / 2**64
    for index, share in enumerate(sink.splits.values(), start=1):
        if place < share:
            return index
        place -= share
    return 0
