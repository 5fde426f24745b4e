"""The scheduler: no barrier that is not needed, and what is in flight is bounded by bytes."""

from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import pytest

from mmdata.clock import ManualClock
from mmdata.engine import Runner, Task, TaskReport, flights
from mmdata.engine.task import Job
from mmdata.engine.worker import run_task
from mmdata.engine.worker_cache import context_of
from mmdata.plan import Plan
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Resources
from mmdata.storage import open_store
from tests.conftest import encode
from tests.corpus import draw


class Lazy:
    """An executor of four slots that does one task whenever the scheduler has nothing more to hand it: the last it got."""

    slots = 4
    machines = 1

    def __init__(self) -> None:
        self.waiting: list[tuple[Task, Future[TaskReport]]] = []
        self.order: list[tuple[int, int]] = []
        self.most_bytes = 0

    def submit(self, task: Task) -> Future[TaskReport]:
        future: Future[TaskReport] = Future()
        self.waiting.append((task, future))
        self.most_bytes = max(self.most_bytes, sum(each.bytes for each, _ in self.waiting))
        return future

    def work(self) -> None:
        """Do the task that came last."""
        task, future = self.waiting.pop()
        self.order.append((task.step, task.unit))
        future.set_result(run_task(task))

    def cancel(self, task: Task) -> None:
        """Nothing runs between calls."""

    def close(self) -> None:
        """Nothing is open."""


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lazy:
    source = folder / "images"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.png").write_bytes(encode(draw("red", "bar")))
    stages = (Measure(), Keep(column="width", at_least=1, resources=Resources(cpus=2)))  # two segments
    plan = Plan(name="lazy", source=(Folder(path=str(source), partition_rows=1),), stages=stages)
    lazy = Lazy()

    def wait(flying: object, **_: object) -> tuple[set[object], set[object]]:
        futures = list(flying)  # type: ignore[call-overload]
        lazy.work()
        return {future for future in futures if future.done()}, set()

    monkeypatch.setattr(flights, "wait", wait)
    result = Runner(plan, str(folder / "run")).execute(lazy, quiet=True)
    assert result.funnel["kept"] == 6
    return lazy


def test_a_partition_flows_on_while_others_have_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = run(tmp_path, monkeypatch).order
    assert len(order) == 12
    first_second = order.index(next(item for item in order if item[0] == 1))
    assert first_second < 6  # a second segment ran before all first ones had


def test_bytes_in_flight_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    free = run(tmp_path / "a", monkeypatch).most_bytes
    one = free // 4
    monkeypatch.setattr(flights, "BYTES_A_SLOT", 2 * one // Lazy.slots)
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "b", monkeypatch).most_bytes == 2 * one


class Crowded(Lazy):
    """An executor that has room for a task when somebody says so, and then never does it."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[str] = []

    def begin(self) -> None:
        self.waiting[0][1].set_running_or_notify_cancel()

    def cancel(self, task: Task) -> None:
        self.cancelled.append(task.label)


def test_a_deadline_counts_from_when_a_worker_has_the_task() -> None:
    crowded, clock = Crowded(), ManualClock()
    task = Task(Job("", 0, "", "", (), ()), "segment", 0, 0, "key", deadline_s=60.0, label="measure")
    waiting = flights.Flights(crowded, iter([task]), None, clock)
    assert waiting.launch()
    clock.sleep(3600)
    assert waiting.landed() == []  # it waited for room all the time
    crowded.begin()
    assert waiting.landed() == []
    clock.sleep(59)
    assert waiting.landed() == []
    assert crowded.cancelled == []
    clock.sleep(2)
    assert waiting.landed() == []
    assert crowded.cancelled == ["measure"]
    clock.sleep(flights.CANCEL_S)
    ((lost, error),) = waiting.landed()
    assert lost is task
    assert str(error) == "measure: not done within 60 s"


def test_a_stage_that_holds_gpus_works_on_one(tmp_path: Path) -> None:
    for gpus, device in ((0.0, "cpu"), (0.5, "cuda"), (1.0, "cuda")):
        stage = Keep(column="width", at_least=1, resources=Resources(gpus=gpus))
        assert context_of(stage, open_store(str(tmp_path)), (), ExitStack()).device == device
