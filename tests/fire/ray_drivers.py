"""Drivers of a Ray cluster: processes of their own, as Ray ends the driver's process when its head is gone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import encode, write_yaml
from tests.corpus import draw
from tests.fire.ray_cluster import end, environment, wait_for
from tests.flow.small import corpus_digest

PLAN = """\
name: fire
source: {folder: {path: images, partition_rows: 2}}
stages:
  - measure: {}
  - STAGE: {}
  - keep: {column: width, at_least: 1}
  - dedupe: {by: text}
sink: {shards: {samples: 10}}
"""
PARTITIONS = 12
RUN_S = 150.0
Figure = Callable[[str, object], None]


class Home:
    """A folder with the pictures, a plan for each stage, and the digest of an undisturbed run of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, environment(folder)
        self.digests: dict[str, str] = {}
        self.count = 0
        (folder / "images").mkdir()
        for number in range(2 * PARTITIONS):
            (folder / f"images/{number:03}.png").write_bytes(encode(draw("red", "bar" if number % 2 else "square")))
            (folder / f"images/{number:03}.txt").write_text(f"text {number % 20}", encoding="utf-8")
        for stage in ("nap", "held"):
            write_yaml(folder, PLAN.replace("STAGE: {}", f"{stage}: {{}}"), f"{stage}.yaml")
        # Actors of two sizes that do not fit on one GPU beside one another.
        mixed = "held: {resources: {gpus: 0.6}}\n  - nap: {resources: {gpus: 1}}"
        write_yaml(folder, PLAN.replace("STAGE: {}", mixed), "mixed.yaml")

    def digest(self, stage: str) -> str:
        if stage not in self.digests:
            run = self.new_run()
            finish(self.start(stage, run, "--executor", "serial", env=self.environment))
            self.digests[stage] = corpus_digest(run)
        return self.digests[stage]

    def new_run(self) -> Path:
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, stage: str, run: Path, *options: str, env: dict[str, str], cwd: Path | None = None) -> subprocess.Popen[str]:
        code = "from mmdata.cli.main import main; main()"
        plan = str(self.folder / f"{stage}.yaml")
        command = [sys.executable, "-c", code, "run", plan, "--run-dir", str(run), *options]
        return start(command, env, cwd or self.folder)


def start(command: list[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Start a driver in a session of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(driver: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a driver and all that came of it; return what it said."""
    try:
        out, err = driver.communicate(timeout=RUN_S)
    finally:
        end(driver.pid)
    assert driver.returncode == code, err[-4000:]
    return out + err


def in_the_middle(driver: subprocess.Popen[str], run: Path, num: int = 3) -> None:
    """Wait until some tasks are done, and not all."""
    wait_for(lambda: driver.poll() is not None or len(list(run.glob("tasks/*.json"))) >= num, RUN_S, "some tasks are done")
    assert driver.poll() is None, driver.communicate()
    assert len(list(run.glob("tasks/*.json"))) < PARTITIONS
