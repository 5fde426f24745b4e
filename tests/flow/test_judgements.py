"""Judgements over a whole run: the same on every executor and however the list is cut; killed and gone on with; said before."""

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata import failpoint
from mmdata.engine import Executor, Runner, RunStore
from mmdata.errors import RunError
from mmdata.executors import InlineExecutor, ProcessExecutor
from mmdata.plan import Plan, load_plan
from mmdata.report.fates import fates
from mmdata.report.table import forecast_text
from tests.conftest import write_yaml
from tests.fire.changes import Change, Stopping

ROWS = 250
PLAN = """\
name: judged
source: {catalog: {file: catalog.yaml, entry: pool, partition_rows: 90}}
stages:
  - block: {domains: domains.txt, phrases: phrases.txt}
  - text_rules: {min_words: 2}
  - keep: {where: "score > 0.1 or kind = 'art'", named: worth}
  - keep: {column: width, at_least: 40, tag: true}
  - top: {column: score, fraction: 0.8, per: [kind]}
  - keep: {where: "keep_width and not kind = 'odd'", nulls: keep}
  - top: {column: width, count: 140, over: all, ties: hash}
  - cap: {per: ["host(url)"], rows: 4, best: score}
  - dedupe: {likeness: {column: look, radius: 2}, keep: [score]}
  - sample: {share: 0.9}
  - sample: {count: 12}
"""


def write_pool(home: Path) -> None:
    """Write a list with ties, nulls and NaN, and the lists that block."""
    dice = random.Random(1)
    score = [dice.choice([None, float("nan"), 0.25, round(dice.random(), 2), dice.random()]) for _ in range(ROWS)]
    home.mkdir(exist_ok=True)
    more = random.Random(2)
    looks = [more.getrandbits(64) for _ in range(60)]
    table = pa.table({
        "uid": [f"{dice.getrandbits(128):032x}" for _ in range(ROWS)],
        "url": [f"http://h{dice.randrange(9)}.net/{row}.jpg" for row in range(ROWS)],
        "text": [dice.choice(["one", "free money now", *["two words", "three more words"] * 4]) for _ in range(ROWS)],
        "kind": pa.array([dice.choice(["art", "photo", "odd", None]) for _ in range(ROWS)], pa.string()),
        "width": pa.array([dice.choice([None, *range(30, 60)]) for _ in range(ROWS)], pa.int64()),
        "score": pa.array(score, pa.float32()),
        "look": [f"{more.choice(looks) ^ 1 << more.randrange(64):016x}" for _ in range(ROWS)],
    })  # fmt: skip
    pq.write_table(table, home / "pool.parquet")
    carry = "carry: {kind: string, width: int64, score: float32, look: string}"
    write_yaml(home, f"entries:\n  pool: {{files: [pool.parquet], {carry}}}\n", "catalog.yaml")
    (home / "domains.txt").write_text("h3.net\n", encoding="utf-8")
    (home / "phrases.txt").write_text("free money\n", encoding="utf-8")


def plan_of(home: Path, *replace: tuple[str, str]) -> Plan:
    text = PLAN
    for old, new in replace:
        assert old in text
        text = text.replace(old, new)
    return load_plan(write_yaml(home, text), base=home)


def heads(run_dir: Path) -> list[dict[str, Any]]:
    """Return what the last records say, with the digest of every fate and column."""
    run = RunStore(str(run_dir))
    found = [run.record(head) for head in run.manifest(run.finished()[-1])["heads"]]
    return [{name: record[name] for name in ("key", "state", "digests", "by_stage")} for record in found if record is not None]


def fates_of(run_dir: Path) -> dict[str, str | None]:
    rows = fates(RunStore(str(run_dir)), ["sample_id"]).to_pylist()
    return {row["sample_id"]: row["reason"] for row in rows}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder)
    return folder


@pytest.fixture(scope="module")
def judged(home: Path) -> Path:
    """A finished run."""
    result = Runner(plan_of(home), str(home / "run")).execute(InlineExecutor(), quiet=True)
    dropped = result.funnel["dropped"]
    assert set(dropped) >= {
        "domain_blocked", "phrase_blocked", "text_few_words", "worth_false", "worth_null", "score_below_top", "score_missing",
        "where_false", "width_below_top", "over_cap", "near_duplicate", "not_sampled",
    }  # fmt: skip
    assert result.funnel["kept"] == 12
    return home / "run"


def test_every_executor_gives_the_same_verdicts(home: Path, judged: Path, tmp_path: Path, ray_executor: Executor) -> None:
    processes = ProcessExecutor(2)
    try:
        for name, executor in (("processes", processes), ("ray", ray_executor)):
            Runner(plan_of(home), str(tmp_path / name)).execute(executor, quiet=True)
            assert heads(tmp_path / name) == heads(judged)
    finally:
        processes.close()


@pytest.mark.parametrize("rows", [17, 400])
def test_the_cut_of_the_list_changes_no_fate(home: Path, judged: Path, tmp_path: Path, rows: int) -> None:
    plan = plan_of(home, ("partition_rows: 90", f"partition_rows: {rows}"))
    Runner(plan, str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    assert fates_of(tmp_path / "run") == fates_of(judged)


# Each pass has a file a partition, and a value after each round: the points lie in different passes, and between them.
@pytest.mark.parametrize("point", ["after-pass:2", "before-pass:4", "after-record:7", "before-pass:19", "after-pass:40"])
def test_a_run_broken_off_at_any_pass_ends_in_the_same_verdicts(
    home: Path, judged: Path, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILPOINT", f"{point}:raise")
    failpoint.reset()
    with pytest.raises((OSError, RunError)):
        Runner(plan_of(home), str(tmp_path / "run")).execute(Stopping(), quiet=True)
    monkeypatch.delenv("FAILPOINT")
    for path in (tmp_path / "run").rglob(".tmp-*"):  # this process is alive, so nobody else may
        path.unlink()
    Runner(plan_of(home), str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    assert heads(tmp_path / "run") == heads(judged)


CHANGES = {
    "an expression": (
        [("score > 0.1", "score > 0.2"), ("count: 12", "count: 9")],
        [
            "text_rules kept 199",
            "keep computed 176",
            "top made anew, from all rows",
            "sample asked of each row, nothing is stored",
        ],
    ),
    "a cap": ([("rows: 4", "rows: 3")], ["top kept", "cap made anew, from all rows"]),
    "a share": ([("share: 0.9", "share: 0.8")], ["cap kept", "sample asked of each row, nothing is stored"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_judgement_does_what_is_said_before(home: Path, judged: Path, tmp_path: Path, name: str) -> None:
    replace, lines = CHANGES[name]
    shutil.copytree(judged, tmp_path / "run")
    change = Change(plan_of(home, *replace), str(tmp_path / "run"))
    text = change.look()
    assert set(lines) <= {" ".join(line.split()) for line in text.splitlines()}, text
    change.run()
    Runner(plan_of(home, *replace), str(tmp_path / "fresh")).execute(InlineExecutor(), quiet=True)
    assert fates_of(tmp_path / "fresh") == fates_of(tmp_path / "run")
    assert forecast_text(change.runner().forecast()).endswith("nothing to do")


def test_groups_that_are_too_many_are_refused_with_the_way_out(tmp_path: Path) -> None:
    num = 120_000
    table = pa.table({"url": [f"http://h/{row}" for row in range(num)], "score": pa.array(range(num), pa.float32())})
    pq.write_table(table, tmp_path / "pool.parquet")
    write_yaml(tmp_path, "entries:\n  pool: {files: [pool.parquet], carry: {score: float32}}\n", "catalog.yaml")
    text = "name: g\nsource: {catalog: {file: catalog.yaml, entry: pool, partition_rows: 200000}}\n"
    text += "stages: [{top: {column: score, count: 1, per: [url]}}]\n"
    runner = Runner(load_plan(write_yaml(tmp_path, text), base=tmp_path), str(tmp_path / "run"))
    with pytest.raises(RunError, match=r"the counts of partition 0 take [\d.]+ MiB, 1 MiB are allowed\n  hint: .* use `cap`"):
        runner.execute(InlineExecutor(), quiet=True)
