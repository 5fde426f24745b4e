"""The fate of every row of a partition.

A row's fate is its first verdict in plan order. A dropped row leaves its document; the whole sample goes when the judging
stage says so, or when no text or no media is left of it. Each fate is written once, so the counts cannot disagree.
"""

import io
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.schema import INCOMPLETE, ROW, SPLIT

FIELDS = (
    pa.field("space", pa.int8()), pa.field(ROW, pa.int64()), pa.field("reason", pa.string()), pa.field("stage", pa.int16()),
    pa.field("keeper_id", pa.string()), pa.field("keeper_position", pa.int32()), pa.field("value", pa.float32()),
)  # fmt: skip
CHILD_BITS = 20  # a child's row number is its parent's, shifted by this, plus its index
NOBODY = -1


def read_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a small parquet file in this thread: Arrow's own threads must not hold Python's bytes when a process ends."""
    return pq.read_table(pa.BufferReader(data), columns=columns, use_threads=False, pre_buffer=False)


@dataclass
class Documents:
    """Which rows of a row space are blocks of documents: sample codes (-1 for a pair), and which blocks are media."""

    sample: np.ndarray
    media: np.ndarray


@dataclass
class State:
    """Fates of the rows of the current row space, and of those in the spaces before it.

    rows     (N,) int64, sorted        reason   (N,) object, null while the row is alive
    stage    (N,) int16, -1 = nobody   details  keeper and value of a verdict, by place
    """

    space: int
    rows: np.ndarray
    reason: np.ndarray
    stage: np.ndarray
    details: dict[int, tuple[str | None, int | None, float | None]] = field(default_factory=dict)
    closed: list[pa.Table] = field(default_factory=list)

    @classmethod
    def start(cls, space: int, rows: np.ndarray, closed: list[pa.Table]) -> "State":
        """Begin a row space with all its rows alive."""
        num = len(rows)
        return cls(space, rows, np.full(num, None, dtype=object), np.full(num, NOBODY, np.int16), {}, closed)

    @property
    def alive(self) -> np.ndarray:
        """Row numbers that no stage has judged out."""
        rows: np.ndarray = self.rows[self.stage == NOBODY]
        return rows

    def drop(self, verdicts: pa.Table, stage: int) -> np.ndarray:
        """Give rows their fate; rows that have one keep it. Return the places of the rows dropped."""
        rows = verdicts.column(ROW).to_numpy()
        places = np.searchsorted(self.rows, rows)
        columns = [verdicts.column(name).to_pylist() for name in ("reason", "keeper_id", "keeper_position", "value")]
        dropped = []
        for place, reason, *detail in zip(places.tolist(), *columns, strict=True):
            if reason is not None and self.stage[place] == NOBODY:
                self.reason[place], self.stage[place] = reason, stage
                if any(item is not None for item in detail):
                    self.details[place] = (detail[0], detail[1], detail[2])
                dropped.append(place)
        return np.asarray(dropped, dtype=np.int64)

    def drop_incomplete(self, dropped: np.ndarray, documents: Documents | None, stage: int, whole: bool) -> None:
        """Let the documents that lost a row go where the rule says so."""
        if documents is None or not len(dropped):
            return
        for sample in np.unique(documents.sample[dropped]):
            if sample < 0:
                continue
            left = np.flatnonzero((documents.sample == sample) & (self.stage == NOBODY))
            media = documents.media[left]
            if whole or media.all() or not media.any():
                self.reason[left], self.stage[left] = INCOMPLETE, stage

    def split(self, rows: np.ndarray, stage: int) -> "State":
        """Close this row space: what is alive ends as `split`. Return the state of the children's space."""
        alive = self.stage == NOBODY
        self.reason[alive], self.stage[alive] = SPLIT, stage
        return State.start(self.space + 1, rows, [*self.closed, self._current()])

    def table(self) -> pa.Table:
        """Return all fates, earlier spaces first."""
        return pa.concat_tables([*self.closed, self._current()])

    def to_bytes(self) -> bytes:
        """Return the fates as a parquet file."""
        buffer = io.BytesIO()
        pq.write_table(self.table(), buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Read what `to_bytes` wrote."""
        table = read_parquet(data)
        spaces = table.column("space").to_numpy()
        last = int(spaces.max()) if len(spaces) else 0
        first = int(np.searchsorted(spaces, last))
        current = table.slice(first)
        details = zip(*(current.column(name).to_pylist() for name in ("keeper_id", "keeper_position", "value")), strict=True)
        return cls(
            last,
            current.column(ROW).to_numpy(),
            np.asarray([*current.column("reason").to_pylist(), None], dtype=object)[:-1],
            current.column("stage").to_numpy().copy(),
            {place: detail for place, detail in enumerate(details) if any(item is not None for item in detail)},
            [table.slice(0, first)] if first else [],
        )

    def counts(self) -> dict[tuple[int, str], int]:
        """Return how many rows ended at which step for which reason, in plan order."""
        table = self.table()
        pairs = zip(table.column("stage").to_pylist(), table.column("reason").to_pylist(), strict=True)
        return dict(sorted(Counter((stage, reason) for stage, reason in pairs if reason is not None).items()))

    def _current(self) -> pa.Table:
        num = len(self.rows)
        keepers = [self.details.get(place, (None, None, None)) for place in range(num)] if self.details else None
        columns = [[None] * num] * 3 if keepers is None else [list(column) for column in zip(*keepers, strict=True)]
        return pa.table(
            [np.full(num, self.space, np.int8), self.rows, pa.array(self.reason, pa.string()), self.stage, *columns],
            pa.schema(FIELDS),
        )
