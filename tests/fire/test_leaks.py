"""What a run leaves behind, and what it holds while it runs: memory, descriptors, threads, children, sockets."""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import astuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fire_stages import Trap

from mmdata.demo import DemoServer
from mmdata.demo.server import DATA
from mmdata.engine import Executor, Runner
from mmdata.engine.scheduler import TRIES
from mmdata.engine.task import Task, TaskReport
from mmdata.executors import InlineExecutor, ProcessExecutor, SerialExecutor, open_executor
from mmdata.plan import Budget, Plan, load_plan
from mmdata.stages.keep import Keep
from mmdata.stages.sources import Catalog
from tests.conftest import write_yaml
from tests.fire.plans import pictures, run_plan, trap_plan
from tests.fire.runs import MAIN, wait_for
from tests.fire.seeds import GAUNTLET
from tests.fire.watch import Watcher, records_done, settled

Figure = Callable[[str, object], None]
NOISE_KIB = 32 << 10  # Arrow's and torch's allocators keep and give back so much, whatever the run does
PARTITION_BYTES = 4096  # that the driver may remember of a partition: keys, counts, how long it took

EMPTY = """\
name: empty
source: {catalog: {file: catalog.yaml, entry: x, partition_rows: 1000}}
stages:
  - keep: {column: score, at_least: -1}
"""
REAL = """\
name: real
source: {catalog: {file: catalog.yaml, entry: x, partition_rows: 50}}
stages:
  - download: {image_size: 64, limits: {host_interval_s: 0}}
  - measure
  - keep: {column: width, at_least: 1}
  - dedupe: {by: sample_id}
sink: {shards: {samples: 500, max_mib: 64}}
"""


def write_empty(home: Path, rows: int, partition: int) -> Plan:
    """Write a list of urls and scores, and a plan that keeps all of it and asks nobody."""
    home.mkdir(parents=True, exist_ok=True)
    urls = pa.array([f"http://host-{number % 999}/{number}.jpg" for number in range(rows)])
    texts = pa.array([f"a caption of picture number {number}" for number in range(rows)])
    scores = pa.array([number / rows for number in range(rows)], pa.float32())
    pq.write_table(pa.table({"url": urls, "text": texts, "score": scores}), home / "list.parquet", row_group_size=1000)
    write_yaml(home, "entries:\n  x: {files: [list.parquet], carry: {score: float32}}\n", "catalog.yaml")
    return load_plan(write_yaml(home, EMPTY.replace("partition_rows: 1000", f"partition_rows: {partition}")), base=home)


def write_real(home: Path, rows: int, partition: int, text: str = REAL) -> Plan:
    """Write a list of the demo's clean pictures, again and again, and a plan that fetches, judges and writes them."""
    home.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    urls = [f"http://host-{row['host']:02d}.demo.localhost/{row['path']}" for row in known if row["kind"] == "clean"]
    lines = [json.dumps({"url": urls[number % len(urls)], "text": f"picture number {number}"}) for number in range(rows)]
    (home / "list.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_yaml(home, "entries:\n  x: {files: [list.jsonl]}\n", "catalog.yaml")
    return load_plan(write_yaml(home, text.replace("partition_rows: 50", f"partition_rows: {partition}")), base=home)


def watched(home: Path, records: int, *extra: str) -> Watcher:
    """Run the plan of a folder as a command with two workers; return what was seen of it."""
    command = [sys.executable, "-c", MAIN, "run", "plan.yaml", "--run-dir", "run", "--executor", "processes", "--workers", "2"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, *extra], cwd=home, stdout=log, stderr=log)
        try:
            with Watcher(process.pid, records_done(home / "run", records)) as watcher:
                code = process.wait(1800)
        finally:
            process.kill()
    assert code == 0, (home / "log").read_text(encoding="utf-8")
    return watcher


def check_flat(watcher: Watcher, rows: int) -> str:
    """Assert that a run held as much at its end as after a tenth, and that nobody outlived it; return its figures."""
    grown, growth = watcher.most(0.5, 1.0) - watcher.most(0.1, 0.5), watcher.growth_kib()
    steady = [sample.rss_kib >> 10 for sample in watcher.steady()]
    said = (
        f"{rows:,} rows: RSS {growth / (0.9 * rows / 1000):+.1f} KB per 1,000 rows ({growth / 1024:+.1f} MiB from 10 % to the "
        f"end, {len(steady)} looks, {min(steady)} to {max(steady)} MiB), peak {watcher.peak_kib() >> 10} MiB; end - start: "
        f"descriptors {grown.descriptors - grown.sockets:+d}, threads {grown.threads:+d}, children {grown.children:+d}"
    )
    assert growth <= NOISE_KIB, said
    assert max(grown.threads, grown.children) <= 4, said
    assert grown.descriptors - grown.sockets <= 8, said
    assert grown.sockets <= 64, said  # connections that happen to be open at once, of the 64 that a download may have
    assert wait_for(lambda: not watcher.alive(), 10)
    return f"{said}, processes left 0"


@pytest.mark.fault("K03", "K04")
def test_K03_K04_an_empty_pipeline_does_not_grow(tmp_path: Path, record_property: Figure) -> None:
    rows, partition = (1_000_000, 1000) if GAUNTLET else (100_000, 200)
    write_empty(tmp_path, rows, partition)
    record_property("figure", check_flat(watched(tmp_path, rows // partition), rows))


@pytest.mark.fault("K03", "K04")
def test_K03_K04_a_real_pipeline_does_not_grow(tmp_path: Path, server: DemoServer, record_property: Figure) -> None:
    rows, partition, text = (20_000, 200, REAL.replace("  - keep", "  - clip_score\n  - keep")) if GAUNTLET else (1_000, 50, REAL)
    plan = write_real(tmp_path, rows, partition, text)
    row_wise = len(plan.segments) - 1  # the last waits for `dedupe`
    watcher = watched(tmp_path, row_wise * rows // partition, "--allow", server.allow[0])
    record_property("figure", check_flat(watcher, rows))
    assert json.loads((tmp_path / "run/funnel.json").read_text(encoding="utf-8"))["kept"] == rows


class Measuring(InlineExecutor):
    """Notes what Python and Arrow hold when it gets certain tasks."""

    def __init__(self, *at: int) -> None:
        self.at, self.num = at, 0
        self.python: list[int] = []
        self.arrow: list[int] = []

    def submit(self, task: Task) -> Future[TaskReport]:
        self.num += 1
        if self.num in self.at:
            gc.collect()
            self.python.append(tracemalloc.get_traced_memory()[0])
            self.arrow.append(pa.total_allocated_bytes())
        return super().submit(task)


@pytest.mark.fault("K03")
def test_K03_what_driver_and_worker_remember_of_a_partition(tmp_path: Path, record_property: Figure) -> None:
    start, stop = (200, 1200) if GAUNTLET else (40, 160)  # caches are warm at the start
    plan, executor = write_empty(tmp_path, stop * 10, 10), Measuring(start, stop)
    tracemalloc.start()
    try:
        run_plan(plan, tmp_path / "run", executor)
    finally:
        tracemalloc.stop()
        executor.close()
    python, arrow = ((late - early) / (stop - start) for early, late in (executor.python, executor.arrow))
    size = Catalog.model_fields["partition_rows"].default
    figure = (
        f"{python:.0f} bytes a partition in Python, {arrow:.0f} in Arrow: {python / 1024 / size * 1000:.2f} KB per 1,000 rows"
    )
    record_property("figure", f"{figure} in partitions of {size:,}")
    assert python <= PARTITION_BYTES
    assert arrow <= 1024


# K04, P13: what is open before is open after


def check_nothing_left(act: Callable[[int], object]) -> str:
    """Assert that not every call leaves something open. The first fills caches that live as long as this process; pools of
    threads may still grow to their size in the second."""
    act(0)
    for number in range(1, 4):
        before = settled(os.getpid())
        act(number)
        grown = settled(os.getpid(), before) - before
        if max(astuple(grown)) <= 0:
            break
    assert max(astuple(grown)) <= 0, grown
    return f"end - start: {grown}"


@pytest.mark.fault("K04")
@pytest.mark.parametrize("kind", ["inline", "serial", "processes"])
def test_K04_executors_leave_nothing_behind(tmp_path: Path, server: DemoServer, kind: str, record_property: Figure) -> None:
    local = pictures(tmp_path / "i", [f"picture {number}" for number in range(6)], partition_rows=3)  # for the engine's own jail
    plans = {"web": write_real(tmp_path, 48, 16), "local": trap_plan(local, Keep(column="width", at_least=1))}

    def act(number: int) -> None:
        made: Executor = open_executor(kind, 2)
        try:
            results = [
                Runner(plan, str(tmp_path / str(number) / what), server.allow).execute(made, quiet=True)
                for what, plan in plans.items()
            ]
        finally:
            made.close()
        assert [result.funnel["kept"] for result in results] == [48, 6]

    record_property("figure", check_nothing_left(act))


@pytest.mark.fault("K04", "P13")
def test_K04_P13_a_row_that_ends_its_worker_leaves_nothing_behind(tmp_path: Path, record_property: Figure) -> None:
    plan = trap_plan(pictures(tmp_path / "i", ["!exit", "a picture"]), Trap())

    def act(number: int) -> None:
        executor = SerialExecutor()
        result = run_plan(plan, tmp_path / str(number), executor)
        executor.close()
        assert result.funnel["dropped"] == {"decoder_crashed": 1}

    record_property("figure", check_nothing_left(act))


@pytest.mark.fault("P13")
@pytest.mark.parametrize("how", ["fail", "die"])
def test_P13_failed_tasks_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, record_property: Figure
) -> None:
    partitions = 250 if how == "fail" else 50 if GAUNTLET else 2
    trouble = {"fail": ("MMDATA_FAULTS", "1:1:open-eio"), "die": ("FAILPOINT", "before-columns:1:kill")}[how]

    def act(number: int) -> None:
        num = partitions if number else 1
        plan = write_empty(tmp_path / str(number), num, 1)
        runner = Runner(plan, str(tmp_path / str(number) / "run"), budget=Budget(failed_partitions=num))
        with monkeypatch.context() as patch:
            patch.setenv(*trouble)  # of the workers: the driver has opened its store
            executor = ProcessExecutor(2)
            result = runner.execute(executor, quiet=True)
            executor.close()
        assert len(result.failed) == num

    figure = check_nothing_left(act)
    record_property("figure", f"{partitions * TRIES:,} attempts that {how}; {figure}")
