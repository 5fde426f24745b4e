"""Budgets: how much may go wrong, why a run stopped early, and what its exit code says."""

import os
import re
from pathlib import Path

import pytest
from fire_stages import Trap

from mmdata.engine import RunStore
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Budget
from mmdata.report.fates import fates
from mmdata.shards import open_corpus
from mmdata.stages.keep import Keep
from tests.conftest import write_yaml
from tests.fire.forks import Forked
from tests.fire.plans import QUICK, pictures, run_plan, trap_plan
from tests.fire.runs import finish


def texts(*broken: int, num: int = 60, rows: int = 20) -> list[str]:
    """Return texts of which all rows of some partitions raise."""
    return [f"!raise {place}" if place // rows in broken else f"picture {place}" for place in range(num)]


def test_a_partition_that_fails_stops_the_run_by_default(tmp_path: Path) -> None:
    plan = trap_plan(pictures(tmp_path / "i", texts(1), 20))
    with pytest.raises(RunError, match=r"trap, partition 1: failed 4 times; last: [\s\S]*finished tasks are not done again"):
        run_plan(plan, tmp_path / "run", InlineExecutor())
    assert RunStore(str(tmp_path / "run")).finished() == []


def test_a_budget_gives_partitions_up_and_says_so(tmp_path: Path) -> None:
    source = pictures(tmp_path / "i", texts(1), 20)
    result = run_plan(trap_plan(source, budget=Budget(failed_partitions=1)), tmp_path / "run", InlineExecutor())
    assert list(result.failed) == [1]
    assert "fails on more than 16 rows" in result.failed[1]
    assert (result.funnel["rows_in"], result.funnel["kept"]) == (40, 40)
    assert result.corpus is not None
    assert len(open_corpus(result.corpus).samples) == 40
    run = RunStore(str(tmp_path / "run"))
    assert run.manifest(1)["failed"]["1"] == result.failed[1]
    assert fates(run, ["text"]).num_rows == 40
    # The same command tries them again, as a generation of its own; the first stays as it is.
    again = run_plan(trap_plan(source, budget=Budget(failed_partitions=1)), tmp_path / "run", InlineExecutor())
    assert (again.generation, list(again.failed), again.computed["measure"]) == (2, [1], 0)


def test_a_budget_that_is_spent_names_the_last_failure(tmp_path: Path) -> None:
    plan = trap_plan(pictures(tmp_path / "i", texts(0, 1), 20), budget=Budget(failed_partitions=1))
    with pytest.raises(RunError, match="budget: more than 1 partitions failed; the last: measure \\+ trap, partition 1"):
        run_plan(plan, tmp_path / "run", InlineExecutor())


def test_too_many_dropped_rows_stop_a_run_early(tmp_path: Path) -> None:
    source = pictures(tmp_path / "i", [f"picture {number}" for number in range(200)], 20)
    stages = (Trap(resources=QUICK), Keep(column="trapped", at_least=100))
    budget = Budget(dropped_share=0.5, after_rows=60)
    with pytest.raises(RunError, match=r"budget: 60 of 60 rows were dropped \(100.0%\), more than 50.0%; most: trapped_below 60"):
        run_plan(trap_plan(source, *stages, budget=budget), tmp_path / "run", InlineExecutor())
    assert len(list((tmp_path / "run/tasks").glob("*.json"))) == 3  # of ten
    result = run_plan(trap_plan(source, *stages), tmp_path / "run", InlineExecutor())
    assert result.funnel["dropped"] == {"trapped_below": 200}


def test_a_budget_changes_no_result(tmp_path: Path) -> None:
    source = pictures(tmp_path / "i", ["one", "two"])
    run_plan(trap_plan(source), tmp_path / "run", InlineExecutor())
    assert not run_plan(trap_plan(source, budget=Budget(failed_partitions=7)), tmp_path / "run", InlineExecutor()).fresh


def test_the_exit_code_and_one_line_for_equal_errors(tmp_path: Path) -> None:
    num = 3
    plan = trap_plan(pictures(tmp_path / "i", texts(*range(1, num), num=20 * num), 20), budget=Budget(failed_partitions=num))
    (tmp_path / "plan.yaml").write_text(plan.located().to_json(), encoding="utf-8")
    command = ["run", "plan.yaml", "--run-dir", "run", "--executor", "inline"]
    done = finish(Forked(command, tmp_path, dict(os.environ)))
    assert done.returncode == 3, done.stderr
    assert f"{num - 1} partitions were given up" in done.stderr
    (line,) = re.findall(r"^ +(\d+) x .*fails on more than 16 rows", done.stderr, re.MULTILINE)
    assert int(line) == 3 * (num - 1)  # the first attempt of each is not yet a careful one
    stopped = finish(Forked([*command, "--max-failed", "0"], tmp_path, dict(os.environ)))
    assert stopped.returncode == 1, stopped.stderr


@pytest.mark.parametrize(("text", "message"), [
    ("{failed_partitions: -1}", "plan.yaml:3: `failed_partitions`"),
    ("{dropped_share: 2}", "plan.yaml:3: `dropped_share`"),
    ("{dropped: 0.5}", "plan.yaml:3: `budget` has no key `dropped`"),
])  # fmt: skip
def test_a_wrong_budget_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    from mmdata.plan import load_plan

    file = write_yaml(tmp_path, f"name: x\nsource: {{folder: {{path: .}}}}\nbudget: {text}\n")
    with pytest.raises(ConfigError, match=message):
        load_plan(file)
