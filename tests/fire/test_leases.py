"""Two drivers, zombies, signals and clocks: one writer at a time, and time is only what passes."""

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest

from mmdata.clock import ManualClock
from mmdata.demo import DemoServer
from mmdata.engine import Task, TaskReport
from mmdata.engine.lease import STILL_S, Lease
from mmdata.engine.scheduler import TRIES
from mmdata.errors import BusyError
from mmdata.executors import InlineExecutor, ProcessExecutor
from mmdata.storage import open_store
from tests.fire.plans import pictures, run_plan, trap_plan
from tests.fire.runs import Site, check_whole, children_of, finish, wait_for, write_site
from tests.fire.seeds import seeds
from tests.flow.small import corpus_digest

VARIES = ("lease", "status.json", "facts")
STEPS_IN_TIME = """
import random, time
_real, _random = time.time, random.Random(3)
_offset = 0.0
def wrong():
    global _offset
    if _random.random() < 0.2:
        _offset = _random.choice([86400, -86400, 262, -262, 0])
    return _real() + _offset
time.time = wrong
"""


def stamps(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {name: path.stat().st_mtime_ns for path in files if not (name := str(path.relative_to(folder))).startswith(VARIES)}


@pytest.mark.fault("W19")
@pytest.mark.parametrize("seed", seeds(2, 20))
def test_W19_two_runs_at_once(tmp_path: Path, server: DemoServer, seed: int) -> None:
    site, rng = write_site(tmp_path, server), random.Random(seed)
    first = site.start(executor="inline")
    time.sleep(rng.uniform(0, 1.0))
    second = site.start(executor="inline")
    done = [finish(first), finish(second)]
    codes = sorted(each.returncode for each in done)
    assert codes in ([0, 4], [0, 0]), [each.stderr for each in done]  # both only when one came after the other
    for each in done:
        assert each.returncode == 0 or "another run" in each.stderr
    check_whole(site)


@pytest.mark.fault("W20")
def test_W20_a_writer_stopped_past_its_lease_is_fenced_off(tmp_path: Path, server: DemoServer) -> None:
    site = write_site(tmp_path, server)
    zombie = site.start(FAILPOINT="before-columns:3:stop")
    lease = site.home / "run/lease"
    try:
        assert wait_for(lambda: zombie.poll() is not None or state_of(zombie.pid) == "T")
        other = site.run()
        assert other.returncode == 0, other.stderr
        before = stamps(site.home / "run")
        os.kill(zombie.pid, signal.SIGCONT)
        woken = finish(zombie)
    finally:
        zombie.kill()
    assert woken.returncode == 4
    assert "stood still for so long that another took over" in woken.stderr
    assert stamps(site.home / "run") == before
    assert (lease / "2").exists()
    check_whole(site)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]


class TwiceExecutor:
    """Gives every task to two workers at once, as speculation or a retry of the cluster's may."""

    slots = 1
    machines = 1

    def __init__(self) -> None:
        self.inner = ProcessExecutor(2)

    def submit(self, task: Task) -> Future[TaskReport]:
        both = [self.inner.submit(task), self.inner.submit(task)]
        first, second = (future.result(120) for future in both)
        assert first.record == second.record
        return both[0]

    def cancel(self, task: Task) -> None:
        self.inner.cancel(task)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.fault("W21")
def test_W21_the_same_task_twice_at_once_is_one_commit(tmp_path: Path) -> None:
    plan = trap_plan(pictures(tmp_path / "i", [f"picture {number}" for number in range(24)], partition_rows=8))
    once = run_plan(plan, tmp_path / "once", InlineExecutor())
    executor = TwiceExecutor()
    try:
        twice = run_plan(plan, tmp_path / "twice", executor)
    finally:
        executor.close()
    assert corpus_digest(tmp_path / "twice") == corpus_digest(tmp_path / "once")
    assert twice.funnel == once.funnel
    names = [{path.name for path in (tmp_path / home / "tasks").iterdir()} for home in ("once", "twice")]
    assert names[0] == names[1]


@pytest.mark.fault("W30")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 2])
def test_W30_signals_end_a_run_soon_and_say_so(tmp_path: Path, server: DemoServer, number: signal.Signals, times: int) -> None:
    site = write_site(tmp_path, server)
    process = site.start("--workers", "2", executor="processes")
    assert wait_for(lambda: any((tmp_path / "run/columns").glob("*/*")))
    workers = children_of(process.pid)
    started = time.monotonic()
    for _ in range(times):
        os.kill(process.pid, number)
        time.sleep(0.05)
    done = finish(process, 30)
    assert time.monotonic() - started < 10
    assert done.returncode == 128 + number
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
    again = site.run()
    assert again.returncode == 0, again.stderr
    check_whole(site)


@pytest.mark.fault("W34")
def test_W34_no_lease_goes_by_the_wall_clock(tmp_path: Path) -> None:
    store, clock = open_store(str(tmp_path)), ManualClock()
    with Lease(store, clock):
        clock.wall_now -= 86_400
        store.create("lease/1.dead", b"")
        with pytest.raises(BusyError, match="another run is at work"), Lease(store, _Patient(store)):
            pass
        clock.wall_now += 2 * 86_400
        with pytest.raises(BusyError, match="another run is at work"), Lease(store, _Patient(store)):
            pass
    with Lease(store, clock) as taken:
        assert taken.epoch == 2


class _Patient(ManualClock):
    """A clock whose owner waits for half a lease at a time, while the holder's counter goes on."""

    def __init__(self, store: object) -> None:
        super().__init__()

    def sleep(self, seconds: float) -> None:
        time.sleep(1.2)  # the holder beats once a second
        super().sleep(STILL_S / 2)


@pytest.mark.fault("W34")
def test_W34_a_run_under_a_wall_clock_that_jumps(tmp_path: Path, undisturbed: Site) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(STEPS_IN_TIME, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "clock"), os.environ["PYTHONPATH"]])
    site = write_site(tmp_path / "jumps", undisturbed.server, undisturbed.digest)
    started = time.monotonic()
    done = site.run_fresh(executor="processes", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 120
    check_whole(site)


@pytest.mark.fault("P02")
def test_P02_a_worker_that_stands_still_is_replaced(tmp_path: Path, server: DemoServer) -> None:
    site = write_site(tmp_path, server)
    done = site.run(executor="processes", FAILPOINT=f"after-payload:1:stop:{tmp_path / 'once'}")
    assert (tmp_path / "once").exists()
    assert done.returncode == 0, done.stderr
    check_whole(site)


@pytest.mark.fault("P01")
@pytest.mark.parametrize("seed", seeds(1, 3))
def test_P01_workers_killed_all_along(tmp_path: Path, seed: int) -> None:
    from fire_stages import Trap

    texts = [f"picture {number}" for number in range(400)]
    plan = trap_plan(pictures(tmp_path / "i", texts, partition_rows=20), Trap(pause_s=0.01))
    calm = run_plan(plan, tmp_path / "calm", InlineExecutor())
    rng, done, kills = random.Random(seed), threading.Event(), []
    executor = Counted(2)

    def kill() -> None:
        records = 0
        while not done.wait(1.0):
            now = len(list((tmp_path / "run/tasks").glob("*.json")))
            if now < records + 2 or executor.most_tries() == TRIES:  # the last try of a task is left alone
                continue
            records = now
            for pid in rng.sample(found := [pid for pid in children_of(os.getpid()) if is_worker(pid)], min(1, len(found))):
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run_plan(plan, tmp_path / "run", executor)
    finally:
        done.set()
        killer.join()
        executor.close()
    assert kills
    assert result.funnel == calm.funnel
    assert corpus_digest(tmp_path / "run") == corpus_digest(tmp_path / "calm")


class Counted(ProcessExecutor):
    """Knows how often each task that is not done was tried."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._tried: Counter[str] = Counter()
        self._done: set[str] = set()

    def submit(self, task: Task) -> Future[TaskReport]:
        self._tried[task.name] += 1
        future = super().submit(task)
        future.add_done_callback(lambda ended: self._done.add(task.name) if ended.exception() is None else None)
        return future

    def most_tries(self) -> int:
        return max((tried for name, tried in dict(self._tried).items() if name not in self._done), default=0)


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.fault("P16")
def test_P16_without_ray_the_bytes_are_the_same(tmp_path: Path, undisturbed: Site) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/ray.py").write_text("raise ImportError('no ray here')", encoding="utf-8")
    site = write_site(tmp_path / "b", undisturbed.server, undisturbed.digest)
    done = site.run_fresh(executor="processes", PYTHONPATH=os.pathsep.join([str(tmp_path / "gone"), os.environ["PYTHONPATH"]]))
    assert done.returncode == 0, done.stderr
    check_whole(site)
