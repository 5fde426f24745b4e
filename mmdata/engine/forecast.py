"""What a run will do, found out before it does it: rows kept and rows computed, step by step.

Rows whose columns are all there have a known fate, and Filters that are cheap are asked ahead, so what later steps need of
them is exact. What other rows that are still to be computed will come to is unknown: from there on they count as rows that
may be needed, and a number becomes a range.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.columns import as_type
from mmdata.engine.judge import drops, outcome_verdicts, settle, settle_held, verdict_table
from mmdata.engine.keys import SOURCE, keys_of
from mmdata.engine.passes import passes_of, verdicts_of
from mmdata.engine.runstore import Generation, RunStore
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.task import Job
from mmdata.engine.view import PartitionView, result_fields, source_rows
from mmdata.plan import Step
from mmdata.schema import OUTCOME, ROW
from mmdata.stages.passes import Judge
from mmdata.stages.verbs import Batch, Filter, GlobalFilter, Split, WorkerContext

READ_AHEAD = 64  # so many new partitions are read to count their rows; more would cost what a dry run must not


@dataclass(frozen=True)
class Span:
    """A number of rows: so many for certain, and at most (null: nobody can say yet)."""

    least: int = 0
    most: int | None = 0

    def __add__(self, other: "Span") -> "Span":
        """Return the span of the sum."""
        most = None if self.most is None or other.most is None else self.most + other.most
        return Span(self.least + other.least, most)


@dataclass
class StepForecast:
    """One step, or the sink.

    kept      rows that it needs and that are held    computed  rows that it needs and that are not
    passes    what becomes of the results of a step that looks at all rows at once; `perhaps`: they are made anew unless
              they are there for rows that come out just like these; `each`: it has none, and is asked of each row
    """

    stage: str
    kept: Span = Span()
    computed: Span = Span()
    passes: Literal["kept", "anew", "perhaps", "each"] | None = None


@dataclass(frozen=True)
class Forecast:
    """What a run would do; the last of `steps` is the sink, if the plan has one."""

    generation: int
    partitions: int
    steps: list[StepForecast]
    done: bool


def forecast(run: RunStore, generation: Generation, job: Job) -> Forecast:
    """Look at what a run folder holds for a generation; write nothing."""
    plan = generation.plan
    look = Scheduler(run, generation, job, None)
    sunk = look.segments() and (plan.sink is None or look.sink() is not None)
    steps = [StepForecast(step.stage.name, Span(look.kept[step.index], look.kept[step.index])) for step in plan.steps]
    unread = READ_AHEAD
    for unit, partition in enumerate(generation.partitions):
        head = look.heads.get(unit)
        first = 0 if head is None else head["segment"] + 1
        if first == len(plan.segments):
            continue
        state = None if head is None else State.from_bytes(run.state_of(head))
        walk = _Walk(PartitionView(run, plan, keys_of(job), partition, generation.retries), look.verdicts, state)
        if head is None:
            unread -= walk.read(may=unread > 0)
        for segment in plan.segments[first:]:
            for step, kept, computed in walk.segment(segment.steps):
                steps[step.index].kept += kept
                steps[step.index].computed += computed
    steps += [] if plan.sink is None else [StepForecast(f"sink {plan.sink.name}")]
    _say_passes(look, steps, sunk)
    done = sunk and run.store.exists(f"manifest/{generation.number}.json")
    return Forecast(generation.number, len(generation.partitions), steps, done)


def _say_passes(look: Scheduler, steps: list[StepForecast], sunk: bool) -> None:
    """Say of the GlobalFilters and the sink whether their results are there; their keys cover what reaches them."""
    run, plan = look.run, look.generation.plan
    seen = any(run.read_json(f"generations/{number}.json")["plan_digest"] == plan.digest for number in run.generations())
    for place, step in enumerate(steps):
        sink = place == len(plan.steps)
        if not sink and not isinstance(plan.steps[place].stage, GlobalFilter):
            continue
        reached = any(task.kind == "pass" and task.step == place for task in look.missing)
        if not sink and isinstance(passes_of(plan, place)[0], Judge):
            step.passes = "each"
        elif place in look.verdicts or (sink and sunk):
            step.passes = "kept"
        elif reached or any(before.computed.least for before in steps[:place]) or (sink and not seen):
            step.passes = "anew"
        else:
            step.passes = "perhaps"


class _Walk:
    """One partition, brought from step to step as far as its fates are known.

    state    fates as far as they are known    unsure  rows whose fate is not, though they count as alive
    asked    rows that the next step is asked for: a document that goes takes its blocks along only behind the segment
    open     those of them of which it is not known    unknown  True when there may be rows besides
    """

    def __init__(self, view: PartitionView, verdicts: dict[int, str], state: State | None) -> None:
        self.view, self.verdicts = view, verdicts
        self.state = state or State.start(0, np.zeros(0, np.int64), [])
        self.unsure = self.asked = self.open = np.zeros(0, np.int64)
        self.unknown = False

    def read(self, *, may: bool) -> bool:
        """Take the partition's rows from where they are held, or else, if that is allowed, from the source."""
        held = self.view.held(SOURCE)
        fresh = not held.pieces
        if fresh and not may:
            self.unknown = True
            return False
        if fresh:
            held.add(source_rows(self.view.plan, self.view.partition))
        self.state = State.start(0, held.pieces[0].rows, [])
        settle(self.view, self.state, None, outcome_verdicts(held.pieces[0].table([ROW, OUTCOME])), whole=False)
        return fresh

    def segment(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Span, Span]]:
        """Yield how many rows each row-wise step keeps and computes, and go on behind it."""
        self._regroup()
        for step in steps:
            if isinstance(step.stage, GlobalFilter):
                self._global(step)
                self._regroup()
            elif isinstance(step.stage, Split):
                yield step, *self._split(step)
                self._regroup()
            else:
                yield step, *self._answer(step)

    def _regroup(self) -> None:
        self.asked, self.open = self.state.alive, self.unsure

    def _computed(self, rows: np.ndarray) -> Span:
        # Rows that nobody has seen yet are held nowhere.
        return Span(len(np.setdiff1d(rows, self.open)), None if self.unknown else len(rows))

    def _answer(self, step: Step) -> tuple[Span, Span]:
        """Go through a Map or a Filter."""
        held, rows = self.view.held(step.index), self.state.alive
        kept = np.setdiff1d(rows, held.missing(rows))
        missing = held.missing(self.asked)
        spans = Span(len(np.setdiff1d(kept, self.unsure)), len(kept)), self._computed(missing)
        missing = self._ask(step, missing)
        self._settle(step, np.setdiff1d(rows, missing))
        self._doubt(np.intersect1d(rows, missing))
        self.open = np.union1d(self.open, missing)
        gone = self._gone(step, np.setdiff1d(self.asked, missing)).column(ROW).to_numpy()
        self.asked = np.setdiff1d(self.asked, gone)
        return spans

    def _ask(self, step: Step, rows: np.ndarray) -> np.ndarray:
        """Put rows to a Filter that is cheap, where all that it reads is there; return those that have no answer."""
        if not isinstance(step.stage, Filter) or not step.stage.cheap or not len(ready := self._ready(step, rows)):
            return rows
        answer = step.stage.open(WorkerContext(self.view.run.store))(Batch(self.view.batch_columns(step, ready)))
        answer = step.stage.tagged(answer) if step.stage.tag else answer
        columns = [as_type(answer.column(field.name).combine_chunks(), field.type) for field in result_fields(step.stage)]
        held = self.view.held(step.index)
        held.add(pa.table([ready, *columns, pa.nulls(len(ready), pa.string())], schema=held.empty.schema))
        return np.setdiff1d(rows, ready)

    def _ready(self, step: Step, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows of which all is there that a step reads."""
        for home in set(step.sources.values()):
            ancestors = rows >> (CHILD_BITS * (step.space - self.view.home_space(home)))
            rows = rows[~np.isin(ancestors, self.view.held(home).missing(np.unique(ancestors)))]
        return rows

    def _settle(self, step: Step, rows: np.ndarray) -> None:
        """Settle the fates of rows whose columns are there.

        What a row that may be gone by now would drag along is not known: its verdict counts for itself alone.
        """
        unsure = np.intersect1d(rows, self.unsure)
        settle_held(self.view, self.state, step, np.setdiff1d(rows, unsure))
        self.state.drop(self._gone(step, unsure), step.index)

    def _gone(self, step: Step, rows: np.ndarray) -> pa.Table:
        """Return the verdicts on those of the rows that a step drops by itself."""
        found = self.view.held(step.index).take(rows, [ROW, OUTCOME, *(["reason"] if drops(step) else [])])
        verdicts = verdict_table(found.column(ROW), pc.coalesce(*(column.cast(pa.string()) for column in found.columns[1:])))
        return verdicts.filter(verdicts.column("reason").is_valid())

    def _global(self, step: Step) -> None:
        alive = self.state.alive
        if step.index in self.verdicts and len(self._ready(step, alive)) == len(alive):
            verdicts = verdicts_of(self.view, step, self.verdicts[step.index], self.state)
            settle(self.view, self.state, step, verdicts, whole=False)
        else:
            self._doubt(alive)

    def _split(self, step: Step) -> tuple[Span, Span]:
        parents, children = self.state.alive, self.view.held(step.index).rows()
        missing = parents[~np.isin(parents, children >> CHILD_BITS)]
        kept = np.setdiff1d(parents, missing)
        spans = Span(len(np.setdiff1d(kept, self.unsure)), len(kept)), self._computed(missing)
        self._doubt(missing)
        children = children[np.isin(children >> CHILD_BITS, parents)]
        self.unknown |= len(missing) > 0
        self.unsure = children[np.isin(children >> CHILD_BITS, self.unsure)]
        self.state = self.state.split(children, step.index)
        return spans

    def _doubt(self, rows: np.ndarray) -> None:
        """From here on the fate of these rows is open, and with it that of the documents they are blocks of."""
        alive = self.state.alive
        self.unsure = np.intersect1d(np.union1d(self.unsure, rows), alive)
        documents = self.view.documents(self.state) if len(self.unsure) else None
        if documents is not None:
            touched = documents.sample[np.isin(self.state.rows, self.unsure)]
            together = self.state.rows[np.isin(documents.sample, touched[touched >= 0])]
            self.unsure = np.intersect1d(np.union1d(self.unsure, together), alive)
