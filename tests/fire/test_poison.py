"""A row that ends its worker costs that row alone, on every executor, and is remembered."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fire_stages import Trap, TrapFilter, TrapSplit

from mmdata.engine import Executor, RunResult, RunStore
from mmdata.errors import RunError
from mmdata.executors import ProcessExecutor, SerialExecutor
from mmdata.report.fates import fates
from tests.fire.plans import QUICK, pictures, run_plan, trap_plan
from tests.fire.seeds import GAUNTLET, seeds

TRAPS = {
    "!segfault": "decoder_crashed", "!exit": "decoder_crashed", "!loop": "decoder_timeout", "!lock": "decoder_timeout",
    "!memory": "decoder_oom", "!raise": "scorer_error",
}  # fmt: skip


@pytest.fixture(params=["serial", "processes", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "ray":
        yield request.getfixturevalue("ray_executor")
        return
    made = SerialExecutor() if request.param == "serial" else ProcessExecutor(2)
    yield made
    made.close()


@pytest.fixture
def serial() -> Iterator[Callable[[], Executor]]:
    made: list[Executor] = []

    def make() -> Executor:
        made.append(SerialExecutor())
        return made[-1]

    yield make
    for each in made:
        each.close()


def texts_with(traps: dict[int, str], num: int) -> list[str]:
    return [f"{traps[place]} {place}" if place in traps else f"a picture of number {place}" for place in range(num)]


def outcomes(run_dir: Path, result: RunResult) -> dict[str, str | None]:
    table = fates(RunStore(str(run_dir)), ["text"], result.generation).to_pylist()
    return {row["text"]: row["reason"] for row in table}


@pytest.mark.fault("P07", "P08", "P09")
@pytest.mark.parametrize("seed", seeds(1, 3))
def test_P07_P08_P09_every_poison_row_ends_alone(tmp_path: Path, executor: Executor, seed: int) -> None:
    rows = 16 if GAUNTLET else 8  # of a partition: each halving costs a child
    places = [(seed * 5 + 3) % rows, rows + (seed * 7) % rows, 2 * rows + (seed * 3 + rows - 1) % rows]
    traps = dict(zip(places, ("!segfault", "!memory", "!loop"), strict=True))
    source = pictures(tmp_path / "i", texts_with(traps, 3 * rows), rows)
    result = run_plan(trap_plan(source), tmp_path / "run", executor)
    found = outcomes(tmp_path / "run", result)
    assert {text: reason for text, reason in found.items() if reason} == {
        f"{trap} {place}": TRAPS[trap] for place, trap in traps.items()
    }
    assert result.funnel["kept"] == 3 * rows - 3


@pytest.mark.fault("P08")
def test_P08_one_of_64_in_flight(
    tmp_path: Path, serial: Callable[[], Executor], record_property: Callable[[str, object], None]
) -> None:
    source = pictures(tmp_path / "i", texts_with({41: "!segfault"}, 64), partition_rows=64)
    result = run_plan(trap_plan(source), tmp_path / "run", serial())
    assert result.funnel["dropped"] == {"decoder_crashed": 1}
    assert result.funnel["kept"] == 63
    record_property("figure", f"1 decoder_crashed, 63 ok, {result.seconds:.0f} s")


@pytest.mark.fault("P07", "P09")
@pytest.mark.parametrize("trap", ["!exit", "!lock", "!raise"])
def test_P07_other_ways_to_end(tmp_path: Path, serial: Callable[[], Executor], trap: str) -> None:
    source = pictures(tmp_path / "i", texts_with({2: trap}, 4))
    result = run_plan(trap_plan(source), tmp_path / "run", serial())
    assert result.funnel["dropped"] == {TRAPS[trap]: 1}


@pytest.mark.fault("P08")
def test_P08_filters_and_splits_too(tmp_path: Path, serial: Callable[[], Executor]) -> None:
    source = pictures(tmp_path / "i", texts_with({1: "!segfault"}, 4))
    filtered = run_plan(trap_plan(source, TrapFilter(resources=QUICK)), tmp_path / "a", serial())
    assert (filtered.funnel["dropped"], filtered.funnel["kept"]) == ({"decoder_crashed": 1}, 3)
    split = run_plan(trap_plan(source, TrapSplit(resources=QUICK)), tmp_path / "b", serial())
    assert (split.funnel["dropped"], split.funnel["split"], split.funnel["kept"]) == ({"decoder_crashed": 1}, 3, 6)
    again = run_plan(trap_plan(source, TrapSplit(resources=QUICK), Trap(resources=QUICK)), tmp_path / "b", serial())
    assert again.funnel == split.funnel


@pytest.mark.fault("P07")
def test_P07_what_was_found_is_remembered(tmp_path: Path, serial: Callable[[], Executor]) -> None:
    source = pictures(tmp_path / "i", texts_with({1: "!exit"}, 4))
    plan = trap_plan(source)
    first = run_plan(plan, tmp_path / "run", serial())
    (note,) = (tmp_path / "run/poison").rglob("*.json")
    assert json.loads(note.read_text(encoding="utf-8"))["outcome"] == "decoder_crashed"
    for folder in ("columns", "tasks", "passes", "manifest", "generations", "corpora"):  # all but the note is lost
        for path in sorted((tmp_path / "run" / folder).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    stamp = note.stat().st_mtime_ns
    again = run_plan(plan, tmp_path / "run", serial())
    assert again.funnel == first.funnel
    assert note.stat().st_mtime_ns == stamp


@pytest.mark.fault("P07")
def test_P07_a_broken_stage_is_not_the_rows_fault(tmp_path: Path, serial: Callable[[], Executor]) -> None:
    source = pictures(tmp_path / "i", texts_with(dict.fromkeys(range(40), "!raise"), 40), partition_rows=40)
    with pytest.raises(RunError, match=r"`trap` fails on more than 16 rows of a partition[\s\S]*ValueError: a bug in the stage"):
        run_plan(trap_plan(source), tmp_path / "run", serial())
    assert not list((tmp_path / "run/poison").rglob("*.json"))
