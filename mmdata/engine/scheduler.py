"""The driver's loop: which task is ready, which is done already, and what to do when one fails.

There is no barrier but the ones that a GlobalFilter and the sink need: a partition flows on as soon as its last segment is
done. What is in flight is bounded by the executor's slots and by estimated bytes. A failed task is tried again; when its
tries are used up the run stops, with everything written still valid.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import pyarrow as pa

from mmdata.engine.keys import keys_of, short
from mmdata.engine.passes import num_buckets, passes_of
from mmdata.engine.progress import Progress
from mmdata.engine.runstore import Generation, RunStore
from mmdata.engine.task import Executor, Job, Task, TaskReport
from mmdata.errors import ConfigError, MmdataError, PartitionError, RunError
from mmdata.plan import Segment
from mmdata.stages.verbs import Emit, Fold, GlobalFilter, Scatter

TRIES = 2
BYTES_IN_FLIGHT = 4 << 30
_ROW_BYTES = 100_000
_ROW_DEADLINE_S = 30.0  # the longest Crawl-delay that is obeyed
_POLL_S = 0.5


@dataclass
class Scheduler:
    """Runs the tasks of one generation. Without an executor it only finds out what is there."""

    run: RunStore
    generation: Generation
    job: Job
    executor: Executor | None
    progress: Progress | None = None
    heads: dict[int, dict[str, Any]] = field(default_factory=dict)
    missing: list[Task] = field(default_factory=list)
    reports: list[TaskReport] = field(default_factory=list)
    keys: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = keys_of(self.job)

    def segments(self) -> bool:
        """Bring every partition through all segments; return False when tasks are missing and none may run."""
        plan = self.generation.plan
        todo = list(range(len(plan.segments)))
        while todo:
            stop = next((i for i in todo[1:] if _opens_global(plan.segments[i])), todo[-1] + 1)
            block = [index for index in todo if index < stop]
            verdicts = self._global_verdicts(plan.segments[block[0]]) if _opens_global(plan.segments[block[0]]) else None
            if self.missing:
                return False
            self._flow(block, verdicts)
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
        stage_key = short([plan.sink.name, plan.sink.version, plan.sink.model_dump(mode="json"), plan.digest])
        key = self._input_key(stage_key)
        records = self._passes(step, key, f"sink {plan.sink.name}")
        if self.missing:
            return None
        files = {name: digest for record in records for name, digest in record["files"].items()}
        return key, self.run.read_pass(f"{key}/value"), files

    def _flow(self, block: list[int], verdicts: str | None) -> None:
        """Bring all partitions through neighbouring segments, each as fast as it can."""

        def first(unit: int) -> Task | None:
            return self._next_task(unit, block, 0, verdicts)

        ready = [task for unit in range(len(self.generation.partitions)) if (task := first(unit)) is not None]

        def after(task: Task, record: dict[str, Any]) -> Task | None:
            self.heads[task.unit] = record
            return self._next_task(task.unit, block, block.index(task.step) + 1, verdicts)

        self._work(ready, after)

    def _next_task(self, unit: int, block: list[int], place: int, verdicts: str | None) -> Task | None:
        """Return the next segment task of a partition that is not done, passing over those that are."""
        for index in block[place:]:
            task = self._segment_task(unit, index, verdicts if index == block[0] else None)
            record = self.run.record(task.key)
            if record is None:
                return task
            self.heads[unit] = record
            self._note(task, record, reused=True)
        return None

    def _segment_task(self, unit: int, index: int, verdicts: str | None) -> Task:
        segment, partition = self.generation.plan.segments[index], self.generation.partitions[unit]
        head = self.heads.get(unit)
        own = [self.keys[step.index] for step in segment.steps]
        places = [step.index for step in segment.steps]
        key = short(["segment", own, places, partition.ident, head["result"] if head else self.keys[-1], verdicts])
        return Task(
            self.job, "segment", index, unit, key,
            inputs={} if head is None else {unit: head["key"]}, verdicts=verdicts,
            cpus=segment.resources.cpus, gpus=segment.resources.gpus, holds_model=segment.holds_model,
            bytes=partition.rows * _ROW_BYTES, label=segment.label, deadline_s=3600 + partition.rows * _ROW_DEADLINE_S,
        )  # fmt: skip

    def _global_verdicts(self, segment: Segment) -> str | None:
        step = segment.steps[0]
        key = self._input_key(self.keys[step.index])
        passes = passes_of(self.generation.plan, step.index)
        self._passes(step.index, key, step.stage.name)
        buckets = num_buckets(len(self.generation.partitions))
        return f"{key}/{len(passes) - 1}/{buckets}"

    def _input_key(self, stage_key: str) -> str:
        """Key a GlobalFilter or Sink by the digests of what it reads: new responses make it anew."""
        parts = self.generation.partitions
        return short([stage_key, [(parts[u].number, parts[u].ident, self.heads[u]["result"]) for u in sorted(self.heads)]])

    def _passes(self, step: int, key: str, label: str) -> list[dict[str, Any]]:
        """Run the passes of a step one after the other; return the records of the last."""
        records: list[dict[str, Any]] = []
        for index, this in enumerate(passes_of(self.generation.plan, step)):
            tasks = [self._pass_task(step, index, unit, key, label) for unit in range(self._units(this, key))]
            if isinstance(this, Emit) and self.progress is not None:
                self.progress.total += len(tasks)  # known only now
            records, todo = self._done_passes(tasks, this)

            def after(task: Task, record: dict[str, Any], found: list[dict[str, Any]] = records) -> None:
                found.append(record)

            self._work(todo, after)
            if self.missing:
                return []
            if isinstance(this, Fold):
                self._merge(this, key, index, len(tasks))
                if self.missing:
                    return []
        return records

    def _done_passes(self, tasks: list[Task], this: object) -> tuple[list[dict[str, Any]], list[Task]]:
        """Return the records of what is done, and the tasks that are not."""
        records, todo = [], []
        for task in tasks:
            record = self._pass_record(task, this)
            if record is None:
                todo.append(task)
            else:
                records.append(record)
                self._note(task, record, reused=True)
        return records, todo

    def _units(self, this: object, key: str) -> int:
        if isinstance(this, Scatter):
            return len(self.generation.partitions)
        if isinstance(this, Emit):
            return this.count(self.run.read_pass(f"{key}/value"))
        return num_buckets(len(self.generation.partitions))

    def _pass_task(self, step: int, index: int, unit: int, key: str, label: str) -> Task:
        scatter = isinstance(passes_of(self.generation.plan, step)[index], Scatter)
        inputs = {unit: self.heads[unit]["key"]} if scatter else {}
        return Task(self.job, "pass", step, unit, key, pass_index=index, inputs=inputs, label=label)

    def _pass_record(self, task: Task, this: object) -> dict[str, Any] | None:
        name = f"{task.key}/{task.pass_index}/{task.unit}"
        if isinstance(this, Emit):
            path = f"passes/{name}.json"
            return self.run.read_json(path) if self.run.store.exists(path) else None
        return {"key": task.key, "pass": name} if self.run.has_pass(name) else None

    def _merge(self, this: Fold, key: str, index: int, num: int) -> None:
        if self.run.has_pass(f"{key}/value"):
            return
        if self.executor is None:  # only looking: nothing is written
            self.missing.append(self._pass_task(len(self.generation.plan.stages), index, 0, key, "fold"))
        else:
            parts = [self.run.read_pass(f"{key}/{index}/{unit}") for unit in range(num)]
            self.run.write_pass(f"{key}/value", [this.merge(parts)])

    def _work(self, ready: Iterable[Task], after: Callable[[Task, dict[str, Any]], Task | None]) -> None:
        """Run tasks and those that follow from them, later segments first."""
        queue: list[tuple[int, int, Task]] = []
        for task in ready:
            heappush(queue, (-task.step, task.unit, task))
        if queue and self.executor is None:
            self.missing += [task for _, _, task in queue]
            return
        flying: dict[Future[TaskReport], Task] = {}
        tries: dict[str, int] = {}
        while queue or flying:
            self._launch(queue, flying)
            done, _ = wait(flying, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                task = flying.pop(future)
                report = self._result(future, task, tries)
                follow = replace(task) if report is None else after(task, report.record)
                if report is not None:
                    self.reports.append(report)
                    self._note(task, report.record, reused=False)
                if follow is not None:
                    heappush(queue, (-follow.step, follow.unit, follow))
            if self.progress is not None:
                self.progress.show()

    def _launch(self, queue: list[tuple[int, int, Task]], flying: dict[Future[TaskReport], Task]) -> None:
        assert self.executor is not None
        in_flight = sum(task.bytes for task in flying.values())
        while queue and len(flying) < self.executor.slots:
            task = queue[0][2]
            if flying and in_flight + task.bytes > BYTES_IN_FLIGHT:
                return
            heappop(queue)
            in_flight += task.bytes
            flying[self.executor.submit(task)] = task

    def _result(self, future: Future[TaskReport], task: Task, tries: dict[str, int]) -> TaskReport | None:
        """Return the report, null when the task is to be tried again, or stop the run."""
        try:
            return future.result()
        except (ConfigError, RunError):
            raise
        except (MmdataError, OSError, EOFError) as error:
            tries[task.name] = tries.get(task.name, 0) + 1
            if tries[task.name] >= TRIES:
                raise RunError(
                    f"{task.label}, partition {task.unit}: failed {TRIES} times; last: {error}",
                    hint="mend the cause and run the same command: finished tasks are not done again",
                ) from error
            if not isinstance(error, PartitionError):
                raise
            return None

    def _note(self, task: Task, record: dict[str, Any], *, reused: bool) -> None:
        if self.progress is not None:
            rows = sum(step.get("needed", 0) for step in record.get("steps", ()))
            dropped: dict[str, int] = {}
            for head in self.heads.values():
                for reason, num in head["dropped"].items():
                    dropped[reason] = dropped.get(reason, 0) + num
            self.progress.task(task.label, rows, dropped, reused=reused)


def _opens_global(segment: Segment) -> bool:
    return bool(segment.steps) and isinstance(segment.steps[0].stage, GlobalFilter)
