"""`mmdata run` as a command on a plan that fetches 24 rows, for faults that end or stop processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mmdata.demo import DemoServer
from mmdata.demo.server import DATA
from mmdata.engine import RunStore
from mmdata.shards import open_corpus
from tests.conftest import write_yaml
from tests.fire.forks import Forked
from tests.flow.small import corpus_digest

PLAN = """\
name: fire
source:
  catalog: {file: catalog.yaml, entry: pairs, partition_rows: 8}
stages:
  - split_captions
  - download: {image_size: 32, limits: {total_s: 20, host_interval_s: 0, retries: 0}}
  - measure
  - keep: {column: width, at_least: 8}
  - dedupe: {by: raw_sha256}
sink:
  shards: {samples: 8, splits: {val: 0.2}, write: scatter, memory_mib: 1}
"""
MAIN = "from mmdata.cli.main import main; main()"


@dataclass(frozen=True)
class Site:
    """A folder with a plan, the server that its urls are on, and the bytes that it comes to."""

    home: Path
    server: DemoServer
    digest: str = ""

    def start(self, *extra: str, executor: str = "inline", run_dir: str = "run", **env: str) -> Forked:
        """Start the command in a child of the nursery, a session of its own."""
        return Forked(self._arguments(*extra, executor=executor, run_dir=run_dir), self.home, {**os.environ, **env})

    def run(self, *extra: str, executor: str = "inline", run_dir: str = "run", **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command so, to its end."""
        return finish(self.start(*extra, executor=executor, run_dir=run_dir, **env))

    def run_fresh(self, *extra: str, executor: str = "inline", **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a process that starts from nothing."""
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *self._arguments(*extra, executor=executor, run_dir="run")], cwd=self.home,
            env={**os.environ, **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return finish(process)

    def _arguments(self, *extra: str, executor: str, run_dir: str) -> list[str]:
        allow = self.server.allow[0]
        return ["run", "plan.yaml", "--run-dir", run_dir, "--executor", executor, "--allow", allow, *extra]


def write_site(home: Path, server: DemoServer, digest: str = "") -> Site:
    """Write the plan and its list: good rows, and two of each quick kind of bad ones."""
    home.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = {f"http://host-{row['host']:02d}.demo.localhost/{row['path']}": str(row["kind"]) for row in known}
    chosen, seen = [], dict.fromkeys(kinds.values(), 0)
    for line in (DATA / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        kind = kinds.get(json.loads(line)["url"])
        if kind is not None:
            seen[kind] += 1
            if seen[kind] <= (18 if kind == "clean" else 1):
                chosen.append(line)
    (home / "pairs.jsonl").write_text("\n".join(chosen[:24]) + "\n", encoding="utf-8")
    write_yaml(home, "entries:\n  pairs: {files: [pairs.jsonl], columns: {captions: [also]}}\n", "catalog.yaml")
    write_yaml(home, PLAN)
    return Site(home, server, digest)


def finish(process: subprocess.Popen[str] | Forked, seconds: float = 180) -> subprocess.CompletedProcess[str]:
    """Wait for a command; whatever it started is gone after that."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not done within {seconds} s: {err[-2000:]}") from None
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def check_whole(site: Site) -> None:
    """Assert that a finished run folder holds the undisturbed bytes, every row once, and nothing half done."""
    run_dir = site.home / "run"
    if site.digest:
        assert corpus_digest(run_dir) == site.digest
    assert not list(run_dir.rglob(".tmp-*"))
    run = RunStore(str(run_dir))
    funnel = run.manifest(run.finished()[-1])["funnel"]
    assert funnel["rows_in"] + funnel["made_by_splits"] == funnel["kept"] + sum(funnel["dropped"].values()) + funnel["split"]
    ids = open_corpus(str(run_dir / "corpus")).sample_ids
    assert len(set(ids.tolist())) == len(ids)


def children_of(pid: int) -> list[int]:
    """Return the processes below a process, as the kernel lists them."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *children_of(int(child))]
    except OSError:
        return found
    return found


def wait_for(condition: object, seconds: float = 60, step_s: float = 0.05) -> bool:
    """Wait until a condition (a function) holds; say whether it did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(step_s)
    return False
