"""Disks that are full or fail, and how soon a killed run is at work again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fire_stages import Trap

from mmdata.demo import DemoServer
from mmdata.engine import Runner
from mmdata.engine.gc import collect
from mmdata.executors import InlineExecutor
from tests.fire.plans import pictures, run_plan, trap_plan
from tests.fire.runs import Site, check_whole, wait_for, write_site
from tests.fire.seeds import GAUNTLET, seeds

NUM_DONE = 1000 if GAUNTLET else 100
RECOVER = """
import sys
from pathlib import Path
from mmdata.engine import Runner
from mmdata.engine.gc import collect
from mmdata.executors import open_executor
from mmdata.plan import load_plan
executor = open_executor("processes", 2)
Runner(load_plan(Path("plan.yaml")), "run").execute(executor, quiet=True)
executor.close()
"""


@pytest.mark.fault("W14")
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a small tmpfs needs root on Linux")
@pytest.mark.parametrize("seed", seeds(3, 12))
@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_W14_a_full_disk_at_each_write(tmp_path: Path, server: DemoServer, seed: int, executor: str) -> None:
    site = write_site(tmp_path, server)
    disk = site.home / "run"
    disk.mkdir()
    size = 40 + 30 * seed + random.Random(seed).randrange(20)  # KiB; the whole run takes some 600
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
    try:
        full = site.run(executor=executor)
        assert full.returncode == 1, full.stderr
        assert "disk is full" in full.stderr
        assert "run the same command again" in full.stderr
        assert not (disk / "manifest").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        freed = site.run(executor=executor)
        assert freed.returncode == 0, freed.stderr
        check_whole(site)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.fault("W33")
@pytest.mark.parametrize("seed", seeds(2, 50))
def test_W33_every_tenth_call_to_the_disk_fails(
    tmp_path: Path, undisturbed: Site, seed: int, record_property: Callable[[str, object], None]
) -> None:
    site = write_site(tmp_path / "run", undisturbed.server, undisturbed.digest)
    for calls in range(1, 30):
        done = site.run(executor="processes", MMDATA_FAULTS=f"{seed * 100 + calls}:0.1")
        if done.returncode == 0:
            break
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    collect(str(site.home / "run"))  # temporary files that could not be removed
    check_whole(site)
    record_property("figure", f"whole after {calls} calls")


@pytest.mark.fault("K07")
@pytest.mark.parametrize("seed", seeds(1, 5))
def test_K07_from_kill_to_the_first_new_row(
    many_done: Path, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """1,000 partitions are done, the driver is killed at its work, and the same command is given again."""
    shutil.copytree(many_done / "run", tmp_path / "run", symlinks=True)
    shutil.copy(many_done / "plan.yaml", tmp_path)
    columns = tmp_path / "run/columns"
    before = {path.name for path in columns.rglob("*.parquet")}
    killed = subprocess.Popen([sys.executable, "-c", RECOVER], cwd=tmp_path, start_new_session=True)
    assert wait_for((tmp_path / "run/lease/2").exists, 120, 0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    started = time.monotonic()
    again = subprocess.Popen([sys.executable, "-c", RECOVER], cwd=tmp_path, start_new_session=True)
    try:
        assert wait_for(lambda: any(path.name not in before for path in columns.rglob("*.parquet")), 120, 0.01)
        seconds = time.monotonic() - started
    finally:
        os.killpg(again.pid, signal.SIGKILL)
        again.wait()
    record_property("figure", f"{NUM_DONE} partitions done: {seconds:.1f} s")


@pytest.fixture(scope="module")
def many_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which many partitions are done, and a plan with some more."""
    home = tmp_path_factory.mktemp("many")
    source = pictures(home / "i", [f"picture {number}" for number in range(NUM_DONE + 20)], partition_rows=1)
    plan = trap_plan(source, Trap(pause_s=0.0))
    (home / "plan.yaml").write_text(plan.located().to_json(), encoding="utf-8")
    Runner(plan.until("trap"), str(home / "run"), limit=NUM_DONE).execute(InlineExecutor(), quiet=True)
    return home


def test_a_run_folder_copied_elsewhere_goes_on(tmp_path: Path) -> None:
    plan = trap_plan(pictures(tmp_path / "i", ["one", "two"]))
    run_plan(plan, tmp_path / "a", InlineExecutor())
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    assert not run_plan(plan, tmp_path / "b", InlineExecutor()).fresh
