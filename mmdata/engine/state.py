"""The fate of every row of a partition.

A row's fate is its first verdict in plan order. A dropped row leaves its document; the whole sample goes when the judging
stage says so, or when no text or no media is left of it. Each fate is written once, so the counts cannot disagree.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.columns import parquet_bytes, places_in, read_parquet
from mmdata.schema import INCOMPLETE, ROW, SPLIT

DETAILS = (pa.field("keeper_id", pa.string()), pa.field("keeper_position", pa.int32()), pa.field("value", pa.float32()))
FIELDS = (
    pa.field("space", pa.int8()), pa.field(ROW, pa.int64()), pa.field("reason", pa.string()), pa.field("stage", pa.int16()),
    *DETAILS,
)  # fmt: skip
CHILD_BITS = 20  # a child's row number is its parent's, shifted by this, plus its index
NOBODY = -1


@dataclass
class Documents:
    """Which rows of a row space are blocks of documents: sample codes (-1 for a pair), and which blocks are media."""

    sample: np.ndarray
    media: np.ndarray


@dataclass
class State:
    """Fates of the rows of the current row space, and of those in the spaces before it.

    rows     (N,) int64, sorted                 stage  (N,) int16, -1 = nobody
    code     (N,) int16, place in `reasons`; -1 = alive
    told     keeper and value of every row's verdict as they were read; null where there were none
    details  those that came since, by place
    """

    space: int
    rows: np.ndarray
    code: np.ndarray
    stage: np.ndarray
    reasons: list[str] = field(default_factory=list)
    told: pa.Table | None = None
    details: list[tuple[np.ndarray, pa.Table]] = field(default_factory=list)
    closed: list[pa.Table] = field(default_factory=list)

    @classmethod
    def start(cls, space: int, rows: np.ndarray, closed: list[pa.Table]) -> "State":
        """Begin a row space with all its rows alive."""
        num = len(rows)
        return cls(space, rows, np.full(num, -1, np.int16), np.full(num, NOBODY, np.int16), closed=closed)

    @property
    def alive(self) -> np.ndarray:
        """Row numbers that no stage has judged out."""
        rows: np.ndarray = self.rows[self.stage == NOBODY]
        return rows

    def drop(self, verdicts: pa.Table, stage: int) -> np.ndarray:
        """Give rows their fate; rows that have one keep it. Return the places of the rows dropped."""
        reason = verdicts.column("reason")
        said = verdicts.filter(reason.is_valid()) if reason.null_count else verdicts
        places = places_in(self.rows, said.column(ROW).to_numpy())
        fresh: np.ndarray = np.flatnonzero(self.stage[places] == NOBODY)
        if len(fresh) > 1 and not np.all(np.diff(places[fresh]) > 0):  # of two verdicts on a row the first counts
            fresh = fresh[np.unique(places[fresh], return_index=True)[1]]
        if not len(fresh):
            return fresh
        said = said if len(fresh) == said.num_rows else said.take(pa.array(fresh))
        places = np.asarray(places[fresh])
        self.code[places], self.stage[places] = self._codes(said.column("reason")), stage
        self.details.append((places, said.select([field.name for field in DETAILS])))
        return places

    def drop_incomplete(self, dropped: np.ndarray, documents: Documents | None, stage: int, whole: bool) -> None:
        """Let the documents that lost a row go where the rule says so."""
        if documents is None or not len(dropped):
            return
        touched = np.unique(documents.sample[dropped])
        left = np.flatnonzero(np.isin(documents.sample, touched[touched >= 0]) & (self.stage == NOBODY))
        samples = documents.sample[left]
        rows = np.bincount(samples, minlength=1)
        media = np.bincount(samples[documents.media[left]], minlength=len(rows))
        gone = left[((media == 0) | (media == rows))[samples] | whole]
        self.code[gone], self.stage[gone] = self._code(INCOMPLETE), stage

    def split(self, rows: np.ndarray, stage: int) -> "State":
        """Close this row space: what is alive ends as `split`. Return the state of the children's space."""
        alive = self.stage == NOBODY
        self.code[alive], self.stage[alive] = self._code(SPLIT), stage
        return State.start(self.space + 1, rows, [*self.closed, self._current()])

    def table(self) -> pa.Table:
        """Return all fates, earlier spaces first."""
        return pa.concat_tables([*self.closed, self._current()])

    def to_bytes(self) -> bytes:
        """Return the fates as a parquet file."""
        table = self._current(coded=True)
        return parquet_bytes(table if not self.closed else pa.concat_tables([*self.closed, table.cast(pa.schema(FIELDS))]))

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Read what `to_bytes` wrote."""
        table = read_parquet(data, coded=["reason"])  # in whichever way it was written
        state, first = cls._standing(table)
        state.closed = [table.slice(0, first).cast(pa.schema(FIELDS))] if first else []
        current = table.slice(first).combine_chunks()
        said = state.stage != NOBODY
        state.code[said] = state._codes(current.column("reason").filter(pa.array(said)))
        state.told = current.select([field.name for field in DETAILS])
        return state

    @classmethod
    def alive_in(cls, data: bytes) -> "State":
        """Read of what `to_bytes` wrote who judged which row, and no more: enough to know who is alive."""
        return cls._standing(read_parquet(data, ["space", ROW, "stage"]))[0]

    @classmethod
    def _standing(cls, table: pa.Table) -> tuple["State", int]:
        """Return the state of the last row space, without what was said of its rows, and where it begins."""
        spaces = table.column("space").to_numpy()
        last = int(spaces[-1]) if len(spaces) else 0
        first = int(np.searchsorted(spaces, last))
        state = cls.start(last, table.column(ROW).to_numpy()[first:], [])
        state.stage = table.column("stage").to_numpy()[first:].copy()
        return state, first

    def counts(self) -> dict[tuple[int, str], int]:
        """Return how many rows ended at which step for which reason, in plan order."""
        found: Counter[tuple[int, str]] = Counter()
        for table in self.closed:
            counted = table.group_by(["stage", "reason"], use_threads=False).aggregate([([], "count_all")])
            found.update(
                {(row["stage"], row["reason"]): row["count_all"] for row in counted.to_pylist() if row["reason"] is not None}
            )
        said = self.stage != NOBODY
        stages, codes = self.stage[said].astype(np.int64), self.code[said].astype(np.int64)
        for pair, num in zip(*np.unique(stages << 16 | codes, return_counts=True), strict=True):
            found[int(pair) >> 16, self.reasons[int(pair) & 0xFFFF]] += int(num)
        return dict(sorted(found.items()))

    def spaces(self) -> dict[int, int]:
        """Return how many rows there are in each row space."""
        closed = Counter(space for table in self.closed for space in table.column("space").to_pylist())
        return {**closed, self.space: len(self.rows)}

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def _codes(self, reasons: pa.ChunkedArray) -> np.ndarray:
        """Return the codes of reasons, none of them null."""
        array = reasons.combine_chunks()
        coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        # In the order of their first rows: what a dictionary holds, and where, depends on how the rows came together.
        places = coded.indices.to_numpy()
        used, first = np.unique(places, return_index=True)
        own = np.zeros(len(coded.dictionary), np.int16)
        for place in used[np.argsort(first)].tolist():
            own[place] = self._code(coded.dictionary[place].as_py())
        codes: np.ndarray = own[places]
        return codes

    def _current(self, *, coded: bool = False) -> pa.Table:
        """Return the fates of the current space; `coded` reasons are those that the file is written from."""
        num = len(self.rows)
        codes, names = pa.array(self.code, mask=self.code < 0), pa.array(self.reasons, pa.string())
        reason = pa.DictionaryArray.from_arrays(codes, names) if coded else names.take(codes)
        fates = [pa.array(np.full(num, self.space, np.int8)), pa.array(self.rows), reason, pa.array(self.stage)]
        return pa.table([*fates, *(self._told(field) for field in DETAILS)], [field.name for field in FIELDS])

    def _told(self, field: pa.Field) -> pa.Array:
        """Return one of the details of every row's verdict."""
        told = pa.nulls(len(self.rows), field.type) if self.told is None else self.told.column(field.name).combine_chunks()
        for places, table in self.details:
            column = table.column(field.name).combine_chunks()
            if column.null_count < len(column):
                mask = np.zeros(len(self.rows), bool)
                mask[places] = True
                told = pc.replace_with_mask(told, pa.array(mask), column)
        return told
