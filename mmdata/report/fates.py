"""The fate of every row of a run, with the columns that people ask about."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.runstore import RunStore, load_generation
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.view import PartitionView
from mmdata.schema import ROW


def fates(run: RunStore, columns: Sequence[str], number: int | None = None) -> pa.Table:
    """Return one row for each row of the last row space of a finished generation, by default the newest.

    Columns are `reason` (null = kept), `stage` (its name) and those asked for; a column that a dropped row never got is
    null there.
    """
    number = run.finished()[-1] if number is None else number
    generation = load_generation(run.url, number)
    heads = run.manifest(number)["heads"]
    keys = run.keys(generation.number)
    names = {-2: "source"} | {step.index: step.stage.name for step in generation.plan.steps}
    tables = []
    for partition, head in zip(generation.partitions, heads, strict=True):
        view = PartitionView(run, generation.plan, keys, partition)
        record = None if head is None else run.record(head)
        if record is None:  # the partition was given up
            continue
        state = State.from_bytes(run.state_of(record))
        table = state.table().filter(pc.equal(state.table().column("space"), state.space))
        stages = pa.array([names.get(stage) for stage in table.column("stage").to_pylist()], pa.string())
        found = {"reason": table.column("reason"), "stage": stages}
        rows = table.column(ROW).to_numpy()
        found |= {name: _sparse(view, name, rows, state.space) for name in columns}
        tables.append(pa.table(found))
    return pa.concat_tables(tables)


def _sparse(view: PartitionView, name: str, rows: np.ndarray, space: int) -> pa.ChunkedArray:
    """Return a column for rows, null where it is not held."""
    home = view.homes_after(len(view.plan.steps))[name]
    field = view.plan.fields[name]
    ancestors = rows >> (CHILD_BITS * (space - view.home_space(home)))
    held = np.setdiff1d(np.unique(ancestors), view.held(home).missing(np.unique(ancestors)))
    if not len(held):
        return pa.nulls(len(rows), field.type)
    values = view.held(home).take(held, [name]).column(0).combine_chunks()
    places = np.searchsorted(held, ancestors)
    inside = (places < len(held)) & (held[np.minimum(places, len(held) - 1)] == ancestors)
    return values.take(pa.array(np.where(inside, places, 0), mask=~inside))
