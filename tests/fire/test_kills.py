"""Processes killed before and after every commit step: the same bytes come out, and every step has its test."""

import ast
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mmdata
from mmdata.failpoint import POINTS, STEPS, TRAINING_STEPS
from tests.fire.runs import Site, check_whole, children_of, finish, write_site
from tests.fire.seeds import GAUNTLET, seeds

STORE_ONLY = {"before-put", "after-put"}  # passed by object stores: see test_s3.py
WORKER = (
    "temp",
    "write",
    "tar",
    "sync",
    "link",
    "folder",
    "unlink",
    "payload",
    "columns",
    "state",
    "record",
    "media",
    "pass",
    "unit",
)
WORKER_POINTS = [point for point in POINTS if point.split("-", 1)[1] in WORKER]
if not GAUNTLET:  # before one step and after the next: at the points between, W12 kills the driver, which does the work itself
    WORKER_POINTS = [point for place, point in enumerate(WORKER_POINTS) if place % 4 in (0, 3)]
DRIVER_POINTS = [point for point in POINTS if point not in STORE_ONLY]
LATER = range(2, 7)  # a seed above 0 kills at a later pass of the same point


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Commands run two at a time: each waits for its own child."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


def points_in_code() -> set[object]:
    """Return the names in all calls `step("...")`; local.py calls it `point` where a put passes by."""
    found: set[object] = set()
    for path in Path(mmdata.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"step", "point"} and len(node.args) == 1:
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: a step is named by a literal"
                found.add(node.args[0].value)
    return found


def test_the_registry_is_what_the_code_passes() -> None:
    assert points_in_code() == set(STEPS) | set(TRAINING_STEPS)


def test_a_point_that_is_not_listed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdata.failpoint import failpoint

    monkeypatch.setenv("FAILPOINT", "any:1:raise")
    with pytest.raises(ValueError, match="no fail-point is called `before-nothing`"):
        failpoint("before-nothing")


def worker_killed(home: Path, undisturbed: Site, point: str, nth: int) -> bool:
    """Kill a worker at a point, once; the same call goes on. Return whether the point was passed so often."""
    site = write_site(home, undisturbed.server, undisturbed.digest)
    once = home / "killed"
    workers = ("--workers", "2" if GAUNTLET else "1")  # each costs seconds of start; W13 has two in any case
    done = site.run(*workers, executor="processes", FAILPOINT=f"{point}:{nth}:kill:{once}")
    if done.returncode == -signal.SIGKILL:  # the driver passes most points too: it was the first to get there
        done = site.run(*workers, executor="processes")
    assert done.returncode == 0, done.stderr
    check_whole(site)
    return once.exists()


def driver_killed(home: Path, undisturbed: Site, point: str, nth: int) -> bool:
    """Kill the driver, which does the work itself, at a point; then run again. Return whether it was passed so often."""
    site = write_site(home, undisturbed.server, undisturbed.digest)
    killed = site.run(FAILPOINT=f"{point}:{nth}:kill")
    if killed.returncode != 0:
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = site.run()
        assert again.returncode == 0, again.stderr
    check_whole(site)
    return killed.returncode != 0


def every_point(
    tmp_path: Path, pool: ThreadPoolExecutor, kill: Callable[[Path, Site, str, int], bool], points: list[str],
    seed: int, undisturbed: Site,
) -> str:  # fmt: skip
    rng = random.Random(seed)
    nths = {point: 1 if seed == 0 else rng.choice(LATER) for point in points}
    jobs = {point: pool.submit(kill, tmp_path / point, undisturbed, point, nth) for point, nth in nths.items()}
    reached = {point: job.result() for point, job in jobs.items()}
    if seed == 0:
        assert all(reached.values()), [point for point, there in reached.items() if not there]
    return f"{sum(reached.values())}/{sum(reached.values())} kills byte-identical"


@pytest.mark.fault(*(f"W{number:02d}" for number in range(1, 12)))
@pytest.mark.parametrize("seed", seeds(1, 3))
def test_W01_to_W11_a_worker_killed_before_and_after_every_step(
    tmp_path: Path, undisturbed: Site, pool: ThreadPoolExecutor, seed: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("figure", every_point(tmp_path, pool, worker_killed, WORKER_POINTS, seed, undisturbed))


@pytest.mark.fault("W12", "P05")
@pytest.mark.parametrize("seed", seeds(1, 3))
def test_W12_the_driver_killed_before_and_after_every_step(
    tmp_path: Path, undisturbed: Site, pool: ThreadPoolExecutor, seed: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("figure", every_point(tmp_path, pool, driver_killed, DRIVER_POINTS, seed, undisturbed))


@pytest.mark.fault("W12")
@pytest.mark.parametrize("block", seeds(1, 30))
def test_W12_the_driver_killed_at_seeded_moments(
    tmp_path: Path, undisturbed: Site, pool: ThreadPoolExecutor, block: int, record_property: Callable[[str, object], None]
) -> None:
    """The plan passes over 500 points before and after commit steps; the seed says at which of them."""
    moments = random.Random(block).sample(range(1, 500), 12 if GAUNTLET else 6)
    jobs = [pool.submit(driver_killed, tmp_path / str(nth), undisturbed, "any", nth) for nth in moments]
    killed = [job.result() for job in jobs]
    assert all(killed)
    record_property("figure", f"{len(killed)}/{len(killed)} kills byte-identical")


@pytest.mark.fault("W13", "P01")
@pytest.mark.parametrize("seed", seeds(1, 5))
def test_W13_random_kills_of_any_process(
    tmp_path: Path, undisturbed: Site, seed: int, record_property: Callable[[str, object], None]
) -> None:
    site, rng = write_site(tmp_path, undisturbed.server, undisturbed.digest), random.Random(seed)
    kills, calls = 0, 0
    while True:
        process = site.start("--workers", "2", executor="processes")
        calls += 1
        while process.poll() is None and kills < (40 if GAUNTLET else 6):
            time.sleep(rng.uniform(0.3, 1.5))
            victims = [process.pid, *children_of(process.pid)]
            try:
                os.kill(rng.choice(victims), signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                continue
        done = finish(process)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL or "failed 4 times" in done.stderr, done.stderr
        assert calls < 100
    check_whole(site)
    record_property("figure", f"{kills} kills, {calls} calls, byte-identical")
