"""The driver's loop: which task is ready, which is done already, and what to do when one fails.

There is no barrier but the ones that a GlobalFilter and the sink need: a partition flows on as soon as its last segment is
done. What is in flight is bounded by the executor's slots and by estimated bytes. An attempt that fails, or is past its
deadline, is made again, with care from the second on; a partition whose tries are used up is given up if the budget
allows it, and else the run stops, with everything written still valid.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from mmdata.clock import Clock
from mmdata.engine.flights import Flights
from mmdata.engine.keys import keys_of, short
from mmdata.engine.ledger import Ledger, several
from mmdata.engine.passes import (
    close_round,
    folder_of,
    left_out,
    num_parts,
    num_scattered,
    num_sorted,
    passes_of,
    value_name,
)
from mmdata.engine.progress import Progress
from mmdata.engine.runstore import Generation, RunStore
from mmdata.engine.task import Executor, Job, Task, TaskReport
from mmdata.errors import ConfigError, MmdataError, RunError
from mmdata.plan import Budget, Segment, Step, written
from mmdata.schema import NOTE, PAYLOAD_COLUMN
from mmdata.stages.passes import Emit, Fold, Judge, Round, Scatter, Share, Sort
from mmdata.stages.verbs import GlobalFilter, Resources

TRIES = 4
_START_S = 600.0  # a worker's start and the opening of its models
_CARE = 8  # a search for rows that end their worker makes a task this much longer, at most
_MEDIA_BYTES, _COLUMN_BYTES = 100_000, 2_000  # what a row of a segment that writes media, or columns alone, may take


@dataclass
class Scheduler:
    """Runs the tasks of one generation. Without an executor it only finds out what is there.

    ledger    the newest record of every partition
    failed    partitions that were given up, and why
    computed  rows computed by step      kept  rows needed of steps whose tasks were done before
    attempts_failed  how many attempts of this call ended badly
    verdicts  where the verdicts of each GlobalFilter lie, by step      passes  keys of what passes wrote
    notes     what GlobalFilters say of their work, by step
    times     key, label, seconds and worker of every task done by this call
    found     keys of the records that were there already, if somebody wants to know
    held      raises when this call no longer may write to the run folder
    """

    run: RunStore
    generation: Generation
    job: Job
    executor: Executor | None
    progress: Progress | None = None
    budget: Budget = field(default_factory=Budget)
    clock: Clock = field(default_factory=Clock)
    held: Callable[[], None] = lambda: None
    ledger: Ledger = field(default_factory=Ledger)
    missing: list[Task] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    computed: Counter[int] = field(default_factory=Counter)
    kept: Counter[int] = field(default_factory=Counter)
    attempts_failed: int = 0
    verdicts: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    times: list[dict[str, Any]] = field(default_factory=list)
    passes: set[str] = field(default_factory=set)
    found: set[str] | None = None
    keys: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = keys_of(self.job)

    @property
    def heads(self) -> dict[int, dict[str, Any]]:
        """The newest record of every partition."""
        return self.ledger.heads

    def segments(self) -> bool:
        """Bring every partition through all segments; return False when tasks are missing and none may run."""
        plan = self.generation.plan
        todo = list(range(len(plan.segments)))
        while todo:
            stop = next((i for i in todo[1:] if _waits(plan.segments[i])), todo[-1] + 1)
            block = [index for index in todo if index < stop]
            for index in block:
                if _opens_global(plan.segments[index]):
                    self._find_verdicts(plan.segments[index].steps[0])
            if self.missing:
                return False
            self._flow(block)
            if self.missing:
                return False
            todo = todo[len(block) :]
        return True

    def sink(self) -> tuple[str, pa.Table, dict[str, str]] | None:
        """Run the sink's passes; return its key, the folded value and the digests of its files."""
        plan = self.generation.plan
        assert plan.sink is not None
        step = len(plan.stages)
        # The manifest of a corpus names its plan, so another plan makes another corpus, though its samples be the same.
        asked = plan.sink.model_dump(mode="json", exclude=plan.sink.not_in_key)
        # Numbers of several profiles are told of in it, too.
        mixed = several(self.heads.values())
        stage_key = short([plan.sink.name, plan.sink.version, asked, plan.digest, *([mixed] if mixed else [])])
        key = self._input_key(stage_key)
        records = self._passes(step, key, f"sink {plan.sink.name}")
        if self.missing:
            return None
        files = {name: digest for record in records for name, digest in record["files"].items()}
        return key, self.run.read_pass(f"{key}/value"), files

    def _flow(self, block: list[int]) -> None:
        """Bring all partitions through neighbouring segments, each as fast as it can."""

        def ready() -> Iterator[Task]:
            for unit in range(len(self.generation.partitions)):
                if unit not in self.failed and (task := self._next_task(unit, block, 0)) is not None:
                    yield task

        def after(task: Task, record: dict[str, Any]) -> Task | None:
            self.ledger.settle(task.unit, record)
            return self._next_task(task.unit, block, block.index(task.step) + 1)

        self._work(ready(), after)

    def _next_task(self, unit: int, block: list[int], place: int) -> Task | None:
        """Return the next segment task of a partition that is not done, passing over those that are."""
        for index in block[place:]:
            task = self._segment_task(unit, index)
            record = self.run.record(task.key)
            if record is None:
                return task
            self.ledger.settle(unit, record)
            self._note(task, record, None)
            if self.found is not None:
                self.found.add(task.key)
        return None

    def _segment_task(self, unit: int, index: int) -> Task:
        segment, partition = self.generation.plan.segments[index], self.generation.partitions[unit]
        verdicts = self.verdicts[segment.steps[0].index] if _opens_global(segment) else None
        head = self.heads.get(unit)
        own = [self.keys[step.index] for step in segment.steps]
        places = [step.index for step in segment.steps]
        asked = [self.generation.retries[key] for key in own if key in self.generation.retries]
        before = head["result"] if head else self.keys[-1]
        key = short(["segment", own, places, partition.ident, before, verdicts, *([asked] if asked else [])])
        seconds = sum(step.stage.resources.deadline_s(partition.rows) for step in segment.steps)
        return Task(
            self.job, "segment", index, unit, key,
            inputs={} if head is None else {unit: head["key"]}, verdicts=verdicts,
            cpus=segment.resources.cpus, gpus=segment.resources.gpus, holds_model=segment.holds_model,
            bytes=partition.rows * _row_bytes(segment), label=segment.label, deadline_s=_START_S + 2 * seconds,
        )  # fmt: skip

    def _find_verdicts(self, step: Step) -> None:
        """Run the passes of a GlobalFilter, if they are to be run, and note where its verdicts lie."""
        passes = passes_of(self.generation.plan, step.index)
        if isinstance(passes[0], Judge):  # it looks at each partition by itself
            self.verdicts[step.index] = f"{self.keys[step.index]}/0"
            return
        key = self._input_key(self.keys[step.index])
        self._passes(step.index, key, step.stage.name)
        if not self.missing:
            parts = () if isinstance(passes[-1], Judge) else (num_parts(passes[-1], len(self.generation.partitions)),)
            self.verdicts[step.index] = "/".join(map(str, (key, len(passes) - 1, *parts)))
            if isinstance(passes[-1], Share):
                note = (self.run.read_pass(f"{key}/{len(passes) - 1}/0").schema.metadata or {}).get(NOTE)
                self.notes |= {} if note is None else {step.index: note.decode()}

    def _input_key(self, stage_key: str) -> str:
        """Key a GlobalFilter or Sink by the digests of what it reads: new responses make it anew."""
        parts = self.generation.partitions
        read = [(u, parts[u].number, parts[u].ident, self.heads[u]["result"]) for u in sorted(self.heads)]
        return short([stage_key, len(parts), read])  # the files of passes are named by place, and buckets follow their number

    def _passes(self, step: int, key: str, label: str) -> list[dict[str, Any]]:
        """Run the passes of a step one after the other; return the records of the last."""
        self.passes.add(key)
        records: list[dict[str, Any]] = []
        for index, this in enumerate(passes_of(self.generation.plan, step)):
            tasks = [self._pass_task(step, index, unit, key, label) for unit in range(self._units(step, index, key))]
            if isinstance(this, Sort | Emit | Round) and self.progress is not None:
                self.progress.total += len(tasks)  # known only now
            records, todo = self._done_passes(tasks)

            def after(task: Task, record: dict[str, Any], found: list[dict[str, Any]] = records) -> None:
                found.append(record)

            self._work(iter(todo), after)
            if self.missing:
                return []
            if isinstance(this, Fold | Round):
                self._merge(this, step, index, key)
                if self.missing:
                    return []
        return records

    def _done_passes(self, tasks: list[Task]) -> tuple[list[dict[str, Any]], list[Task]]:
        """Return the records of what is done, and the tasks that are not."""
        records, todo = [], []
        for task in tasks:
            record = self._pass_record(task)
            if record is None:
                todo.append(task)
            else:
                records.append(record)
                self._note(task, record, None)
        return records, todo

    def _units(self, step: int, index: int, key: str) -> int:
        passes = passes_of(self.generation.plan, step)
        this = passes[index]
        if isinstance(this, Judge) or left_out(passes, index, key, self.run):
            return 0
        if isinstance(this, Scatter | Round):
            return num_scattered(self.generation)
        if isinstance(this, Emit):
            return this.count(self.run.read_pass(f"{key}/value"))
        if isinstance(this, Sort):
            num = num_sorted(this, self.run.read_pass(f"{key}/value"), self.run, self.generation)
            emits = (self._pass_task(step, index + 1, unit, key, "") for unit in range(self._units(step, index + 1, key)))
            # Where all final files are there, nothing needs to be sorted for them, or to be there still.
            return num if num and any(self._pass_record(task) is None for task in emits) else 0
        return num_parts(this, len(self.generation.partitions))

    def _pass_task(self, step: int, index: int, unit: int, key: str, label: str) -> Task:
        this = passes_of(self.generation.plan, step)[index]
        reads = isinstance(this, Scatter | Round)
        inputs = {unit: self.heads[unit]["key"]} if reads and unit in self.heads else {}  # a partition given up has no rows
        stages = self.generation.plan.stages
        held = stages[step].resources if step < len(stages) and isinstance(this, Share) else Resources()
        return Task(
            self.job, "pass", step, unit, key, pass_index=index, inputs=inputs, label=label, cpus=held.cpus, gpus=held.gpus
        )

    def _pass_record(self, task: Task) -> dict[str, Any] | None:
        passes = passes_of(self.generation.plan, task.step)
        name = f"{task.key}/{folder_of(passes, task.pass_index)}/{task.unit}"
        if isinstance(passes[task.pass_index], Emit):
            path = f"passes/{name}.json"
            return self.run.read_json(path) if self.run.store.exists(path) else None
        return {"key": task.key, "pass": name} if self.run.has_pass(name) else None

    def _merge(self, this: Fold | Round, step: int, index: int, key: str) -> None:
        name = value_name(key, index) if isinstance(this, Round) else f"{key}/value"
        if self.run.has_pass(name):
            return
        if self.executor is None:  # only looking: nothing is written
            self.missing.append(self._pass_task(step, index, 0, key, "fold"))
        elif isinstance(this, Round):
            close_round(passes_of(self.generation.plan, step), index, key, self.run, num_scattered(self.generation))
        else:
            parts = [self.run.read_pass(f"{key}/{index}/{unit}") for unit in range(self._units(step, index, key))]
            self.run.write_pass(name, [this.merge(parts)])

    def _work(self, ready: Iterable[Task], after: Callable[[Task, dict[str, Any]], Task | None]) -> None:
        """Run tasks and those that follow from them, later segments first."""
        if self.executor is None:
            self.missing += ready
            return
        flights = Flights(self.executor, iter(ready), self.progress, self.clock)
        try:
            while flights.launch():
                self.held()
                for task, outcome in flights.landed():
                    self._take(task, outcome, flights, after)
                if self.progress is not None:
                    self.progress.show()
        finally:
            flights.end()

    def _take(self, task: Task, outcome: TaskReport | Exception, flights: Flights, after: Callable[..., Task | None]) -> None:
        """Take in what came of an attempt: note it and go on, try again, give the partition up, or stop the run."""
        if isinstance(outcome, TaskReport):
            follow = after(task, outcome.record)
            self._note(task, outcome.record, outcome)
            self.ledger.check(self.budget)
        else:
            follow = self._retry(task, outcome, flights)
        if follow is not None:
            flights.push(follow)

    def _retry(self, task: Task, error: Exception, flights: Flights) -> Task | None:
        if isinstance(error, ConfigError | RunError) or not isinstance(error, MmdataError | OSError | EOFError):
            raise error
        self.attempts_failed += 1
        flights.tries[task.name] += 1
        again = flights.tries[task.name] < TRIES
        if self.progress is not None:
            self.progress.failed(task, str(error), again=again)
        if again:
            deadline = task.deadline_s * (1 if task.careful or task.kind == "pass" else _CARE)
            return replace(task, careful=task.kind == "segment", deadline_s=deadline)
        unit = "partition" if task.kind == "segment" else "unit"
        message = f"{task.label}, {unit} {task.unit}: failed {TRIES} times; last: {error}"
        if task.kind == "segment" and len(self.failed) < self.budget.failed_partitions:
            self.failed[task.unit] = message
            self.ledger.forget(task.unit)
            return None
        allowed = self.budget.failed_partitions if task.kind == "segment" else 0  # nobody can go on without a pass
        raise RunError(
            message if not allowed else f"budget: more than {allowed} partitions failed; the last: {message}",
            hint="mend the cause and run the same command: finished tasks are not done again",
        ) from error

    def _note(self, task: Task, record: dict[str, Any], report: TaskReport | None) -> None:
        """Count what a task did, or what it had done before."""
        for step in record.get("steps", ()):
            self.kept[step["index"]] += step["needed"] if report is None else 0
            self.computed[step["index"]] += 0 if report is None else step["computed"]
        if report is not None:
            facts = {"task": task.name, "label": task.label, "seconds": round(report.seconds, 3), "worker": report.worker}
            self.times.append(facts)
        if self.progress is not None:
            self.progress.done(task, record, report)


def _row_bytes(segment: Segment) -> int:
    writes_media = any(field.name == PAYLOAD_COLUMN for step in segment.steps for field in written(step.stage))
    return _MEDIA_BYTES if writes_media else _COLUMN_BYTES


def _opens_global(segment: Segment) -> bool:
    return bool(segment.steps) and isinstance(segment.steps[0].stage, GlobalFilter)


def _waits(segment: Segment) -> bool:
    """Say whether no partition may begin with a segment before all are done with the one before."""
    first = segment.steps[0].stage if segment.steps else None
    return isinstance(first, GlobalFilter) and not isinstance(first.passes()[0], Judge)
