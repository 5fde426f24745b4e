"""One partition through one segment: the row-wise work.

Work = rows needed minus rows held. Needed are the rows that no earlier stage judged out; held are those in column files
under the step's key. Chunks of rows go through all steps together so that an image is decoded once; fates are settled in
plan order afterwards.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mmdata.engine.keys import SOURCE
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.view import PartitionView, result_fields, source_rows
from mmdata.engine.worker_cache import WorkerCache
from mmdata.errors import PartitionError, RecordError
from mmdata.plan import Segment, Step, tag_name
from mmdata.schema import IMAGE, OUTCOME, PAYLOAD_COLUMN, ROW, VERDICT_FIELDS
from mmdata.stages.verbs import Batch, Filter, GlobalFilter, Map, Place, Split
from mmdata.storage import digest_json

IMAGE_CHUNK = 64
CHUNK = 8192


class SegmentRun:
    """Runs one segment over one partition and says what came of it."""

    def __init__(self, view: PartitionView, segment: Segment, cache: WorkerCache) -> None:
        self.view, self.segment, self.cache = view, segment, cache
        self.fresh: dict[int, list[pa.Table]] = {}
        self.work: dict[int, dict[str, int]] = {}
        self.digests: dict[str, str] = {}

    def run(self, state: State | None, verdicts: pa.Table | None) -> State:
        """Return the fates after this segment; `verdicts` are those of the GlobalFilter that opens it."""
        state = state or self._read_source()
        for group in _groups(self.segment.steps):
            first = group[0]
            if isinstance(first.stage, GlobalFilter):
                assert verdicts is not None
                self._settle(state, first, verdicts, whole=False)
            elif isinstance(first.stage, Split):
                state = self._split(state, first)
            else:
                self._compute(state, group)
                for step in group:
                    self._finish(state, step)
        return state

    def _read_source(self) -> State:
        held = self.view.held(SOURCE)
        if not held.tables:
            table = source_rows(self.view.plan, self.view.partition)
            self.view.run.add_columns(self.view.keys[SOURCE], self.view.partition.ident, 0, table)
            held.add(table)
        rows = held.tables[0].column(ROW).to_numpy()
        state = State.start(0, rows, [])
        self.digests[self.view.keys[SOURCE]] = self.view.digest(SOURCE, rows)
        self._settle(state, None, _outcome_verdicts(held.tables[0]), whole=False)
        return state

    def _compute(self, state: State, group: list[Step]) -> None:
        """Compute what is missing, chunk by chunk through all steps of the group, and write it."""
        self.fresh = {step.index: [] for step in group}
        for chunk in self._chunks(state.alive, group):
            rows, images = chunk, _Images(self.view, self.cache)
            for step in group:
                held = self.view.held(step.index)
                missing = held.missing(rows)
                if len(missing):
                    table = self._step(step, missing, images)
                    self.fresh[step.index].append(table)
                    held.add(table)
                rows = self._still_alive(step, rows)
        for step in group:
            self._write(step)

    def _chunks(self, rows: np.ndarray, group: list[Step]) -> Iterator[np.ndarray]:
        stage = group[0].stage
        if isinstance(stage, Map) and stage.whole:
            size = max(len(rows), 1)
        else:
            size = IMAGE_CHUNK if any(IMAGE in step.stage.reads() for step in group) else CHUNK
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _step(self, step: Step, rows: np.ndarray, images: "_Images") -> pa.Table:
        """Run a step over rows that are not held; rows without media get nulls where a stage looks at media."""
        table = self.view.batch_columns(step, rows)
        names = result_fields(step.stage)
        outcomes = np.full(len(rows), None, dtype=object)
        asked = np.arange(len(rows))
        arrays: list[np.ndarray] = []
        if PAYLOAD_COLUMN in step.sources:
            asked = np.flatnonzero(table.column(PAYLOAD_COLUMN).is_valid().to_numpy())
        if IMAGE in step.stage.reads():
            decoded = images.get(rows[asked], table.column(PAYLOAD_COLUMN).take(pa.array(asked)))
            for place, item in zip(asked, decoded, strict=True):
                outcomes[place] = item.outcome if isinstance(item, RecordError) else None
            arrays = [item for item in decoded if isinstance(item, np.ndarray)]
            asked = asked[[isinstance(item, np.ndarray) for item in decoded]]
        batch = Batch(table.take(pa.array(asked, pa.int64())), arrays, self._place(step))
        result = self._call(step, batch) if len(asked) else pa.schema(names).empty_table()
        if OUTCOME in result.column_names:
            outcomes[asked] = np.asarray([*result.column(OUTCOME).to_pylist(), None], dtype=object)[:-1]
        spread = np.full(len(rows), -1)
        spread[asked] = np.arange(len(asked))
        index = pa.array(spread, mask=spread < 0)
        columns = [result.column(field.name).combine_chunks().take(index).cast(field.type) for field in names]
        schema = pa.schema([pa.field(ROW, pa.int64()), *names, pa.field(OUTCOME, pa.string())])
        return pa.table([pa.array(rows), *columns, pa.array(outcomes, pa.string())], schema)

    def _call(self, step: Step, batch: Batch) -> pa.Table:
        result = self.cache.open(self.view.keys[step.index], step.stage)(batch)
        if result.num_rows != batch.table.num_rows:
            raise PartitionError(
                f"`{step.stage.name}` returned {result.num_rows} rows for {batch.table.num_rows}",
                hint="a Map or Filter answers every row it is given, in order",
            )
        if isinstance(step.stage, Filter) and step.stage.tag:
            return pa.table({tag_name(step.stage): result.column("reason").is_null()})
        return result

    def _place(self, step: Step) -> Place | None:
        """Return the folder of a payload-writing Map; rows added to a key later go to a folder of their own."""
        if PAYLOAD_COLUMN not in {field.name for field in result_fields(step.stage)}:
            return None
        added = self.view.held(step.index).num_files
        suffix = f".{added}" if added else ""
        folder = f"payload/{self.view.keys[step.index]}/{step.stage.name}{suffix}"
        return Place(folder, self.view.partition.number)

    def _still_alive(self, step: Step, rows: np.ndarray) -> np.ndarray:
        table = self.view.held(step.index).take(rows, ["reason", OUTCOME] if _drops(step) else [OUTCOME])
        return rows[np.logical_and.reduce([column.is_null().to_numpy() for column in table.columns])]

    def _write(self, step: Step) -> None:
        tables = self.fresh[step.index]
        computed = sum(table.num_rows for table in tables)
        self.work[step.index] = {"computed": computed}
        if computed:
            held = self.view.held(step.index)
            table = pa.concat_tables(tables).combine_chunks()
            self.view.run.add_columns(self.view.keys[step.index], self.view.partition.ident, held.num_files, table)

    def _finish(self, state: State, step: Step) -> None:
        """Settle the fates after a step, in plan order, and digest what it gave."""
        rows = state.alive
        held = self.view.held(step.index)
        self.work[step.index]["needed"] = len(rows)
        self.digests[self.view.keys[step.index]] = self.view.digest(step.index, rows)
        if _drops(step):
            table = held.take(rows, [ROW, "reason", "value"])
            verdicts = _verdicts(table.column(ROW), table.column("reason"), table.column("value"))
            assert isinstance(step.stage, Filter)
            self._settle(state, step, verdicts, whole=step.stage.scope == "sample")
        self._settle(state, step, _outcome_verdicts(held.take(rows, [ROW, OUTCOME])), whole=False)

    def _settle(self, state: State, step: Step | None, verdicts: pa.Table, whole: bool) -> None:
        index = SOURCE if step is None else step.index
        dropped = state.drop(verdicts, _stage_number(index))
        if len(dropped):
            state.drop_incomplete(dropped, self.view.documents(state), _stage_number(index), whole)

    def _split(self, state: State, step: Step) -> State:
        parents = state.alive
        held = self.view.held(step.index)
        known = np.unique(np.concatenate([t.column(ROW).to_numpy() >> CHILD_BITS for t in held.tables] or [np.zeros(0, int)]))
        missing = parents[~np.isin(parents, known)]
        if len(missing):
            table = self._children(step, missing)
            self.view.run.add_columns(self.view.keys[step.index], self.view.partition.ident, held.num_files, table)
            held.add(table)
        children = np.sort(np.concatenate([t.column(ROW).to_numpy() for t in held.tables] or [np.zeros(0, int)]))
        children = children[np.isin(children >> CHILD_BITS, parents)]
        self.work[step.index] = {"computed": len(missing), "needed": len(parents)}
        self.digests[self.view.keys[step.index]] = self.view.digest(step.index, children)
        return state.split(children, step.index)

    def _children(self, step: Step, parents: np.ndarray) -> pa.Table:
        """Make the children of rows: their numbers hold their parents', blocks of a document stay in it."""
        assert isinstance(step.stage, Split)
        batch = Batch(self.view.batch_columns(step, parents))
        index, table = self.cache.open(self.view.keys[step.index], step.stage)(batch)
        if len(np.unique(index)) != len(parents) or np.any(np.diff(index) < 0):
            raise PartitionError(f"`{step.stage.name}` must make one row or more of each parent, in order")
        within = np.arange(len(index)) - np.searchsorted(index, index)
        rows = (parents[index] << CHILD_BITS) + within
        homes = {name: self.view.homes_after(step.index)[name] for name in ("sample_id", "position", "document")}
        old = self.view.columns(homes, parents, step.space).take(pa.array(index))
        ids, places, blocks = (old.column(name).to_pylist() for name in ("sample_id", "position", "document"))
        own = [
            ident if block else digest_json([ident, int(number)])[:32]
            for ident, block, number in zip(ids, blocks, within, strict=True)
        ]
        position = [place if block else 0 for place, block in zip(places, blocks, strict=True)]
        columns = {field.name: table.column(field.name).cast(field.type) for field in step.stage.writes()}
        ident = {"sample_id": pa.array(own, pa.string()), "position": pa.array(position, pa.int32())}
        return pa.table({ROW: pa.array(rows), **ident, **columns})


class _Images:
    """Decoded images of one chunk, shared by the steps that look at them."""

    def __init__(self, view: PartitionView, cache: WorkerCache) -> None:
        self.view, self.cache = view, cache
        self.decoded: dict[int, np.ndarray | RecordError] = {}

    def get(self, rows: np.ndarray, payloads: pa.ChunkedArray) -> list[np.ndarray | RecordError]:
        refs = payloads.to_pylist()
        missing = [(row, ref) for row, ref in zip(rows.tolist(), refs, strict=True) if row not in self.decoded]
        found = self.view.images([ref for _, ref in missing], self.cache.jail)
        self.decoded.update({row: image for (row, _), image in zip(missing, found, strict=True)})
        return [self.decoded[row] for row in rows.tolist()]


def _groups(steps: tuple[Step, ...]) -> list[list[Step]]:
    """Cut a segment into runs of Maps and Filters, with every Split and GlobalFilter on its own."""
    groups: list[list[Step]] = []
    for step in steps:
        alone = isinstance(step.stage, Split | GlobalFilter)
        if alone or not groups or isinstance(groups[-1][-1].stage, Split | GlobalFilter):
            groups.append([step])
        else:
            groups[-1].append(step)
    return groups


def _drops(step: Step) -> bool:
    return isinstance(step.stage, Filter) and not step.stage.tag


def _stage_number(index: int) -> int:
    """Steps count from 0; what the source itself refused is 'judged' by number -2 (-1 means nobody)."""
    return -2 if index == SOURCE else index


def _verdicts(rows: pa.ChunkedArray, reason: pa.ChunkedArray, value: pa.ChunkedArray | None = None) -> pa.Table:
    num = len(rows)
    columns = [rows, reason, pa.nulls(num, pa.string()), pa.nulls(num, pa.int32())]
    return pa.table([*columns, pa.nulls(num, pa.float32()) if value is None else value], pa.schema(VERDICT_FIELDS))


def _outcome_verdicts(table: pa.Table) -> pa.Table:
    return _verdicts(table.column(ROW), table.column(OUTCOME))
