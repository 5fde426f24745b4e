"""What a run will do, found out before it does it: rows kept and rows computed, step by step.

Rows whose columns are all there have a known fate, so what later steps need of them is exact. What a row that is still to
be computed will come to is unknown: from there on it counts as one that may be needed, and a number becomes a range.
"""

from dataclasses import dataclass

import numpy as np

from mmdata.engine.judge import children_held, outcome_verdicts, settle, settle_held
from mmdata.engine.keys import SOURCE, keys_of
from mmdata.engine.runstore import Generation, RunStore
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.task import Job
from mmdata.engine.view import PartitionView, source_rows
from mmdata.engine.worker import verdicts_for
from mmdata.plan import Step
from mmdata.schema import ROW
from mmdata.stages.verbs import GlobalFilter, Split

READ_AHEAD = 64  # so many new partitions are read to count their rows; more would cost what a dry run must not


@dataclass
class StepForecast:
    """One step: rows kept, and rows computed for certain and at most (null: nobody can say yet)."""

    stage: str
    kept: int = 0
    least: int = 0
    most: int | None = 0

    def add(self, kept: int, least: int, more: int | None) -> None:
        """Count a partition more: `more` rows may be computed besides those that will be."""
        self.kept, self.least = self.kept + kept, self.least + least
        self.most = None if self.most is None or more is None else self.most + least + more


@dataclass(frozen=True)
class Forecast:
    """What a run would do; `passes` names the GlobalFilters and the sink that look at all rows anew."""

    generation: int
    partitions: int
    steps: list[StepForecast]
    passes: list[str]
    tasks_missing: bool


def forecast(run: RunStore, generation: Generation, job: Job) -> Forecast:
    """Look at what a run folder holds for a generation; write nothing."""
    plan = generation.plan
    look = Scheduler(run, generation, job, None)
    sunk = look.segments() and (plan.sink is None or look.sink() is not None)
    steps = [StepForecast(step.stage.name, kept=look.kept[step.index]) for step in plan.steps]
    unread = READ_AHEAD
    for unit, partition in enumerate(generation.partitions):
        head = look.heads.get(unit)
        first = 0 if head is None else head["segment"] + 1
        if first == len(plan.segments):
            continue
        walk = _Walk(PartitionView(run, plan, keys_of(job), partition), look.verdicts)
        if head is not None:
            walk.state = State.from_bytes(run.state_of(head))
        else:
            unread -= walk.read(may=unread > 0)
        for segment in plan.segments[first:]:
            for step in segment.steps:
                steps[step.index].add(*walk.step(step))
    anew = [step.stage.name for step in plan.steps if isinstance(step.stage, GlobalFilter) and step.index not in look.verdicts]
    anew += [] if sunk or plan.sink is None else [f"sink {plan.sink.name}"]
    return Forecast(generation.number, len(generation.partitions), steps, anew, not sunk)


class _Walk:
    """One partition, brought from step to step as far as its fates are known.

    state    fates as far as they are known    unsure  rows whose fate is not, though they count as alive
    unknown  True when there may be rows besides
    """

    def __init__(self, view: PartitionView, verdicts: dict[int, str]) -> None:
        self.view, self.verdicts = view, verdicts
        self.state = State.start(0, np.zeros(0, np.int64), [])
        self.unsure = np.zeros(0, np.int64)
        self.unknown = False

    def read(self, *, may: bool) -> bool:
        """Take the partition's rows from where they are held, or else, if that is allowed, from the source."""
        held = self.view.held(SOURCE)
        fresh = not held.tables
        if fresh and not may:
            self.unknown = True
            return False
        if fresh:
            held.add(source_rows(self.view.plan, self.view.partition))
        self.state = State.start(0, held.tables[0].column(ROW).to_numpy(), [])
        settle(self.view, self.state, None, outcome_verdicts(held.tables[0]), whole=False)
        return fresh

    def step(self, step: Step) -> tuple[int, int, int | None]:
        """Return rows kept, rows computed for certain, and rows that may be computed besides; then stand behind the step."""
        if isinstance(step.stage, GlobalFilter):
            self._global(step)
            return 0, 0, 0
        rows, held = self.state.alive, self.view.held(step.index)
        split = isinstance(step.stage, Split)
        missing = rows[~np.isin(rows, children_held(held) >> CHILD_BITS)] if split else held.missing(rows)
        least = len(np.setdiff1d(missing, self.unsure))
        kept = len(rows) - len(missing)
        more = None if self.unknown else len(missing) - least
        if split:
            self._split(step, missing)
        else:
            settle_held(self.view, self.state, step, np.setdiff1d(rows, missing))
            self._doubt(missing)
        return kept, least, more

    def _global(self, step: Step) -> None:
        if step.index in self.verdicts:
            verdicts = verdicts_for(self.view.run, self.verdicts[step.index], self.view.partition.number)
            settle(self.view, self.state, step, verdicts, whole=False)
        else:
            self._doubt(self.state.alive)

    def _split(self, step: Step, missing: np.ndarray) -> None:
        parents = self.state.alive
        children = children_held(self.view.held(step.index))
        children = children[np.isin(children >> CHILD_BITS, parents)]
        self.unknown |= len(missing) > 0
        self.unsure = children[np.isin(children >> CHILD_BITS, self.unsure)]
        self.state = self.state.split(children, step.index)

    def _doubt(self, rows: np.ndarray) -> None:
        """From here on the fate of these rows is open, and with it that of the documents they are blocks of."""
        alive = self.state.alive
        self.unsure = np.intersect1d(np.union1d(self.unsure, rows), alive)
        documents = self.view.documents(self.state) if len(self.unsure) else None
        if documents is not None:
            touched = documents.sample[np.isin(self.state.rows, self.unsure)]
            together = self.state.rows[np.isin(documents.sample, touched[touched >= 0])]
            self.unsure = np.intersect1d(np.union1d(self.unsure, together), alive)
