"""A slow end and a fast start: what is in flight is bounded by slots and by bytes, and memory stays flat."""

import gc
import os
import time
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest
from fire_stages import Trap

from mmdata.engine import Executor
from mmdata.engine.flights import BYTES_A_SLOT
from mmdata.engine.task import Task, TaskReport
from mmdata.errors import PartitionError, RunError
from mmdata.executors import InlineExecutor, ProcessExecutor
from mmdata.plan import Plan
from mmdata.schema import BASE_FIELDS
from mmdata.stages.keep import Keep
from mmdata.stages.verbs import Resources, Source, SourceSlice
from tests.fire.plans import pictures, run_plan, trap_plan
from tests.fire.seeds import GAUNTLET
from tests.fire.test_leaks import NOISE_KIB, PARTITION_BYTES, Figure, write_empty
from tests.fire.watch import rss_kib


class Numbers(Source):
    """Rows that nobody reads."""

    name: ClassVar[str] = "numbers"

    partitions: int
    rows: int

    def label(self) -> str:
        return "numbers"

    def located(self, home: Path) -> "Numbers":
        return self

    def licences(self) -> dict[str, str]:
        return {}

    def identity(self) -> dict[str, object]:
        return {"rows": self.rows}

    def fields(self) -> tuple[pa.Field, ...]:
        return (*BASE_FIELDS, pa.field("score", pa.float32()))

    def scan(self) -> list[SourceSlice]:
        return [SourceSlice("", str(number), 0, self.rows) for number in range(self.partitions)]

    def read(self, part: SourceSlice) -> pa.Table:
        raise NotImplementedError


class Pretending:
    """Answers without working: the first segment at once, later ones after a pause."""

    slots = 8
    machines = 1

    def __init__(self, rows: int) -> None:
        self.rows, self._pool = rows, ThreadPoolExecutor(self.slots)

    def submit(self, task: Task) -> Future[TaskReport]:
        return self._pool.submit(self._answer, task)

    def cancel(self, task: Task) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._pool.shutdown()

    def _answer(self, task: Task) -> TaskReport:
        time.sleep(0.005 * task.step)
        counts = {"rows_in": self.rows, "made_by_splits": 0, "kept": self.rows, "dropped": {}, "split": 0, "by_stage": []}
        record = {"key": task.key, **counts, "partition": task.key, "label": task.label, "state": 2 * task.key + task.key[:16]}
        return TaskReport(task.key, {**record, "result": task.key, "before": task.inputs.get(task.unit)}, 0.005, "here")


class Noting:
    """Passes tasks on, and notes the most that were in flight at once: tasks, their bytes, partitions begun and not done.

    looks  at which of the partitions memory is looked at closely: what is garbage then is gone, as it else is at some time
    """

    def __init__(self, inner: Executor, last: int, looks: tuple[int, ...] = ()) -> None:
        self.inner, self.last, self.looks = inner, last, looks
        self.tasks = self.bytes = self.begun = 0
        self.memory: list[tuple[int, int]] = []
        self._flying: list[tuple[Task, Future[TaskReport]]] = []
        self._begun: set[int] = set()

    @property
    def slots(self) -> int:
        return self.inner.slots

    @property
    def machines(self) -> int:
        return self.inner.machines

    def submit(self, task: Task) -> Future[TaskReport]:
        self._begun -= {done.unit for done, future in self._flying if future.done() and done.step == self.last}
        self._begun.add(task.unit)
        self._flying = [*(item for item in self._flying if not item[1].done()), (task, self.inner.submit(task))]
        self.tasks, self.begun = max(self.tasks, len(self._flying)), max(self.begun, len(self._begun))
        self.bytes = max(self.bytes, sum(flying.bytes for flying, _ in self._flying))
        if task.step == 0 and tracemalloc.is_tracing():
            if len(self.memory) in self.looks:
                gc.collect()
            self.memory.append((tracemalloc.get_traced_memory()[0], rss_kib(os.getpid())))
        return self._flying[-1][1]

    def cancel(self, task: Task) -> None:
        self.inner.cancel(task)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.fault("P14")
@pytest.mark.parametrize(("rows", "most"), [(100, Pretending.slots), (4_000_000, 2)])  # of 8 GB each; 16 GiB may fly
def test_P14_a_slow_end_holds_the_start_back(tmp_path: Path, rows: int, most: int, record_property: Figure) -> None:
    num = 5_000 if GAUNTLET else 1_000
    slow = Keep(column="score", at_least=0, resources=Resources(cpus=2))
    plan = Plan(name="slow", source=(Numbers(partitions=num, rows=rows),), stages=(Keep(column="score", at_least=-1), slow))
    executor = Noting(Pretending(rows), last=1, looks=(num // 5, num - 1))
    tracemalloc.start()
    try:
        run_plan(plan, tmp_path / "run", executor)
    finally:
        tracemalloc.stop()
        executor.close()
    assert (executor.tasks, len(executor.memory)) == (most, num)
    assert executor.bytes <= BYTES_A_SLOT * executor.slots
    assert executor.begun <= 2 * most  # one in flight, one that has just landed
    (python, rss), (python_end, rss_end) = executor.memory[num // 5], executor.memory[-1]
    each = (python_end - python) / (0.8 * num)
    record_property("figure", (
        f"{num:,} partitions of {rows:,} rows: at most {executor.tasks} tasks of {executor.bytes / 1e9:.1f} GB in flight, "
        f"{executor.begun} partitions begun and not done; {each:.0f} bytes a partition, RSS {rss_end - rss:+,} KiB"
    ))  # fmt: skip
    assert each <= PARTITION_BYTES
    assert rss_end - rss <= NOISE_KIB + PARTITION_BYTES / 1024 * num


@pytest.mark.fault("P14")
def test_P14_workers_are_held_back_too(tmp_path: Path, record_property: Figure) -> None:
    num = 40
    plan = write_empty(tmp_path, 2 * num, 2)
    plan = plan.changed(stages=(*plan.stages, Trap(pause_s=0.05, resources=Resources(cpus=2))))
    executor = Noting(ProcessExecutor(2), last=1)
    result = run_plan(plan, tmp_path / "run", executor)
    executor.close()
    assert result.funnel["kept"] == 2 * num
    assert executor.tasks == 2
    assert executor.begun <= 4
    record_property("figure", f"{num} partitions: at most {executor.tasks} tasks in flight, {executor.begun} begun and not done")


class Keeping(InlineExecutor):
    """Keeps the first task it gets, and does nothing."""

    task: Task

    def submit(self, task: Task) -> Future[TaskReport]:
        self.task = task
        raise RunError("kept")


@pytest.mark.fault("P09")
@pytest.mark.parametrize("wait_s", [0.0, 0.005, 0.02, 0.1, 1.0])
def test_P09_a_run_that_ends_while_a_worker_starts_does_not_wait_for_its_task(tmp_path: Path, wait_s: float) -> None:
    plan, keeping = trap_plan(pictures(tmp_path / "i", ["a picture"]), Trap(pause_s=60)), Keeping()
    with pytest.raises(RunError, match="kept"):
        run_plan(plan, tmp_path / "run", keeping)
    executor = ProcessExecutor(1)
    future = executor.submit(keeping.task)
    time.sleep(wait_s)
    since = time.monotonic()
    executor.cancel(keeping.task)
    executor.close()
    with pytest.raises(PartitionError, match="cancelled"):
        future.result(0)
    assert time.monotonic() - since < 20
