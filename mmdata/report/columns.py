"""A few columns of many rows of a run: only those are read of its files, and what is not held is null."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from mmdata.engine.runstore import Partition, RunStore
from mmdata.engine.state import CHILD_BITS
from mmdata.engine.view import Held, PartitionView
from mmdata.plan import Plan


class NarrowView(PartitionView):
    """A partition of which no other columns are read than those named."""

    def __init__(self, run: RunStore, plan: Plan, keys: dict[int, str], partition: Partition, columns: Collection[str]) -> None:
        super().__init__(run, plan, keys, partition)
        self.narrow = columns

    def held(self, index: int) -> Held:
        """Return what is held of a step's columns, of those that are read."""
        if index not in self._held:
            tables = list(self.run.held(self.keys[index], self.partition.ident, self.narrow))
            self._held[index] = Held(tables, self._fields(index))
        return self._held[index]


def distinct(ordered: np.ndarray) -> np.ndarray:
    """Return the different ones of row numbers that ascend."""
    return ordered[np.flatnonzero(np.diff(ordered, prepend=-1))]


def sparse_column(view: PartitionView, home: int, name: str, rows: np.ndarray, space: int) -> pa.ChunkedArray:
    """Return a column for rows of a row space, ascending, null where it is not held; `home` says which step writes it."""
    ancestors = rows >> (CHILD_BITS * (space - view.home_space(home)))
    wanted = distinct(ancestors)
    missing = view.held(home).missing(wanted)
    held = np.setdiff1d(wanted, missing, assume_unique=True) if len(missing) else wanted
    values = view.held(home).take(held, [name]).column(0)
    if len(held) == len(rows):
        return values
    if not len(held):
        return pa.chunked_array([pa.nulls(len(rows), view.plan.fields[name].type)])
    places = np.searchsorted(held, ancestors)
    inside = (places < len(held)) & (held[np.minimum(places, len(held) - 1)] == ancestors)
    return values.take(pa.array(np.where(inside, places, 0), mask=~inside))
