"""Judge rows by whether an eval set holds them, or nearly."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mmdata.dedupe.cross import Asking
from mmdata.dedupe.kept import items_of
from mmdata.dedupe.met import Index, Nearest, first_of
from mmdata.shards.reference import ColumnFacts, Reference
from mmdata.stages.comparing import Comparing, names_of
from mmdata.stages.comparisons import REASONS, Comparison
from mmdata.stages.verbs import Batch, Filter, FilterFn, Resources, WorkerContext

_ASKED = Asking(1_000_000, 64)  # rows that a worker is expected to ask about, and at a time where images are decoded


class Decontaminate(Comparing, Filter):
    """Drop rows that an eval set holds, or tag them: by equal values, hashes, embeddings or words.

    references  folders that `mmdata reference`, the sink `reference` or `shards: {reference: [...]}` wrote
    by          `raw_sha256`, `pixels`, `folded(text)`, `normal(url)` ...: one that is equal is enough. Empty texts equal nothing
    likeness    hashes that differ in few bits
    semantic    embeddings of at least a cosine
    texts       texts of whose runs of words a share is in the eval set: `runs8(text)` of its reference
    named       what the columns of `tag: true` are called: `NAME` (true where the row may stay), and of the others `NAME_reason`,
                `NAME_keeper_id` and `NAME_value`

    A verdict names the sample of the eval set, and how far it is: bits, or one minus the cosine or the share. The references
    are held in memory: about 20 bytes a hash and choice of blocks (at most 15 at radius 4), 2 bytes a number of an embedding.
    """

    name: ClassVar[str] = "decontaminate"
    names_keeper: ClassVar[bool] = True

    resources: Resources = Resources(memory_mib=8192)
    named: str = "decontaminate"

    def flag(self) -> str:
        """Return the column of `tag: true`."""
        return self.named

    def reasons(self) -> tuple[str, ...]:
        """Return one for each method."""
        return tuple(_reason(method) for method in range(len(REASONS)))

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Read the references and return the judging function."""
        references = self.opened()
        device = "cpu" if ctx.device == "cpu" else None
        held = [_hold(way, references, device) for way in self.comparisons()]
        return lambda batch: _judge(held, references, batch)


def _reason(method: int) -> str:
    return REASONS[method].replace("in", "in_eval", 1) if method == 0 else REASONS[method].replace("near", "near_eval", 1)


@dataclass(frozen=True)
class _Held:
    """One column of all references, ready to be asked.

    first_U  (U,) int64, the first item of each value      of_M, part_M, row_M  where each item is from
    """

    way: Comparison
    facts: ColumnFacts
    indexes: list[Index]
    first_U: np.ndarray
    of_M: np.ndarray
    part_M: np.ndarray
    row_M: np.ndarray

    def nearest(self, table: pa.Table) -> Nearest:
        """Return for each row the item that is nearest."""
        items = items_of(self.way.kept(table), self.facts)
        once = self.way.once(items.values)
        nearest = Nearest(len(once.values))
        for index in self.indexes:
            met = index.near(once.values)
            nearest.add(met.asked_M, 0, self.first_U[met.held_M], met.distance_M)
        return self.way.by_rows(nearest, once, items.owner_M, table.num_rows)


def _hold(way: Comparison, references: tuple[Reference, ...], device: str | None) -> _Held:
    values: list[Any] = []
    where: list[np.ndarray] = []
    for number, reference in enumerate(references):
        for part in range(len(reference.facts.parts)):
            items = reference.items(part, way.column(reference))
            values.append(np.asarray(items.values))
            where.append(np.stack([np.full(len(items.owner_M), number), np.full(len(items.owner_M), part), items.owner_M]))
    facts = references[0].column(way.column(references[0]))
    none = np.zeros((0, facts.width), np.float16 if facts.kind == "embedding" else np.uint64)
    once = way.once(np.concatenate([none, *values]))
    of_M, part_M, row_M = np.concatenate([np.zeros((3, 0), np.int64), *where], axis=1)
    indexes = list(way.indexes(once.values, _ASKED, device))
    return _Held(way, facts, indexes, first_of(once.of_M, len(once.values)), of_M, part_M, row_M)


def _judge(held: list[_Held], references: tuple[Reference, ...], batch: Batch) -> pa.Table:
    num = batch.table.num_rows
    method, value = np.full(num, -1), np.zeros(num, np.float32)
    where = np.full((3, num), -1)
    for one in held:
        nearest = one.nearest(batch.table)
        fresh = nearest.met[method[nearest.met] < 0]
        item = nearest.place_N[fresh]
        method[fresh], value[fresh] = one.way.method, nearest.distance_N[fresh]
        where[:, fresh] = one.of_M[item], one.part_M[item], one.row_M[item]
    hit = np.flatnonzero(method >= 0)
    names = names_of(references, *where[:, hit])
    spread = np.full(num, -1)
    spread[hit] = np.arange(len(hit))
    index = pa.array(spread, mask=spread < 0)
    columns = {
        "reason": pa.array([_reason(int(code)) for code in method[hit]], pa.string()),
        "keeper_id": pa.array([name for name, _ in names], pa.string()),
        "keeper_position": pa.array([position for _, position in names], pa.int32()),
        "value": pa.array(value[hit]),
    }
    return pa.table({name: column.take(index) for name, column in columns.items()})
