"""One row becomes several: how a Split's children get their numbers and ids."""

import numpy as np
import pyarrow as pa

from mmdata.engine.careful import Answer, Careful, Direct
from mmdata.engine.judge import verdict_table
from mmdata.engine.state import CHILD_BITS
from mmdata.engine.view import PartitionView
from mmdata.errors import PartitionError
from mmdata.plan import Step
from mmdata.schema import ROW
from mmdata.stages.verbs import Batch, Split
from mmdata.storage import digest_json


def children_of(view: PartitionView, caller: Direct | Careful, step: Step, parents: np.ndarray) -> tuple[pa.Table, pa.Table]:
    """Make the children of rows: their numbers hold their parents', blocks of a document stay in it.

    Also return the verdicts on the parents that could not be split.
    """
    assert isinstance(step.stage, Split)
    batch = Batch(view.batch_columns(step, parents))
    (index, table), poison = _split_call(view, caller, step, batch)
    if len(np.unique(index)) != len(parents) - len(poison) or np.any(np.diff(index) < 0):
        raise PartitionError(f"`{step.stage.name}` must make one row or more of each parent, in order")
    lost = verdict_table(
        pa.chunked_array([parents[list(poison)]], pa.int64()), pa.chunked_array([list(poison.values())], pa.string())
    )
    within = np.arange(len(index)) - np.searchsorted(index, index)
    rows = (parents[index] << CHILD_BITS) + within
    homes = {name: view.homes_after(step.index)[name] for name in ("sample_id", "position", "document")}
    old = view.columns(homes, parents, step.space).take(pa.array(index))
    ids, places, blocks = (old.column(name).to_pylist() for name in ("sample_id", "position", "document"))
    own = [
        ident if block else digest_json([ident, int(number)])[:32]
        for ident, block, number in zip(ids, blocks, within, strict=True)
    ]
    position = [place if block else 0 for place, block in zip(places, blocks, strict=True)]
    columns = {field.name: table.column(field.name).cast(field.type) for field in step.stage.writes()}
    ident = {"sample_id": pa.array(own, pa.string()), "position": pa.array(position, pa.int32())}
    return pa.table({ROW: pa.array(rows), **ident, **columns}), lost


def _split_call(view: PartitionView, caller: Direct | Careful, step: Step, batch: Batch) -> Answer:
    result, poison = caller.call(view.keys[step.index], step.stage, batch)
    if result is None:
        result = np.zeros(0, dtype=np.int64), pa.schema(step.stage.writes()).empty_table()  # type: ignore[attr-defined]
    return Answer(result, poison)
