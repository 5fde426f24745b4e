"""The fate of every row of a run, with the columns that people ask about."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.runstore import RunStore, load_generation
from mmdata.engine.state import State
from mmdata.engine.view import PartitionView
from mmdata.report.columns import sparse_column
from mmdata.schema import ROW


def fates(run: RunStore, columns: Sequence[str], number: int | None = None) -> pa.Table:
    """Return one row for each row of the last row space of a finished generation, by default the newest.

    Columns are `reason` (null = kept), `stage` (its name) and those asked for; a column that a dropped row never got is
    null there.
    """
    number = run.finished()[-1] if number is None else number
    generation = load_generation(run.url, number)
    heads = run.manifest(number)["heads"]
    keys, num_steps = run.keys(generation.number), len(generation.plan.steps)
    names = {-2: "source"} | {step.index: step.stage.name for step in generation.plan.steps}
    fields = {name: generation.plan.fields[name].type for name in columns}
    tables = [pa.schema([("reason", pa.string()), ("stage", pa.string()), *fields.items()]).empty_table()]
    for partition, head in zip(generation.partitions, heads, strict=True):
        view = PartitionView(run, generation.plan, keys, partition)
        record = None if head is None else run.record(head)
        if record is None:  # the partition was given up
            continue
        state = State.from_bytes(run.state_of(record))
        table = state.table()
        table = table.filter(pc.equal(table.column("space"), state.space))
        stages = pa.array([names.get(stage) for stage in table.column("stage").to_pylist()], pa.string())
        found = {"reason": table.column("reason"), "stage": stages}
        rows = table.column(ROW).to_numpy()
        homes = view.homes_after(num_steps)
        found |= {name: sparse_column(view, homes[name], name, rows, state.space) for name in columns}
        tables.append(pa.table(found))
    return pa.concat_tables(tables)
