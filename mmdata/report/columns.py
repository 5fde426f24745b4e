"""A column for many rows of a run, whether they hold it or not."""

import numpy as np
import pyarrow as pa

from mmdata.engine.state import CHILD_BITS
from mmdata.engine.view import PartitionView


def distinct(ordered: np.ndarray) -> np.ndarray:
    """Return the different ones of row numbers that ascend."""
    return ordered[np.flatnonzero(np.diff(ordered, prepend=-1))]


def sparse_column(view: PartitionView, home: int, name: str, rows: np.ndarray, space: int) -> pa.ChunkedArray:
    """Return a column for rows of a row space, ascending, null where it is not held; `home` says which step writes it."""
    ancestors = rows >> (CHILD_BITS * (space - view.home_space(home)))
    wanted = distinct(ancestors)
    missing = view.held(home).missing(wanted)
    held = np.setdiff1d(wanted, missing, assume_unique=True) if len(missing) else wanted
    values = view.columns({name: home}, held, view.home_space(home)).column(name)
    if len(held) == len(rows):
        return values
    if not len(held):
        return pa.chunked_array([pa.nulls(len(rows), view.plan.fields[name].type)])
    places = np.searchsorted(held, ancestors)
    inside = (places < len(held)) & (held[np.minimum(places, len(held) - 1)] == ancestors)
    return values.take(pa.array(np.where(inside, places, 0), mask=~inside))
