"""What another does meanwhile: a driver between our look and our lease, the owner of the source, an attempt given up."""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from fire_stages import Trap

from mmdata.engine import Executor, Runner, RunResult, RunStore, Task
from mmdata.engine.gc import collect
from mmdata.engine.lease import Lease
from mmdata.engine.worker import run_task
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Budget, Plan
from mmdata.report.status import read_status, status_text
from mmdata.shards import verify
from mmdata.stages.download import Download
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Catalog
from mmdata.stages.verbs import Batch, Resources
from tests.conftest import encode
from tests.corpus import draw
from tests.fire.plans import pictures
from tests.fire.ray_drivers import start

ANY = Keep(column="width", at_least=1)


def plan_of(folder: Path, *stages: Keep | Trap, num: int = 12, budget: Budget | None = None, sink: bool = True) -> Plan:
    source = pictures(folder / "images", [f"text {number}" for number in range(num)], partition_rows=4)
    steps = (Measure(), *stages)
    return Plan(name="p", source=(source,), stages=steps, sink=Shards(samples=50) if sink else None, budget=budget or Budget())


def go(plan: Plan, folder: Path, executor: Executor | None = None, limit: int | None = None) -> RunResult:
    return Runner(plan, str(folder), limit=limit).execute(executor or InlineExecutor(), quiet=True)


@pytest.mark.fault("W19")
def test_W19_a_driver_that_came_and_went_between_our_look_and_our_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, ANY)
    go(plan_of(tmp_path), tmp_path / "run")
    enter, entered = Lease.__enter__, itertools.count()

    def late(self: Lease) -> Lease:
        if next(entered) == 0:
            other = go(plan, tmp_path / "run", limit=6)
            assert (other.generation, other.funnel["kept"]) == (2, 6)
        return enter(self)

    monkeypatch.setattr(Lease, "__enter__", late)
    ours = go(plan, tmp_path / "run")
    assert (ours.generation, ours.funnel["rows_in"], ours.funnel["kept"]) == (3, 12, 12)
    assert ours.corpus is not None
    assert verify(ours.corpus).samples == 12


@pytest.mark.fault("W22")
def test_W22_a_number_that_gc_freed_is_never_given_out_again(tmp_path: Path) -> None:
    first, second = plan_of(tmp_path), plan_of(tmp_path, ANY)
    for plan in (first, second, first):
        go(plan, tmp_path / "run")
    assert collect(str(tmp_path / "run")).gone == [2]
    third = go(plan_of(tmp_path, Keep(column="height", at_least=1)), tmp_path / "run")
    assert third.generation == 3
    collect(str(tmp_path / "run"))
    assert third.corpus is not None
    assert verify(third.corpus).whole


@pytest.mark.fault("W22")
def test_W22_gc_keeps_the_whole_when_a_part_was_looked_at_last(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    whole = go(plan, tmp_path / "run")
    go(plan, tmp_path / "run", limit=3)
    go(plan.until("measure"), tmp_path / "run")
    assert 1 in collect(str(tmp_path / "run")).kept
    assert whole.corpus is not None
    assert verify(whole.corpus).samples == 12


class Stopping(InlineExecutor):
    """Stops the run after some tasks."""

    def __init__(self, left: int) -> None:
        self.left = left

    def submit(self, task: Task):  # type: ignore[no-untyped-def]  # noqa: ANN201 - as the one it stands for
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().submit(task)


@pytest.mark.fault("W22")
def test_W22_gc_keeps_what_was_begun_unless_told(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, num=24)
    with pytest.raises(KeyboardInterrupt):
        go(plan, tmp_path / "run", Stopping(4))
    go(plan, tmp_path / "run", limit=2)
    columns = len(list((tmp_path / "run/columns").rglob("*.parquet")))
    assert collect(str(tmp_path / "run")).kept == [1, 2]
    assert len(list((tmp_path / "run/columns").rglob("*.parquet"))) == columns
    assert collect(str(tmp_path / "run"), unfinished=True).kept == [2]


class Adding(InlineExecutor):
    """Puts a picture into the source's folder after the first task."""

    def __init__(self, path: Path) -> None:
        self.path, self.num = path, 0

    def submit(self, task: Task):  # type: ignore[no-untyped-def]  # noqa: ANN201 - as the one it stands for
        self.num += 1
        if self.num == 2:
            self.path.write_bytes(encode(draw("blue", "bar")))
        return super().submit(task)


@pytest.mark.fault("W22")
def test_W22_a_source_that_changes_while_it_is_read_stops_the_run(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(RunError, match=r"images: it has changed since this run began[\s\S]*same command"):
        go(plan, tmp_path / "run", Adding(tmp_path / "images/00000a.png"))
    assert go(plan, tmp_path / "run").funnel["kept"] == 13


@pytest.mark.fault("W21")
def test_W21_an_attempt_that_was_given_up_and_commits_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, zombies = itertools.count(), itertools.count()
    tasks: list[Task] = []
    add = RunStore.add_columns

    def answer(self: Trap, batch: Batch) -> pa.Table:  # what comes back differs from call to call, as responses do
        return pa.table({"trapped": pa.array([next(numbers)] * batch.table.num_rows, pa.int64())})

    def late(self: RunStore, key: str, ident: str, number: int, table: pa.Table, round_: int = 0) -> None:
        if "trapped" in table.column_names and next(zombies) == 0:
            run_task(tasks[-1], confine=False)
        add(self, key, ident, number, table, round_)

    class Noting(InlineExecutor):
        def submit(self, task: Task):  # type: ignore[no-untyped-def]  # noqa: ANN202
            tasks.append(task)
            return super().submit(task)

    monkeypatch.setattr(Trap, "_work", answer)
    monkeypatch.setattr(RunStore, "add_columns", late)
    result = go(plan_of(tmp_path, Trap(), num=4), tmp_path / "run", Noting())
    assert (result.funnel["kept"], result.failed) == (4, {})


def test_a_budget_that_was_overdrawn_is_so_the_second_time_too(tmp_path: Path) -> None:
    budget = Budget(dropped_share=0.1, after_rows=10)
    plan = plan_of(tmp_path, Keep(column="width", at_least=100_000), budget=budget, sink=False)
    for _ in range(3):
        with pytest.raises(RunError, match="budget: 12 of 12 rows were dropped"):
            go(plan, tmp_path / "run")


def test_another_licence_makes_another_corpus(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    first = go(plan, tmp_path / "run")
    licensed = plan.changed(source=(plan.source[0].model_copy(update={"licence": "CC-BY-4.0"}),))
    second = go(licensed, tmp_path / "run")
    assert first.corpus != second.corpus
    assert second.corpus is not None
    assert json.loads(Path(second.corpus, "corpus.json").read_text(encoding="utf-8"))["licences"] == {"images": "CC-BY-4.0"}


def test_a_stage_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`keep` stands twice in the plan with the same fields"):
        go(plan_of(tmp_path, ANY, ANY), tmp_path / "run")


def test_the_status_of_a_run_that_was_killed_does_not_say_that_it_runs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Trap(pause_s=0.5, resources=Resources(cpus=2)))
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    code = (
        "import sys\nfrom pathlib import Path\nfrom mmdata.engine import Runner\nfrom mmdata.executors import InlineExecutor\n"
        "from mmdata.plan import Plan\nRunner(Plan.from_json(Path('plan.json').read_text()), 'run').execute(InlineExecutor())"
    )
    driver = start([sys.executable, "-c", code], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, tmp_path)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (tmp_path / "run/status.json").exists():
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(10)
    assert not read_status(str(tmp_path / "run"))["at_work"]
    assert "ended without a word" in status_text(str(tmp_path / "run"))


def test_an_empty_list_does_not_count_more_than_all_of_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,text\n", encoding="utf-8")
    (tmp_path / "catalog.yaml").write_text("entries:\n  x: {files: [list.csv]}\n", encoding="utf-8")
    source = Catalog(file=str(tmp_path / "catalog.yaml"), entry="x")
    plan = Plan(name="p", source=(source,), stages=(Download(image_size=64),), sink=Shards(samples=50))
    Runner(plan, str(tmp_path / "run")).execute(InlineExecutor())
    facts = read_status(str(tmp_path / "run"))["progress"]
    assert facts is not None
    assert facts["share"] <= 1
