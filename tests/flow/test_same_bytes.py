"""Same plan, same inputs, same seed: same bytes, on every executor, killed at any point or not."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from mmdata.demo import DemoServer
from mmdata.engine import Executor
from mmdata.executors import ProcessExecutor
from tests.fire.forks import Forked
from tests.fire.runs import finish
from tests.flow.conftest import Undisturbed
from tests.flow.small import corpus_digest, run_small, small_plan, write_small

# The undisturbed run reads media where they lie; here they are sorted first, which may change no byte either.
SCATTER = ("shards: {", "shards: {write: scatter, memory_mib: 1, ")


@pytest.mark.parametrize(("workers", "replace"), [(1, ()), (2, (SCATTER,))])
def test_processes_give_the_same_bytes(
    tmp_path: Path, server: DemoServer, undisturbed: Undisturbed, workers: int, replace: tuple[tuple[str, str], ...]
) -> None:
    executor = ProcessExecutor(workers)
    try:
        result = run_small(small_plan(tmp_path, *replace), tmp_path / "run", executor, server)
    finally:
        executor.close()
    assert corpus_digest(tmp_path / "run") == undisturbed.digest
    assert result.funnel == undisturbed.result.funnel


def test_ray_gives_the_same_bytes(tmp_path: Path, server: DemoServer, undisturbed: Undisturbed, ray_executor: Executor) -> None:
    result = run_small(small_plan(tmp_path, SCATTER), tmp_path / "run", ray_executor, server)
    assert corpus_digest(tmp_path / "run") == undisturbed.digest
    assert result.funnel == undisturbed.result.funnel


def run_command(folder: Path, server: DemoServer, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["run", "plan.yaml", "--run-dir", "run", "--executor", "inline", "--allow", server.allow[0]]
    return finish(Forked(command, folder, {**os.environ, **env}, "mmdata.models.openclip"))


# The small plan passes over 450 fail-points; the seed says at which of them the driver is killed. tests/fire has the rest.
KILLS = sorted(random.Random(7).sample(range(1, 450), 3))


@pytest.mark.parametrize("nth", KILLS)
def test_a_killed_driver_run_again_gives_the_same_bytes(
    tmp_path: Path, server: DemoServer, undisturbed: Undisturbed, nth: int
) -> None:
    write_small(tmp_path, *((SCATTER,) if nth % 2 else ()))
    killed = run_command(tmp_path, server, FAILPOINT=f"any:{nth}:kill")
    assert killed.returncode == -9, killed.stderr
    finished = run_command(tmp_path, server)
    assert finished.returncode == 0, finished.stderr
    assert corpus_digest(tmp_path / "run") == undisturbed.digest
    assert not list((tmp_path / "run").rglob(".tmp-*"))
