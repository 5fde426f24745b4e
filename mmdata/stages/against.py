"""Judge rows by whether an earlier corpus holds them, or nearly."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from mmdata.dedupe.cross import CHUNK, Asking
from mmdata.dedupe.kept import items_of
from mmdata.dedupe.met import Nearest
from mmdata.schema import PARTITION, ROW, VERDICT_FIELDS
from mmdata.shards.reference import Reference
from mmdata.stages.comparing import Comparing, names_of
from mmdata.stages.comparisons import REASONS, Comparison, Once
from mmdata.stages.passes import Pass, Scatter, Share
from mmdata.stages.verbs import GlobalFilter, Resources

_BASE = (PARTITION, ROW)
# Of values of the new rows, each once: which, in which comparison; and what is nearest to it in a share of the past.
_FOUND = pa.schema([
    pa.field("at", pa.int64()), pa.field("way", pa.int32()), pa.field("of", pa.int32()), pa.field("place", pa.int64()),
    pa.field("distance", pa.float32()),
])  # fmt: skip
_PART_BITS = 32  # a place in a reference is the number of its part, then that of its row
_BYTES = 256 << 20  # of vectors of the past that are looked at together


class Against(Comparing, GlobalFilter):
    """Drop rows that one of some earlier corpora holds: by equal values, hashes, embeddings or words.

    references  folders of corpora with `shards: {reference: [...]}`, or references by themselves
    by          `raw_sha256`, `pixels`, `folded(text)`, `normal(url)` ...: one that is equal is enough. Empty texts equal nothing
    likeness    hashes that differ in few bits
    semantic    embeddings of at least a cosine
    texts       texts of whose runs of words a share is in the past: `runs8(text)` of the references

    A verdict names the sample of the past, and how far it is: bits, or one minus the cosine or the share. The new rows are held
    (about 20 bytes a hash and choice of blocks, at most 1 GiB at a time), and the past streams by, memory-mapped: each task
    looks at its share of the parts of all references.
    """

    name: ClassVar[str] = "against"

    resources: Resources = Resources(memory_mib=8192, call_s=3600)

    def reasons(self) -> tuple[str, ...]:
        """Return one for each method."""
        return tuple(_reason(method) for method in range(len(REASONS)))

    def passes(self) -> tuple[Pass, ...]:
        """Bring together what is compared; share the past; choose."""
        return (Scatter(self._prepare), Share(self._find), Share(self._choose, most=1))

    def _prepare(self, table: pa.Table) -> pa.Table:
        kept = {f"_by{place}": way.kept(table) for place, way in enumerate(self.comparisons())}
        return pa.table({name: table.column(name) for name in _BASE} | kept)

    def _find(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        tables = [_FOUND.empty_table()]
        for place, way in enumerate(self.comparisons()):
            values, _ = self._values(rows, place)
            nearest = _nearest(way, values, self.opened(), None if self.resources.gpus else "cpu", (part, parts))
            at = nearest.met
            columns = [at, np.full(len(at), place, np.int32), nearest.of_N[at], nearest.place_N[at], nearest.distance_N[at]]
            tables.append(pa.table(columns, schema=_FOUND))
        return pa.concat_tables(tables).combine_chunks()

    def _values(self, rows: pa.Table, place: int) -> tuple[Once, np.ndarray]:
        """Return the values of a comparison, and the row of each item."""
        way, reference = self.comparisons()[place], self.opened()[0]
        items = items_of(rows.column(f"_by{place}"), reference.column(way.column(reference)))
        return way.once(items.values), items.owner_M

    def _choose(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert found is not None
        place_N, way_N = np.full(rows.num_rows, -1, np.int64), np.full(rows.num_rows, -1)
        of_N, distance_N = np.full(rows.num_rows, -1), np.zeros(rows.num_rows, np.float32)
        for place, way in enumerate(self.comparisons()):
            values, owner_M = self._values(rows, place)
            nearest = Nearest(len(values.values))
            told = found.filter(pa.array(found.column("way").to_numpy() == place))
            nearest.add(*(told.column(name).to_numpy() for name in ("at", "of", "place", "distance")))
            mine = way.by_rows(nearest, values, owner_M, rows.num_rows)
            fresh = mine.met[way_N[mine.met] < 0]
            way_N[fresh], of_N[fresh], place_N[fresh] = place, mine.of_N[fresh], mine.place_N[fresh]
            distance_N[fresh] = mine.distance_N[fresh]
        out = np.flatnonzero(way_N >= 0)
        out = out[np.lexsort([rows.column(name).to_numpy()[out] for name in (ROW, PARTITION)])]
        names = names_of(self.opened(), of_N[out], place_N[out] >> _PART_BITS, place_N[out] & ((1 << _PART_BITS) - 1))
        reasons = [_reason(self.comparisons()[number].method) for number in way_N[out]]
        columns = [
            rows.column(PARTITION).take(pa.array(out)), rows.column(ROW).take(pa.array(out)), pa.array(reasons, pa.string()),
            pa.array([name for name, _ in names], pa.string()), pa.array([position for _, position in names], pa.int32()),
            pa.array(distance_N[out]),
        ]  # fmt: skip
        return pa.table(columns, schema=pa.schema([pa.field(PARTITION, pa.int64()), *VERDICT_FIELDS]))


def _reason(method: int) -> str:
    return "in_past" if method == 0 else REASONS[method].replace("near", "near_past", 1)


class _Chunk(NamedTuple):
    """Items of neighbouring parts of a reference: its number, their values, and the place of each one's row."""

    of: int
    values: Any
    place_M: np.ndarray


def _nearest(
    way: Comparison, values: Once, references: tuple[Reference, ...], device: str | None, share: tuple[int, int]
) -> Nearest:
    """Return for each value what is nearest in a share of the past."""
    nearest = Nearest(len(values.values))
    total = sum(reference.facts.rows for reference in references) // share[1] + 1
    for index in way.indexes(values.values, Asking(total), device) if len(values.values) else ():
        for chunk in _chunks(way, references, share):
            others = way.once(chunk.values)
            met = index.near(others.values)
            first = np.full(len(others.values), np.iinfo(np.int64).max)
            np.minimum.at(first, others.of_M, chunk.place_M)
            nearest.add(met.held_M, chunk.of, first[met.asked_M], met.distance_M)
    return nearest


def _chunks(way: Comparison, references: tuple[Reference, ...], share: tuple[int, int]) -> Iterator[_Chunk]:
    """Yield the parts of a share: small ones together, large ones in pieces, some millions of items or 256 MiB at a time."""
    for number, reference in enumerate(references):
        values: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for part in range(share[0], len(reference.facts.parts), share[1]):
            items = reference.items(part, way.column(reference))
            size = max(1, min(CHUNK, _BYTES // max(1, items.values[:1].nbytes)))
            for start in range(0, len(items.owner_M), size):
                values.append(items.values[start : start + size])
                places.append(part << _PART_BITS | items.owner_M[start : start + size])
                if sum(map(len, places)) >= size:
                    yield _Chunk(number, np.concatenate(values), np.concatenate(places))
                    values, places = [], []
        if values:
            yield _Chunk(number, np.concatenate(values), np.concatenate(places))
