"""The fate of every row of a partition.

A row's fate is its first verdict in plan order. A dropped row leaves its document; the whole sample goes when the judging
stage says so, or when no text or no media is left of it. Each fate is written once, so the counts cannot disagree.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.columns import parquet_bytes, read_parquet
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

    rows     (N,) int64, sorted                      stage    (N,) int16, -1 = nobody
    code     (N,) int16, place in `reasons`; -1 = alive   details  keeper and value of verdicts that say one, by place
    """

    space: int
    rows: np.ndarray
    code: np.ndarray
    stage: np.ndarray
    reasons: list[str] = field(default_factory=list)
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
        said = verdicts.filter(verdicts.column("reason").is_valid())
        places = np.searchsorted(self.rows, said.column(ROW).to_numpy())
        fresh: np.ndarray = np.flatnonzero(self.stage[places] == NOBODY)
        if len(fresh) > 1 and not np.all(np.diff(places[fresh]) > 0):  # of two verdicts on a row the first counts
            fresh = np.sort(fresh[np.unique(places[fresh], return_index=True)[1]])
        if not len(fresh):
            return fresh
        said = said.take(pa.array(fresh))
        places = np.asarray(places[fresh])
        self.code[places], self.stage[places] = self._codes(said.column("reason")), stage
        told = said.select([field.name for field in DETAILS])
        some = np.logical_or.reduce([column.is_valid().to_numpy() for column in told.columns])
        if some.any():
            self.details.append((places[some], told.filter(pa.array(some))))
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
        return parquet_bytes(self.table())

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Read what `to_bytes` wrote."""
        table = read_parquet(data)
        spaces = table.column("space").to_numpy()
        last = int(spaces.max()) if len(spaces) else 0
        first = int(np.searchsorted(spaces, last))
        current = table.slice(first).combine_chunks()
        state = cls.start(last, current.column(ROW).to_numpy(), [table.slice(0, first)] if first else [])
        state.stage = current.column("stage").to_numpy().copy()
        said = current.column("reason").is_valid().to_numpy()
        state.code[said] = state._codes(current.column("reason").filter(pa.array(said)))
        told = current.select([field.name for field in DETAILS])
        some = np.logical_or.reduce([column.is_valid().to_numpy() for column in told.columns])
        state.details = [(np.flatnonzero(some), told.filter(pa.array(some)))] if some.any() else []
        return state

    def counts(self) -> dict[tuple[int, str], int]:
        """Return how many rows ended at which step for which reason, in plan order."""
        table = self.table().select(["stage", "reason"])
        counted = table.group_by(["stage", "reason"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
        pairs = {(row["stage"], row["reason"]): row["count_all"] for row in counted if row["reason"] is not None}
        return dict(sorted(pairs.items()))

    def spaces(self) -> dict[int, int]:
        """Return how many rows there are in each row space."""
        counted = pc.value_counts(self.table().column("space"))
        return {pair["values"]: pair["counts"] for pair in counted.to_pylist()}

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def _codes(self, reasons: pa.ChunkedArray) -> np.ndarray:
        """Return the codes of reasons, none of them null."""
        coded = reasons.combine_chunks().dictionary_encode()
        own = np.asarray([self._code(reason) for reason in coded.dictionary.to_pylist()], dtype=np.int16)
        codes: np.ndarray = own[coded.indices.to_numpy()]
        return codes

    def _current(self) -> pa.Table:
        num = len(self.rows)
        reason = pa.array(self.reasons, pa.string()).take(pa.array(self.code, mask=self.code < 0))
        fates = [np.full(num, self.space, np.int8), self.rows, reason, self.stage]
        return pa.table([*fates, *self._told(num)], pa.schema(FIELDS))

    def _told(self, num: int) -> list[pa.ChunkedArray]:
        """Return keepers and values, one a row."""
        if not self.details:
            return [pa.nulls(num, field.type) for field in DETAILS]
        index = np.full(num, -1)
        places = np.concatenate([places for places, _ in self.details])
        index[places] = np.arange(len(places))
        table = pa.concat_tables([table for _, table in self.details])
        return list(table.take(pa.array(index, mask=index < 0)).columns)
