"""From columns to fates: what a step that is done says of each row. Workers and forecasts judge by the same lines."""

import numpy as np
import pyarrow as pa

from mmdata.engine.keys import SOURCE
from mmdata.engine.state import State
from mmdata.engine.view import PartitionView
from mmdata.plan import Step
from mmdata.schema import OUTCOME, ROW, VERDICT_FIELDS
from mmdata.stages.verbs import Filter


def drops(step: Step) -> bool:
    """Say whether a step judges rows out."""
    return isinstance(step.stage, Filter) and not step.stage.tag


def settle(view: PartitionView, state: State, step: Step | None, verdicts: pa.Table, whole: bool) -> None:
    """Give rows the fate that a step's verdicts say (null: the source's), and documents what follows from it."""
    stage = _stage_number(SOURCE if step is None else step.index)
    if verdicts.column("reason").null_count == verdicts.num_rows:
        return
    dropped = state.drop(verdicts, stage)
    if len(dropped):
        state.drop_incomplete(dropped, view.documents(state), stage, whole)


def settle_held(view: PartitionView, state: State, step: Step, rows: np.ndarray) -> None:
    """Settle the fates of rows whose columns a step has given: a Filter's verdicts, then outcomes."""
    held = view.held(step.index)
    if drops(step):
        assert isinstance(step.stage, Filter)
        keeper = ["keeper_id", "keeper_position"] if step.stage.names_keeper else []
        table = said(held.take(rows, [ROW, "reason", *keeper, "value"]), "reason")
        verdicts = table if keeper else verdict_table(table.column(ROW), table.column("reason"), table.column("value"))
        settle(view, state, step, verdicts, whole=step.stage.scope == "sample")
    settle(view, state, step, outcome_verdicts(held.take(rows, [ROW, OUTCOME])), whole=False)


def said(table: pa.Table, name: str) -> pa.Table:
    """Return the rows of which a column says something."""
    column = table.column(name)
    return table.slice(0, 0) if column.null_count == table.num_rows else table.filter(column.is_valid())


def verdict_table(rows: pa.ChunkedArray, reason: pa.ChunkedArray, value: pa.ChunkedArray | None = None) -> pa.Table:
    """Return verdicts that name no keeper."""
    num = len(rows)
    columns = [rows, reason, pa.nulls(num, pa.string()), pa.nulls(num, pa.int32())]
    values = pa.nulls(num, pa.float32()) if value is None else value
    return pa.table([*columns, values], [field.name for field in VERDICT_FIELDS])


def outcome_verdicts(table: pa.Table) -> pa.Table:
    """Return the outcomes of those rows that have one as verdicts."""
    table = said(table, OUTCOME)
    return verdict_table(table.column(ROW), table.column(OUTCOME))


def _stage_number(index: int) -> int:
    """Steps count from 0; what the source itself refused is 'judged' by number -2 (-1 means nobody)."""
    return -2 if index == SOURCE else index
