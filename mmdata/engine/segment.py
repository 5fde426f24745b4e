"""One partition through one segment: the row-wise work.

Work = rows needed minus rows held. Needed are the rows that no earlier stage judged out; held are those in column files
under the step's key. Chunks of rows go through all steps together so that an image is decoded once; fates are settled in
plan order afterwards. The images of the next chunk are made ready meanwhile (`pictures`).
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.careful import Answer, Careful, Direct
from mmdata.engine.columns import as_type
from mmdata.engine.held import Piece
from mmdata.engine.judge import drops, outcome_verdicts, settle, settle_held
from mmdata.engine.keys import SOURCE
from mmdata.engine.passes import verdicts_of
from mmdata.engine.pictures import Picture, Pictures
from mmdata.engine.splitting import children_of
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.view import PartitionView, result_fields, source_rows
from mmdata.engine.worker_cache import WorkerCache
from mmdata.errors import PartitionError, RecordError, ShapeError
from mmdata.plan import Segment, Step, written
from mmdata.schema import IMAGE, OUTCOME, PAYLOAD_COLUMN, PROFILE, ROW
from mmdata.stages.verbs import Batch, Filter, GlobalFilter, Map, Place, Split

IMAGE_CHUNK = 64
CHUNK = 8192
QUICK_CHUNK = 262_144  # of stages that look at columns alone, and fast


class SegmentRun:
    """Runs one segment over one partition and says what came of it."""

    def __init__(self, view: PartitionView, segment: Segment, caller: Direct | Careful, cache: WorkerCache) -> None:
        self.view, self.segment, self.caller, self.cache = view, segment, caller, cache
        self.fresh: dict[int, list[pa.Table]] = {}
        self.work: dict[int, dict[str, int]] = {}
        self.tried: Counter[int] = Counter()
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self.digests: dict[str, str] = {}
        self.profiles: defaultdict[int, set[str]] = defaultdict(set)

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
        """Compute what is missing and write it; where a model's batch was too large for the memory, all of it once more."""
        while True:
            self.fresh = {step.index: [] for step in group}
            try:
                self._compute_chunks(state, group)
            except ShapeError:
                for step in group:
                    self.view.forget(step.index)
                    self.profiles.pop(step.index, None)
                    self.tried[step.index] = 0
                continue
            break
        for step in group:
            self._write(step)

    def _compute_chunks(self, state: State, group: list[Step]) -> None:
        """Compute what is missing, chunk by chunk through all steps of the group."""
        ahead = self._looking_ahead(state.alive, group)
        chunks = list(self._chunks(state.alive, group))
        looks = any(IMAGE in step.stage.reads() for step in group)
        with closing(self._pictures(ahead, group)) as pictures:
            for place, chunk in enumerate(chunks):
                for soon in chunks[place + 1 if place else 0 : place + 2] if isinstance(self.caller, Direct) else ():
                    self._begin(pictures, ahead, soon)
                rows = chunk
                for step in group[:-1]:
                    self._compute_step(step, rows, pictures)
                    rows = self._still_alive(step, rows)
                self._compute_step(group[-1], rows, pictures)
                if looks:
                    pictures.forget(chunk.tolist())

    def _compute_step(self, step: Step, rows: np.ndarray, pictures: Pictures) -> None:
        """Compute what a step misses of rows."""
        held = self.view.held(step.index)
        missing = held.missing(rows)
        if len(missing):
            started = time.monotonic()
            together = isinstance(step.stage, Map) and step.stage.documents
            table = self._step(step, rows if together else missing, pictures)
            table = held.recovered(table.filter(np.isin(table.column(ROW).to_numpy(), missing)) if together else table)
            self.seconds[step.index] += time.monotonic() - started
            self.tried[step.index] += len(missing)
            self.fresh[step.index].append(table)
            held.add(table)

    def _looking_ahead(self, rows: np.ndarray, group: list[Step]) -> list[Step]:
        """Return the steps that will look at images and have rows to do, up to where a Filter decides who else is looked at."""
        stop = next((place for place, step in enumerate(group) if drops(step)), len(group))
        own = {step.index for step in group}
        looking = [step for step in group[:stop] if IMAGE in step.stage.reads() and step.sources[PAYLOAD_COLUMN] not in own]
        return [step for step in looking if len(self.view.held(step.index).missing(rows))]

    def _pictures(self, ahead: list[Step], group: list[Step]) -> Pictures:
        prepares = {step.index: self.caller.prepare(self.view.keys[step.index], step.stage) for step in ahead}
        known = {index: prepare for index, prepare in prepares.items() if prepare is not None}
        bare = all(step.index in known for step in group if IMAGE in step.stage.reads())
        threads = self.cache.threads(self.segment.resources.cpus)
        trust = isinstance(self.caller, Direct)
        return Pictures(self.view.run.store, self.cache.jails, threads, trust, known, bare)

    def _begin(self, pictures: Pictures, ahead: list[Step], rows: np.ndarray) -> None:
        """Let the images of a chunk be made ahead for the steps that miss them."""
        for step in ahead:
            missing = self.view.held(step.index).missing(rows)
            payload = self.view.columns({PAYLOAD_COLUMN: step.sources[PAYLOAD_COLUMN]}, missing, step.space).column(
                PAYLOAD_COLUMN
            )
            wanted = payload.is_valid().to_numpy() & ~self._videos(step, missing)
            pictures.begin(missing[wanted].tolist(), payload.filter(pa.array(wanted)).to_pylist())

    def _chunks(self, rows: np.ndarray, group: list[Step]) -> Iterator[np.ndarray]:
        stage = group[0].stage
        if isinstance(stage, Map) and stage.whole:
            size = max(len(rows), 1)
        elif any(IMAGE in step.stage.reads() for step in group):
            size = max([IMAGE_CHUNK, *(step.stage.rows_at_once() for step in group if isinstance(step.stage, Map))])
        else:
            size = QUICK_CHUNK if all(isinstance(step.stage, Filter) and step.stage.cheap for step in group) else CHUNK
            size = max([size, *(step.stage.rows_at_once() for step in group if isinstance(step.stage, Map))])
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _step(self, step: Step, rows: np.ndarray, pictures: Pictures) -> pa.Table:
        """Run a step over rows that are not held; rows without media get nulls where a stage looks at media, videos at images."""
        table = self.view.batch_columns(step, rows)
        asked, seen, outcomes = self._asked(step, rows, table, pictures)
        prepared = [item.prepared[step.index] for item in seen] if step.index in pictures.prepares else None
        images = [item.image for item in seen if item.image is not None and prepared is None]
        batch = Batch(table if len(asked) == len(rows) else table.take(pa.array(asked)), images, self._place(step), prepared)
        result, poison = self._call(step, batch)
        outcomes |= {int(asked[place]): why for place, why in poison.items()}
        return self._answers(step, rows, np.delete(asked, list(poison)) if poison else asked, result, outcomes)

    def _asked(
        self, step: Step, rows: np.ndarray, table: pa.Table, pictures: Pictures
    ) -> tuple[np.ndarray, list[Picture], dict[int, str]]:
        """Return the places of the rows that a stage is asked about, their images, and outcomes of rows that have none."""
        asked = np.arange(len(rows))
        if PAYLOAD_COLUMN in step.sources:
            asked = np.flatnonzero(table.column(PAYLOAD_COLUMN).is_valid().to_numpy())
        if IMAGE not in step.stage.reads():
            return asked, [], {}
        asked = asked[~self._videos(step, rows)[asked]]
        made = pictures.get(rows[asked].tolist(), table.column(PAYLOAD_COLUMN).take(pa.array(asked)).to_pylist())
        pairs = zip(asked.tolist(), made, strict=True)
        outcomes = {place: item.outcome for place, item in pairs if isinstance(item, RecordError)}
        return asked[[isinstance(item, Picture) for item in made]], [item for item in made if isinstance(item, Picture)], outcomes

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
        if (profile := (result.schema.metadata or {}).get(PROFILE)) is not None:
            self.profiles[step.index].add(profile.decode())
        if isinstance(step.stage, Filter) and step.stage.tag:
            result = step.stage.tagged(result)
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

    def named_profiles(self) -> dict[str, list[str]]:
        """Return the profiles of the columns of this segment, as JSON, that were computed with a model."""
        steps = [step for step in self.segment.steps if self.profiles[step.index]]
        fields = {field.name: step.index for step in steps for field in written(step.stage)}
        return {name: sorted(self.profiles[index]) for name, index in fields.items() if not name.startswith("_")}

    def _write(self, step: Step) -> None:
        tables = self.fresh[step.index]
        self.work[step.index] = {"computed": self.tried[step.index]}
        if tables:
            held = self.view.held(step.index)
            table = pa.concat_tables(tables).combine_chunks()
            if not held.num_files:  # a digest is asked for of rows that lie in one file alone
                table = self.view.noted(step.index, table)
                held.pieces = [Piece(table)]
            if self.profiles[step.index]:
                table = table.replace_schema_metadata({
                    **(table.schema.metadata or {}), PROFILE: json.dumps(sorted(self.profiles[step.index])),
                })  # fmt: skip
            key, ident = self.view.keys[step.index], self.view.partition.ident
            self.view.run.add_columns(key, ident, held.num_files, table, held.round)

    def _finish(self, state: State, step: Step) -> None:
        """Settle the fates after a step, in plan order, and digest what it gave."""
        rows = state.alive
        if self.view.held(step.index).num_files:
            self.view.run.settle(f"columns/{self.view.keys[step.index]}")
        self.work[step.index]["needed"] = len(rows)
        self.digests[self.view.keys[step.index]] = self.view.digest(step.index, rows)
        self.profiles[step.index] |= self.view.held(step.index).profiles
        settle_held(self.view, state, step, rows)

    def _split(self, state: State, step: Step) -> State:
        parents = state.alive
        held = self.view.held(step.index)
        missing = parents[~np.isin(parents, held.rows() >> CHILD_BITS)]
        if len(missing):
            started = time.monotonic()
            table, lost = children_of(self.view, self.caller, step, missing)
            self.seconds[step.index] += time.monotonic() - started
            settle(self.view, state, step, lost, whole=False)
            parents = state.alive
            self.view.run.add_columns(self.view.keys[step.index], self.view.partition.ident, held.num_files, table)
            held.add(table)
        if held.num_files:
            self.view.run.settle(f"columns/{self.view.keys[step.index]}")
        children = held.rows()
        children = children[np.isin(children >> CHILD_BITS, parents)]
        self.work[step.index] = {"computed": len(missing), "needed": len(parents)}
        self.digests[self.view.keys[step.index]] = self.view.digest(step.index, children)
        return state.split(children, step.index)


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
