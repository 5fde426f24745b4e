"""The rows held under one key: column files, and what was computed since."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.columns import DIGEST, ColumnFile, growing, places_in
from mmdata.errors import PartitionError
from mmdata.schema import OUTCOME, PROFILE, ROW

ROUND = b"retry"


class Piece:
    """Rows that lie together: a column file, of which a column is read when it is asked for, or a table just computed.

    rows   (N,) int64, sorted           order   where each of them lies; null where they lie sorted
    digest  of all of it in the order of the rows, if that was noted
    """

    def __init__(self, source: ColumnFile | pa.Table) -> None:
        noted = (source.schema if isinstance(source, pa.Table) else source).metadata or {}
        self._source = source.replace_schema_metadata(None) if isinstance(source, pa.Table) else source
        self._columns: dict[str, pa.ChunkedArray] = {}
        rows = source.rows() if isinstance(source, ColumnFile) else source.column(ROW).to_numpy()
        in_order = growing(rows)
        self.order = None if in_order else np.argsort(rows, kind="stable")
        self.rows: np.ndarray = rows if self.order is None else rows[self.order]
        self.digest = noted[DIGEST].decode() if in_order and DIGEST in noted else None

    def table(self, names: Sequence[str]) -> pa.Table:
        """Return columns of all rows, as they lie."""
        if isinstance(self._source, pa.Table):
            return self._source.select(list(names))
        if ROW in names and self.order is None:
            self._columns.setdefault(ROW, pa.chunked_array([self.rows], pa.int64()))
        missing = [name for name in names if name not in self._columns]
        if missing:
            table = self._source.read(missing)
            self._columns |= {name: table.column(name) for name in missing}
        return pa.table({name: self._columns[name] for name in names})

    def find(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the rows are here, and the place among the sorted rows of each that is."""
        if not len(rows) or not len(self.rows) or rows.max() < self.rows[0] or rows.min() > self.rows[-1]:
            return np.full(len(rows), False), np.zeros(0, np.int64)
        at = np.minimum(places_in(self.rows, rows), len(self.rows) - 1)
        here = self.rows[at] == rows
        return here, at[here]

    def run_of(self, rows: np.ndarray) -> slice | None:
        """Return where rows lie that are here and follow each other without a gap; null for others."""
        if not len(rows) or len(rows) > len(self.rows) or self.order is not None:
            return None
        start = int(np.searchsorted(self.rows, rows[0]))
        found = self.rows[start : start + len(rows)]
        return slice(start, start + len(rows)) if np.array_equal(found, rows) else None

    def take(self, at: np.ndarray, names: Sequence[str]) -> pa.Table:
        """Return columns for places among the sorted rows."""
        return self.table(names).take(pa.array(at if self.order is None else self.order[at]))


class Held:
    """The rows held under one key: column files, and what was computed since. Of a row held twice the later counts.

    profiles  what the numbers in column files depend on besides what was asked, each as JSON
    rounds  the outcomes that each round of `mmdata retry` asks about again; rows that ended so count as missing until a
            column file says that it answers the round
    """

    def __init__(self, files: list[ColumnFile], fields: list[pa.Field], rounds: Sequence[Sequence[str]] = ()) -> None:
        self.empty = pa.schema(fields).empty_table()
        self.num_files = len(files)
        self.pieces = [Piece(file) for file in files]
        self.profiles = {profile for file in files for profile in json.loads(file.metadata.get(PROFILE, b"[]"))}
        answered = max((int(file.metadata.get(ROUND, 0)) for file in files), default=0)
        self.round = len(rounds) if len(rounds) > answered else 0
        self._again = sorted({outcome for outcomes in rounds[answered:] for outcome in outcomes})

    def rows(self) -> np.ndarray:
        """Return the numbers of all rows held, (N,) int64, sorted, each once."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(piece.rows for piece in self.pieces)]))

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self.pieces.append(Piece(table))

    def noted(self, rows: np.ndarray) -> str | None:
        """Return the digest of all columns of rows where it was noted when they were written."""
        if len(self.pieces) != 1 or not np.array_equal(self.pieces[0].rows, rows):
            return None
        return self.pieces[0].digest

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows that are not held, or are to be asked about again."""
        left = rows
        for piece in self.pieces:
            left = left[:0] if piece.run_of(left) is not None else left[~piece.find(left)[0]]
        return np.union1d(left, self._failed(np.setdiff1d(rows, left))) if self.round else left

    def recovered(self, table: pa.Table) -> pa.Table:
        """Return new rows without those that were asked about again and failed again."""
        if not self.round:
            return table
        again = np.isin(table.column(ROW).to_numpy(), self._failed(table.column(ROW).to_numpy()))
        return table.filter(pa.array(~again | table.column(OUTCOME).is_null().to_numpy()))

    def _failed(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows that are held with an outcome that is asked about again."""
        rows = rows[np.isin(rows, self.rows())]
        outcomes = self.take(rows, [OUTCOME]).column(0)
        failed: np.ndarray = rows[pc.is_in(outcomes, pa.array(self._again, pa.string())).to_numpy()]
        return failed

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return columns for rows, in the order of the rows."""
        if len(self.pieces) == 1 and (run := self.pieces[0].run_of(rows)) is not None:
            return self.pieces[0].table(columns)[run]
        tables, places, left = [], [], np.arange(len(rows))
        for piece in reversed(self.pieces):
            here, at = piece.find(rows[left] if len(left) < len(rows) else rows)
            if len(at):
                tables.append(piece.take(at, columns))
                places.append(left[here])
                left = left[~here]
        if len(left):
            raise PartitionError(f"{len(rows)} rows of {list(columns)} wanted, {sum(map(len, places))} are held")
        if not tables:
            return self.empty.select(list(columns))
        order = np.concatenate(places)
        table = pa.concat_tables(tables)
        return table if growing(order) else table.take(pa.array(np.argsort(order, kind="stable")))
