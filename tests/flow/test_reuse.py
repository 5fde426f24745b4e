"""Work = rows needed minus rows held: what is done again after a change, and what is not."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmdata.demo import DemoServer
from mmdata.engine import Runner, RunStore
from mmdata.engine.forecast import Span
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.report.explain import explain
from mmdata.report.fates import fates
from mmdata.report.status import status_text
from tests.flow.conftest import Undisturbed
from tests.flow.small import corpus_digest, run_small, small_plan

THRESHOLD = ("at_least: 0.1", "at_least: 0.15")


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_rows_are_conserved(undisturbed: Undisturbed) -> None:
    funnel = undisturbed.result.funnel
    assert funnel["rows_in"] + funnel["made_by_splits"] == funnel["kept"] + sum(funnel["dropped"].values()) + funnel["split"]
    assert funnel["rows_in"] == 68  # 60 pairs, and a document of 8 blocks
    assert funnel["made_by_splits"] > funnel["split"] == 68
    assert {"http_4xx", "not_media", "truncated_media", "timeout_total", "text_missing", "duplicate"} <= set(funnel["dropped"])


def test_every_record_obeys_the_law(undisturbed: Undisturbed) -> None:
    run = RunStore(str(undisturbed.run_dir))
    records = [run.read_json(f"tasks/{name}") for name in run.store.list("tasks") if name.endswith(".json")]
    assert len(records) == 5 * 6  # partitions x segments
    for record in records:
        assert record["rows_in"] + record["made_by_splits"] == record["kept"] + sum(record["dropped"].values()) + record["split"]


def test_stages_add_or_judge_and_never_both(undisturbed: Undisturbed) -> None:
    for path in (undisturbed.run_dir / "columns").rglob("*.parquet"):
        names = set(pq.read_schema(path).names) - {"_row", "_outcome"}
        assert names == {"reason", "value"} or not names & {"reason", "value"}


def test_a_second_run_asks_nobody_and_writes_nothing(undisturbed: Undisturbed, server: DemoServer) -> None:
    before, asked = stamps(undisturbed.run_dir), server.requests.total()
    result = run_small(small_plan(undisturbed.home), undisturbed.run_dir, InlineExecutor(), server)
    assert not result.fresh
    assert server.requests.total() == asked
    assert stamps(undisturbed.run_dir) == before
    assert result.funnel == undisturbed.result.funnel


def test_a_changed_threshold_is_verdicts_and_shards_only(tmp_path: Path, server: DemoServer) -> None:
    run_small(small_plan(tmp_path), tmp_path / "run", InlineExecutor(), server)
    first = corpus_digest(tmp_path / "run")
    asked = server.requests.total()
    result = run_small(small_plan(tmp_path, THRESHOLD), tmp_path / "run", InlineExecutor(), server)
    assert server.requests.total() == asked
    assert {name for name, num in result.computed.items() if num} == {"keep"}
    assert result.generation == 2
    second = corpus_digest(tmp_path / "run")
    assert second != first
    # The first plan again: its generation is still there whole, and `corpus` and the funnel are its own.
    again = run_small(small_plan(tmp_path), tmp_path / "run", InlineExecutor(), server)
    assert (again.generation, again.fresh) == (1, False)
    assert corpus_digest(tmp_path / "run") == first
    assert json.loads((tmp_path / "run/funnel.json").read_text(encoding="utf-8")) == again.funnel
    fresh = run_small(small_plan(tmp_path / "b", THRESHOLD), tmp_path / "b/run", InlineExecutor(), server)
    assert fresh.funnel == result.funnel
    assert corpus_digest(tmp_path / "b/run") == second


def test_a_stage_added_in_the_middle_is_that_column_and_what_follows(tmp_path: Path, server: DemoServer) -> None:
    run_small(small_plan(tmp_path), tmp_path / "run", InlineExecutor(), server)
    asked = server.requests.total()
    middle = ("  - text_rules", "  - keep: {column: aspect, at_most: 2.0}\n  - text_rules")
    plan = small_plan(tmp_path, middle)
    forecast = Runner(plan, str(tmp_path / "run"), server.allow).forecast()
    kept = {step.stage for step in forecast.steps if step.kept.least and step.computed == Span()}
    assert {"split_captions", "download", "measure", "text_rules", "clip_score"} <= kept
    result = run_small(plan, tmp_path / "run", InlineExecutor(), server)
    assert server.requests.total() == asked
    assert {name for name, num in result.computed.items() if num} == {"keep"}
    assert "aspect_above" in result.funnel["dropped"]


def test_a_looser_rule_computes_only_the_missing_rows(tmp_path: Path, server: DemoServer) -> None:
    strict = ("min_chars: 2", "min_chars: 20")
    tight = run_small(small_plan(tmp_path, strict), tmp_path / "run", InlineExecutor(), server)
    loose = run_small(small_plan(tmp_path), tmp_path / "run", InlineExecutor(), server)
    whole = run_small(small_plan(tmp_path / "b"), tmp_path / "b/run", InlineExecutor(), server)
    assert 0 < loose.computed["clip_score"] == whole.computed["clip_score"] - tight.computed["clip_score"]
    assert loose.computed["download"] == 0
    assert loose.funnel == whole.funnel


def test_another_plans_run_folder_is_refused(undisturbed: Undisturbed, server: DemoServer, tmp_path: Path) -> None:
    before = stamps(undisturbed.run_dir)
    plan = small_plan(tmp_path, ("name: small", "name: other"))
    with pytest.raises(ConfigError, match=r"belongs to plan `small` over catalog:pairs, catalog:documents, not to `other`"):
        Runner(plan, str(undisturbed.run_dir), server.allow)
    assert stamps(undisturbed.run_dir) == before


def test_limit_and_until(tmp_path: Path, server: DemoServer) -> None:
    plan = small_plan(tmp_path).until("measure")
    result = Runner(plan, str(tmp_path / "run"), server.allow, limit=20).execute(InlineExecutor(), quiet=True)
    assert result.funnel["rows_in"] == 20
    assert result.corpus is None
    assert set(result.computed) == {"split_captions", "download", "measure"}
    with pytest.raises(ConfigError, match=r"no stage is called `measur`[\s\S]*did you mean `measure`"):
        plan.until("measur")


def test_a_run_at_work_is_not_disturbed(tmp_path: Path, server: DemoServer) -> None:
    from mmdata.engine.lease import Lease

    plan = small_plan(tmp_path)
    run = RunStore(str(tmp_path / "run"))
    with Lease(run.store), pytest.raises(RunError, match="another run is at work"):
        run_small(plan, tmp_path / "run", InlineExecutor(), server)
    assert not (tmp_path / "run/columns").exists()


def test_explain_says_why(undisturbed: Undisturbed) -> None:
    run = RunStore(str(undisturbed.run_dir))
    table = fates(run, ["sample_id", "url", "clip_score"]).to_pylist()
    duplicate = next(row for row in table if row["reason"] == "duplicate")
    text = explain(str(undisturbed.run_dir), duplicate["sample_id"])
    assert "duplicate by dedupe" in text
    assert "in favour of" in text
    assert duplicate["url"] in text
    kept = next(row for row in table if row["reason"] is None)
    assert "fate               kept" in explain(str(undisturbed.run_dir), kept["sample_id"])
    with pytest.raises(ConfigError, match="no sample `feed`"):
        explain(str(undisturbed.run_dir), "feed")


def test_status_says_how_it_ended(undisturbed: Undisturbed) -> None:
    text = status_text(str(undisturbed.run_dir))
    assert "plan small over catalog:pairs, catalog:documents" in text
    assert f"generation 1: kept {undisturbed.result.funnel['kept']} of 68 rows" in text
