"""Power loss at any moment of a run: from every state that the disk may then be in, the same plan makes the same corpus."""

import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from mmdata.clock import ManualClock
from mmdata.demo import DemoServer
from mmdata.engine import Runner, RunResult
from mmdata.engine.task import Task, TaskReport
from mmdata.errors import MmdataError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan, load_plan
from mmdata.report.status import status_text
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.storage import walk_temps
from tests.fire.crash_states import KEPT, LOST, SOME, Model, Op, Recorder, State, put_back, recorded
from tests.fire.plans import pictures
from tests.fire.runs import write_site
from tests.fire.seeds import GAUNTLET, seeds
from tests.flow.small import corpus_digest

OWN = re.compile(r"(facts|lease|probe)/.*|(funnel|status)\.json|corpus|(.*/)?\.tmp-.*")  # of one call, or made by `put`
ONCE, TWICE = seeds(24, 480), seeds(10, 171)
ROWS = 8


class Slow(InlineExecutor):
    """Takes long enough for a lease to beat."""

    def submit(self, task: Task) -> Future[TaskReport]:
        time.sleep(0.15)
        return super().submit(task)


@dataclass(frozen=True)
class Trace:
    """A run that was recorded: its plan, what it asked of the disk, what it came to; and a folder for its crash states."""

    plan: Plan
    ops: list[Op]
    kept: int
    digest: str
    files: State
    root: Path

    def recover(self, state: State) -> RunResult:
        """Put a state on the disk, look at what can be reached, run, and see that all is as if nothing had been."""
        put_back(state, self.root)
        whole = plain(common(self.files))
        partly = {name for name, data in plain(common(state)).items() if whole[name] != data}
        assert not partly, "reachable under their final names"
        if "manifest/1.json" in state:
            assert {name for name in self.files if name.startswith("corpora/")} <= set(state)
        result = self.run(self.root)
        assert (result.funnel["rows_in"], result.funnel["kept"], result.generation) == (ROWS, self.kept, 1)
        assert corpus_digest(self.root) == self.digest
        assert plain(common(read(self.root))) == whole
        assert not result.fresh or not list(walk_temps(self.root))
        return result

    def run(self, root: Path) -> RunResult:
        return Runner(self.plan, str(root), clock=ManualClock()).execute(InlineExecutor(), quiet=True)

    def killed(self, names: int) -> list[Op]:
        """Return what is asked of the disk by a run that is killed when it has made so many names, and by one that goes on."""
        recorder = Recorder(self.root.with_name("killed"))
        shutil.rmtree(recorder.root, ignore_errors=True)
        recorder.names = names
        with recorded(recorder):
            with pytest.raises(RunError, match="killed by a test"):
                self.run(recorder.root)
            recorder.names = None
            for path in walk_temps(recorder.root):  # the second run would find them to be of a dead process
                recorder.remove(path)
            self.run(recorder.root)
        return recorder.ops


def moment(number: int, num: int, ops: list[Op]) -> tuple[list[Op], str, Random]:
    """Return the calls up to a moment, what becomes of those that were not synced, and where chance comes from."""
    random = Random(number)
    until = round((number + random.random()) / num * len(ops))
    return ops[:until], (LOST, SOME, KEPT, SOME)[number % 4], random


def common(files: State) -> State:
    """Return the files that all calls of one plan have in common."""
    return {name: data for name, data in files.items() if not OWN.fullmatch(name)}


def plain(files: State) -> dict[str, object]:
    """Return files without what a record says of its call: how much of the work had been done before."""
    return {
        name: {**json.loads(data), "steps": None} if re.fullmatch(r"tasks/[^.]*\.json", name) else data
        for name, data in files.items()
    }


def read(root: Path) -> State:
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and path.parent.name != "corpus"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    home = tmp_path_factory.mktemp("crash")
    source = pictures(home / "i", [f"a picture of number {number % (ROWS - 1)}" for number in range(ROWS)], partition_rows=3)
    plan = Plan(name="fire", source=(source,), stages=(Measure(), Dedupe(by="text")), sink=Shards(samples=3))
    recorder = Recorder(home / "recorded")
    with recorded(recorder):
        result = Runner(plan, str(recorder.root)).execute(Slow())
    link = Op("symlink", "corpus", str((recorder.root / "corpus").readlink()))  # the one change that no `Disk` makes
    place = next(number for number, op in enumerate(recorder.ops) if op.other == "funnel.json")
    ops = [*recorder.ops[: place - 2], link, *recorder.ops[place - 2 :]]
    return Trace(plan, ops, result.funnel["kept"], corpus_digest(recorder.root), read(recorder.root), home / "run")


@pytest.mark.fault("W35")
def test_the_model_knows_the_whole_folder(trace: Trace, record_property: Callable[[str, object], None]) -> None:
    state = Model.after(trace.ops).crash(KEPT, Random(0))
    link = state.pop("corpus")
    assert state == trace.files
    kinds = {op.other.partition("/")[0] for op in trace.ops if op.kind == "replace"}
    assert kinds == {"status.json", "lease", "funnel.json", "facts"}
    assert not trace.recover({**state, "corpus": link}).fresh
    record_property("figure", f"{len(trace.ops)} calls to the disk recorded, {len(ONCE)} + {len(TWICE)} crash states of them")


@pytest.mark.fault("W35")
def test_what_a_finished_run_has_said_survives_it(trace: Trace) -> None:
    last = max(number for number, op in enumerate(trace.ops) if op.path == "manifest" and op.kind == "sync folder")
    state = Model.after(trace.ops[: last + 1]).crash(LOST, Random(0))
    assert "manifest/1.json" in state
    assert not trace.recover(state).fresh


@pytest.mark.fault("W35")
@pytest.mark.parametrize("number", ONCE)
def test_every_state_recovers(trace: Trace, number: int) -> None:
    ops, policy, random = moment(number, len(ONCE), trace.ops)
    trace.recover(Model.after(ops).crash(policy, random))


@pytest.mark.fault("W35")
@pytest.mark.parametrize("number", TWICE)
def test_every_state_of_a_run_that_was_killed_and_run_again_recovers(trace: Trace, number: int) -> None:
    # The name is made, its folder is not synced: the moment at which the second run may take for safe what is not.
    names = 1 + number * sum(op.kind == "link" for op in trace.ops) // len(TWICE)
    ops, random = trace.killed(names), Random(number)
    until = random.randint(len(ops) // 2, len(ops)) if number % 2 else len(ops)
    trace.recover(Model.after(ops[:until]).crash(SOME if number % 3 == 2 else LOST, random))


@pytest.mark.fault("W35")
def test_every_state_recovers_where_new_folders_can_be_lost(trace: Trace) -> None:
    for number in (many := seeds(8, 160)):
        ops, _, random = moment(number, len(many), trace.ops)
        trace.recover(Model.after(ops, strict=True).crash(SOME, random))


@pytest.mark.fault("W35")
@pytest.mark.parametrize("content", [b"", b'{"format": 1, "run', bytes(40)][: 3 if GAUNTLET else 2])
@pytest.mark.parametrize("name", ["status.json", "lease/1.beat", "lease/1.end", "funnel.json", "facts/1.json"])
def test_a_put_that_was_cut_short_breaks_nothing(trace: Trace, name: str, content: bytes) -> None:
    half = Model.after(trace.ops[: len(trace.ops) // 2]).crash(KEPT, Random(0))
    put_back({**half, name: content}, trace.root)
    with suppress(MmdataError):  # a status that cannot be read is told, not a reason to fail otherwise
        status_text(str(trace.root))
    assert trace.recover({**half, name: content}).fresh
    assert not trace.recover({**trace.files, name: content}).fresh


@pytest.mark.fault("W35")
@pytest.mark.parametrize("left_out", ["sync", "sync folder"])
def test_the_states_would_show_a_missing_sync(trace: Trace, left_out: str) -> None:
    ops = [op for op in trace.ops if op.kind != left_out or op.path.startswith("tasks")]

    def recovers(number: int) -> bool:
        until, _, random = moment(number, 20, ops)
        try:
            trace.recover(Model.after(until).crash(LOST if number % 2 else SOME, random))
        except (AssertionError, MmdataError, FileNotFoundError):
            return False
        return True

    assert not all(recovers(number) for number in reversed(range(20)))


@pytest.mark.fault("W35")
def test_records_that_are_lost_are_made_again_as_they_were(tmp_path: Path, server: DemoServer) -> None:
    write_site(tmp_path, server)
    runner = Runner(load_plan(tmp_path / "plan.yaml", base=tmp_path), str(tmp_path / "run"), server.allow, clock=ManualClock())
    runner.execute(InlineExecutor(), quiet=True)
    before = plain(common(read(tmp_path / "run")))
    for folder in ("tasks", "passes", "manifest"):  # the column files are still there
        shutil.rmtree(tmp_path / "run" / folder)
    assert not any(runner.execute(InlineExecutor(), quiet=True).computed.values())
    assert plain(common(read(tmp_path / "run"))) == before
