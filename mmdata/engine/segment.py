"""One partition through one segment: the row-wise work.

Work = rows needed minus rows held. Needed are the rows that no earlier stage judged out; held are those in column files
under the step's key. Chunks of rows go through all steps together so that an image is decoded once; fates are settled in
plan order afterwards.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.careful import Answer, Careful, Direct
from mmdata.engine.columns import as_type
from mmdata.engine.held import Piece
from mmdata.engine.judge import children_held, drops, outcome_verdicts, settle, settle_held, verdict_table
from mmdata.engine.keys import SOURCE
from mmdata.engine.passes import verdicts_of
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.view import LazyJail, PartitionView, result_fields, source_rows
from mmdata.errors import PartitionError, RecordError
from mmdata.plan import Segment, Step
from mmdata.schema import IMAGE, OUTCOME, PAYLOAD_COLUMN, ROW
from mmdata.stages.verbs import Batch, Filter, GlobalFilter, Map, Place, Split
from mmdata.storage import digest_json

IMAGE_CHUNK = 64
CHUNK = 8192
QUICK_CHUNK = 262_144  # of stages that look at columns alone, and fast


class SegmentRun:
    """Runs one segment over one partition and says what came of it."""

    def __init__(self, view: PartitionView, segment: Segment, caller: Direct | Careful, jail: LazyJail) -> None:
        self.view, self.segment, self.caller, self.jail = view, segment, caller, jail
        self.fresh: dict[int, list[pa.Table]] = {}
        self.work: dict[int, dict[str, int]] = {}
        self.tried: Counter[int] = Counter()
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self.digests: dict[str, str] = {}

    def run(self, state: State | None, verdicts: str | None) -> State:
        """Return the fates after this segment; `verdicts` says where those of the GlobalFilter lie that opens it."""
        started = time.monotonic()
        state = state or self._read_source()
        self.seconds[SOURCE] += time.monotonic() - started
        for group in _groups(self.segment.steps):
            first = group[0]
            if isinstance(first.stage, GlobalFilter):
                assert verdicts is not None
                settle(self.view, state, first, verdicts_of(self.view, first, verdicts, state), whole=False)
            elif isinstance(first.stage, Split):
                state = self._split(state, first)
            else:
                self._compute(state, group)
                for step in group:
                    self._finish(state, step)
        return state

    def _read_source(self) -> State:
        held = self.view.held(SOURCE)
        if not held.pieces:
            table = self.view.noted(SOURCE, source_rows(self.view.plan, self.view.partition))
            self.view.run.add_columns(self.view.keys[SOURCE], self.view.partition.ident, 0, table)
            held.add(table)
        else:
            self.view.run.settle(f"columns/{self.view.keys[SOURCE]}")
        rows = held.pieces[0].rows
        state = State.start(0, rows, [])
        self.digests[self.view.keys[SOURCE]] = self.view.digest(SOURCE, rows)
        settle(self.view, state, None, outcome_verdicts(held.pieces[0].table([ROW, OUTCOME])), whole=False)
        return state

    def _compute(self, state: State, group: list[Step]) -> None:
        """Compute what is missing, chunk by chunk through all steps of the group, and write it."""
        self.fresh = {step.index: [] for step in group}
        for chunk in self._chunks(state.alive, group):
            rows, images = chunk, _Images(self.view, self.jail, trust=isinstance(self.caller, Direct))
            for step in group:
                held = self.view.held(step.index)
                missing = held.missing(rows)
                if len(missing):
                    started = time.monotonic()
                    table = held.recovered(self._step(step, missing, images))
                    self.seconds[step.index] += time.monotonic() - started
                    self.tried[step.index] += len(missing)
                    self.fresh[step.index].append(table)
                    held.add(table)
                rows = self._still_alive(step, rows)
        for step in group:
            self._write(step)

    def _chunks(self, rows: np.ndarray, group: list[Step]) -> Iterator[np.ndarray]:
        stage = group[0].stage
        if isinstance(stage, Map) and stage.whole:
            size = max(len(rows), 1)
        elif any(IMAGE in step.stage.reads() for step in group):
            size = IMAGE_CHUNK
        else:
            size = QUICK_CHUNK if all(isinstance(step.stage, Filter) and step.stage.cheap for step in group) else CHUNK
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _step(self, step: Step, rows: np.ndarray, images: "_Images") -> pa.Table:
        """Run a step over rows that are not held; rows without media get nulls where a stage looks at media, videos at images."""
        table = self.view.batch_columns(step, rows)
        asked, arrays, outcomes = self._asked(step, rows, table, images)
        batch = Batch(table if len(asked) == len(rows) else table.take(pa.array(asked)), arrays, self._place(step))
        result, poison = self._call(step, batch)
        outcomes |= {int(asked[place]): why for place, why in poison.items()}
        return self._answers(step, rows, np.delete(asked, list(poison)) if poison else asked, result, outcomes)

    def _asked(
        self, step: Step, rows: np.ndarray, table: pa.Table, images: "_Images"
    ) -> tuple[np.ndarray, list[np.ndarray], dict[int, str]]:
        """Return the places of the rows that a stage is asked about, their pixels, and outcomes of rows that have none."""
        asked = np.arange(len(rows))
        if PAYLOAD_COLUMN in step.sources:
            asked = np.flatnonzero(table.column(PAYLOAD_COLUMN).is_valid().to_numpy())
        if IMAGE not in step.stage.reads():
            return asked, [], {}
        asked = asked[~self._videos(step, rows)[asked]]
        decoded = images.get(rows[asked], table.column(PAYLOAD_COLUMN).take(pa.array(asked)))
        pairs = list(zip(asked.tolist(), decoded, strict=True))
        outcomes = {place: item.outcome for place, item in pairs if isinstance(item, RecordError)}
        arrays = [item for item in decoded if isinstance(item, np.ndarray)]
        return asked[[isinstance(item, np.ndarray) for item in decoded]], arrays, outcomes

    def _answers(self, step: Step, rows: np.ndarray, asked: np.ndarray, result: pa.Table, outcomes: dict[int, str]) -> pa.Table:
        """Return what a stage said of the rows that it was asked about, with nulls for the others, and outcomes."""
        fields = [*result_fields(step.stage), pa.field(OUTCOME, pa.string())]
        if OUTCOME not in result.column_names:
            result = result.append_column(OUTCOME, pa.nulls(result.num_rows, pa.string()))
        columns = [as_type(result.column(field.name).combine_chunks(), field.type) for field in fields]
        if len(asked) < len(rows):
            spread = np.full(len(rows), -1)
            spread[asked] = np.arange(len(asked))
            index = pa.array(spread, mask=spread < 0)
            columns = [column.take(index) for column in columns]
        if outcomes:
            told = np.asarray([*columns[-1].to_pylist(), None], dtype=object)[:-1]
            told[list(outcomes)] = list(outcomes.values())
            columns[-1] = pa.array(told, pa.string())
        return pa.table([pa.array(rows), *columns], pa.schema([pa.field(ROW, pa.int64()), *fields]))

    def _videos(self, step: Step, rows: np.ndarray) -> np.ndarray:
        """Say which rows are videos: a stage that looks at images does not see them."""
        home = self.view.homes_after(step.index)["media"]
        media = self.view.columns({"media": home}, rows, step.space).column("media")
        found: np.ndarray = pc.equal(media, "video").fill_null(False).to_numpy()
        return found

    def _call(self, step: Step, batch: Batch) -> Answer:
        """Return what the stage gives for the rows that it could answer."""
        answer = self.caller.call(self.view.keys[step.index], step.stage, batch) if len(batch.rows) else Answer(None, {})
        result, poison = answer
        healthy = len(batch.rows) - len(poison)
        if not healthy:
            return Answer(pa.schema(result_fields(step.stage)).empty_table(), poison)
        if result.num_rows != healthy:
            raise PartitionError(
                f"`{step.stage.name}` returned {result.num_rows} rows for {healthy}",
                hint="a Map or Filter answers every row it is given, in order",
            )
        if isinstance(step.stage, Filter) and step.stage.tag:
            result = pa.table({step.stage.flag(): result.column("reason").is_null()})
        return Answer(result, poison)

    def _place(self, step: Step) -> Place | None:
        """Return the folder of a payload-writing Map; rows added to a key later, or recovered, go to a folder of their own."""
        if PAYLOAD_COLUMN not in {field.name for field in result_fields(step.stage)}:
            return None
        held = self.view.held(step.index)
        added = f"r{held.round}" if held.round else held.num_files
        suffix = f".{added}" if added else ""
        folder = f"payload/{self.view.keys[step.index]}/{step.stage.name}{suffix}"
        return Place(folder, self.view.partition.number)

    def _still_alive(self, step: Step, rows: np.ndarray) -> np.ndarray:
        table = self.view.held(step.index).take(rows, ["reason", OUTCOME] if drops(step) else [OUTCOME])
        return rows[np.logical_and.reduce([column.is_null().to_numpy() for column in table.columns])]

    def _write(self, step: Step) -> None:
        tables = self.fresh[step.index]
        self.work[step.index] = {"computed": self.tried[step.index]}
        if tables:
            held = self.view.held(step.index)
            table = pa.concat_tables(tables).combine_chunks()
            if not held.num_files:  # a digest is asked for of rows that lie in one file alone
                table = self.view.noted(step.index, table)
                held.pieces = [Piece(table)]
            key, ident = self.view.keys[step.index], self.view.partition.ident
            self.view.run.add_columns(key, ident, held.num_files, table, held.round)

    def _finish(self, state: State, step: Step) -> None:
        """Settle the fates after a step, in plan order, and digest what it gave."""
        rows = state.alive
        if self.view.held(step.index).num_files:
            self.view.run.settle(f"columns/{self.view.keys[step.index]}")
        self.work[step.index]["needed"] = len(rows)
        self.digests[self.view.keys[step.index]] = self.view.digest(step.index, rows)
        settle_held(self.view, state, step, rows)

    def _split(self, state: State, step: Step) -> State:
        parents = state.alive
        held = self.view.held(step.index)
        missing = parents[~np.isin(parents, children_held(held) >> CHILD_BITS)]
        if len(missing):
            started = time.monotonic()
            table, lost = self._children(step, missing)
            self.seconds[step.index] += time.monotonic() - started
            settle(self.view, state, step, lost, whole=False)
            parents = state.alive
            self.view.run.add_columns(self.view.keys[step.index], self.view.partition.ident, held.num_files, table)
            held.add(table)
        if held.num_files:
            self.view.run.settle(f"columns/{self.view.keys[step.index]}")
        children = children_held(held)
        children = children[np.isin(children >> CHILD_BITS, parents)]
        self.work[step.index] = {"computed": len(missing), "needed": len(parents)}
        self.digests[self.view.keys[step.index]] = self.view.digest(step.index, children)
        return state.split(children, step.index)

    def _children(self, step: Step, parents: np.ndarray) -> tuple[pa.Table, pa.Table]:
        """Make the children of rows: their numbers hold their parents', blocks of a document stay in it.

        Also return the verdicts on the parents that could not be split.
        """
        assert isinstance(step.stage, Split)
        batch = Batch(self.view.batch_columns(step, parents))
        (index, table), poison = self._split_call(step, batch)
        if len(np.unique(index)) != len(parents) - len(poison) or np.any(np.diff(index) < 0):
            raise PartitionError(f"`{step.stage.name}` must make one row or more of each parent, in order")
        lost = verdict_table(
            pa.chunked_array([parents[list(poison)]], pa.int64()), pa.chunked_array([list(poison.values())], pa.string())
        )
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
        return pa.table({ROW: pa.array(rows), **ident, **columns}), lost

    def _split_call(self, step: Step, batch: Batch) -> Answer:
        result, poison = self.caller.call(self.view.keys[step.index], step.stage, batch)
        if result is None:
            result = np.zeros(0, dtype=np.int64), pa.schema(step.stage.writes()).empty_table()  # type: ignore[attr-defined]
        return Answer(result, poison)


class _Images:
    """Decoded images of one chunk, shared by the steps that look at them."""

    def __init__(self, view: PartitionView, jail: LazyJail, *, trust: bool) -> None:
        self.view, self.jail, self.trust = view, jail, trust
        self.decoded: dict[int, np.ndarray | RecordError] = {}

    def get(self, rows: np.ndarray, payloads: pa.ChunkedArray) -> list[np.ndarray | RecordError]:
        refs = payloads.to_pylist()
        missing = [(row, ref) for row, ref in zip(rows.tolist(), refs, strict=True) if row not in self.decoded]
        found = self.view.images([ref for _, ref in missing], self.jail, trust=self.trust)
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
