"""What a sweep says that thresholds keep is what they keep: counted one by one, of any run, and shown without running a thing."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.cli.main import main
from mmdata.engine import Runner, RunStore
from mmdata.engine.keys import SOURCE
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan, load_plan
from mmdata.report import sweep_rows
from mmdata.report.fates import fates
from mmdata.report.sweep import Question, sweep
from mmdata.report.sweep_counts import Curve
from mmdata.report.sweep_page import write_sweep
from mmdata.report.sweep_text import sweep_text
from mmdata.report.thresholds import at_ranks, grid, next_stricter, wanted_rows
from mmdata.shards import counter
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.sources import Folder
from tests.conftest import encode, write_yaml
from tests.corpus import draw
from tests.mixed import HOSTILE
from tests.test_inspect import Page, safe_page

PLAN = """\
name: toy
source:
  - catalog: {file: catalog.yaml, entry: web, partition_rows: 40}
  - catalog: {file: catalog.yaml, entry: shop}
stages:
  - keep: {column: rank, at_least: 20}
"""
CATALOG = """\
entries:
  web: {files: [web.jsonl], carry: {score: float32, rank: int32, language: string}}
  shop: {files: [shop.jsonl], carry: {score: float32, rank: int32, language: string}}
"""


@dataclass(frozen=True)
class Row:
    """What a test knows of a row."""

    source: str
    language: str | None
    score: float | None
    rank: int

    @property
    def kept(self) -> bool:
        return self.rank >= 20


def toy_rows() -> list[Row]:
    """Return 150 rows: some without a score, many with the same."""
    random = np.random.default_rng(3)
    scores = np.round(random.normal(0.25, 0.08, 150), 2).astype(np.float32)
    rows = []
    for number, score in enumerate(scores.tolist()):
        language = ("en", "de", None)[number % 3]
        rows.append(Row("web" if number < 100 else "shop", language, None if number % 11 == 5 else score, number * 37 % 100))
    return rows


def write_lists(folder: Path, rows: Sequence[Row], plan: str = PLAN) -> Plan:
    for name in ("web", "shop"):
        lines = [
            {"url": f"http://{name}/{at}", "text": str(at), "score": row.score, "rank": row.rank, "language": row.language}
            for at, row in enumerate(rows) if row.source == name
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_yaml(folder, CATALOG, "catalog.yaml")
    return load_plan(write_yaml(folder, plan), base=folder)


def run_plan(plan: Plan, folder: Path) -> str:
    Runner(plan, str(folder)).execute(InlineExecutor(), quiet=True)
    return str(folder)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("toy")
    return run_plan(write_lists(folder, toy_rows()), folder / "run")


def counted(values: Sequence[float], thresholds: Sequence[float], at_most: bool) -> list[int]:
    """Count in the plainest way."""
    return [sum(value <= each if at_most else value >= each for value in values) for each in thresholds]


@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize("piece", [7, sweep_rows.PIECE])
def test_every_threshold_keeps_what_counting_says(toy: str, at_most: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_rows, "PIECE", piece)
    found = sweep(toy, Question("score", at=(0.25, 7.0), at_most=at_most))
    with_value = [row for row in toy_rows() if row.score is not None]
    assert found.total is not None
    assert (found.held, found.missing, found.without) == (150, 150 - len(with_value), 0)
    assert {0.25, 7.0} <= set(found.thresholds)
    assert found.total.all.samples is None  # no documents: a sample is a row
    groups = {("", ""): found.total} | {(by, group.name): group for by, made in found.by.items() for group in made}
    assert set(groups) == {
        ("", ""), ("source", "web"), ("source", "shop"), ("language", "en"), ("language", "de"), ("language", "(none)"),
    }  # fmt: skip
    for (by, name), group in groups.items():
        rows = [row for row in with_value if not by or str(getattr(row, by) or "(none)") == name]
        for curve, chosen in ((group.all.rows, rows), (group.kept and group.kept.rows, [row for row in rows if row.kept])):
            values = [row.score for row in chosen if row.score is not None]
            assert curve == Curve(len(values), counted(values, found.thresholds, at_most)), (by, name)


def test_groups_come_with_most_rows_first_and_the_rest_together(toy: str) -> None:
    assert [group.name for group in sweep(toy, Question("score")).by["source"]] == ["web", "shop"]
    by_rank = sweep(toy, Question("score", by=("rank",))).by["rank"]
    assert len(by_rank) == 31
    assert by_rank[-1].name == "(others)"
    assert sum(group.all.rows.total for group in by_rank) == sum(row.score is not None for row in toy_rows())


@given(
    st.one_of(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
        st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=60),
    ),
    st.integers(1, 60),
)
def test_values_at_ranks_are_exact(values: list[float], size: int) -> None:
    array = np.array(values, np.int64 if isinstance(values[0], int) else np.float64)

    def pieces() -> Iterator[np.ndarray]:
        return (array[start : start + size] for start in range(0, len(array), size))

    ranks = [0, len(values) // 3, len(values) - 1]
    assert at_ranks(pieces, ranks) == [sorted(values)[rank] for rank in ranks]
    above, below = (next_stricter(pieces, [values[0]], at_most)[0] for at_most in (False, True))
    assert above == min((value for value in values if value > values[0]), default=None)
    assert below == max((value for value in values if value < values[0]), default=None)


@given(
    st.one_of(
        st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
        st.tuples(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12)),
    )
)
def test_round_thresholds_reach_from_end_to_end(ends: tuple[float, float]) -> None:
    low, high = min(ends), max(ends)
    every, listed = grid(low, high)
    assert 1 <= len(every) <= 202
    assert every == sorted(set(every))
    assert set(listed) <= set(every)
    assert len(listed) <= 41
    assert all(isinstance(each, type(low)) for each in every)


def test_round_thresholds_are_round() -> None:
    every, listed = grid(0.1234, 0.4321)
    assert (every[:3], every[-1]) == ([0.122, 0.124, 0.126], 0.434)
    assert listed[:3] == [0.14, 0.16, 0.18]
    assert grid(3, 6)[0] == [3, 4, 5, 6]
    wide = grid(32, 9000)[1]
    assert wide == [50, 100, 200, 500, 1000, 2000, 5000]
    assert grid(0.5, 0.5) == ([0.5], [0.5])


def test_a_fraction_is_taken_as_it_is_written() -> None:
    assert [wanted_rows(*pair) for pair in ((0.7, 10), (0.1, 3), (0.3, 10), (1.0, 7), (0.001, 5))] == [7, 1, 3, 7, 1]


def test_the_nearest_thresholds_stand_on_both_sides_of_a_fraction_and_ties_are_told(toy: str) -> None:
    found = sweep(toy, Question("score"))
    assert [(near.of, near.fraction) for near in found.near] == [
        (of, fraction) for of in ("all", "kept") for fraction in (0.5, 0.3, 0.2, 0.1)
    ]
    for near in found.near:
        values = [row.score for row in toy_rows() if row.score is not None and (near.of == "all" or row.kept)]
        assert near.total == len(values)
        assert near.fewer is not None
        assert near.fewer.rows < near.fraction * near.total <= near.more.rows
        assert near.ties == near.more.rows - near.fewer.rows == values.count(float(near.more.threshold))
        assert near.more.rows == sum(value >= near.more.threshold for value in values)


def test_one_value_for_all_rows_can_only_keep_all(tmp_path: Path) -> None:
    run = run_plan(write_lists(tmp_path, [Row("web", "en", 0.5, 50)] * 6 + [Row("shop", "en", 0.5, 50)]), tmp_path / "run")
    found = sweep(run, Question("score", fractions=(0.1,)))
    assert [(near.more.rows, near.fewer, near.ties) for near in found.near] == [(7, None, 7), (7, None, 7)]
    assert "0.1 of all rows: >= 0.5 keeps 7 (100.00%), 7 of them with just this value; a stricter one keeps none" in sweep_text(
        found
    )


def test_the_printed_threshold_keeps_in_a_plan_what_was_said(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call([toy, "--column", "score", "--keep-fraction", "0.3"], capsys, monkeypatch)
    assert code == 0
    told = re.match(r"score: 0.3 of all rows: >= (\S+) keeps (\d+) ", err)
    assert told is not None
    assert out == f"{told[1]}\n"
    plan = write_lists(
        tmp_path, toy_rows(), PLAN.replace("column: rank, at_least: 20", f"column: score, at_least: {out.strip()}")
    )
    table = fates(RunStore(run_plan(plan, tmp_path / "run")), ["score"])
    assert table.column("reason").null_count == int(told[2])


DOCUMENTS = """\
name: docs
source: {catalog: {file: catalog.yaml, entry: docs, partition_rows: 2}}
stages:
  - trap: {}
  - text_rules: {min_chars: 3}
"""
LENGTHS = ((5, 2, 9), (7,), (1, 8), (4, 4, 6), (12, 3), (2, 1))


def test_documents_count_by_their_best_and_by_their_worst_row(tmp_path: Path) -> None:
    lines = [
        {"images": [*([None] * len(sizes)), f"http://x/{at}"], "texts": [*("x" * size for size in sizes), None]}
        for at, sizes in enumerate(LENGTHS)
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_yaml(tmp_path, "entries:\n  docs: {files: [docs.jsonl], shape: documents}\n", "catalog.yaml")
    run = run_plan(load_plan(write_yaml(tmp_path, DOCUMENTS), base=tmp_path), tmp_path / "run")
    found = sweep(run, Question("trapped"))
    assert found.total is not None
    # An image block has no text: its length is 0. Of the last document no text is left, and so nothing.
    every = [(*sizes, 0) for sizes in LENGTHS]
    left = [(*(size for size in sizes if size >= 3), 0) for sizes in LENGTHS[:-1]]
    for counts, documents in ((found.total.all, every), (found.total.kept, left)):
        expected = {
            "rows": [size for sizes in documents for size in sizes],
            "samples": [max(sizes) for sizes in documents],
            "whole_samples": [min(sizes) for sizes in documents],
        }
        for name, values in expected.items():
            curve = getattr(counts, name)
            assert curve == Curve(len(values), counted(values, found.thresholds, False)), name
    low = sweep(run, Question("trapped", at_most=True)).total
    assert low is not None
    assert low.all.samples is not None
    assert low.all.whole_samples is not None
    assert set(low.all.samples.kept) == {6}  # an image block is at most anything
    assert low.all.whole_samples.kept[0] == 0
    text = sweep_text(found)
    assert "samples: those of which a row is kept; whole: those of which every row with a value is kept" in text
    assert "kept whole" in text


SPLITS = """\
name: splits
source: {catalog: {file: catalog.yaml, entry: web}}
stages:
  - trap: {}
  - trap_split: {}
  - text_rules: {min_chars: 5}
"""


def test_a_row_that_was_split_is_kept_when_a_part_of_it_is(tmp_path: Path) -> None:
    lines = [{"url": f"http://web/{size}", "text": "x" * size} for size in (1, 2, 3, 6, 6)]  # each part has two more: `/0`
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_yaml(tmp_path, "entries:\n  web: {files: [web.jsonl]}\n", "catalog.yaml")
    run = run_plan(load_plan(write_yaml(tmp_path, SPLITS), base=tmp_path), tmp_path / "run")
    found = sweep(run, Question("trapped"))
    assert found.total is not None
    assert found.total.kept is not None
    assert (found.thresholds, found.total.all.rows.kept, found.total.kept.rows.kept) == (
        [1, 2, 3, 4, 5, 6], [5, 4, 3, 2, 2, 2], [3, 3, 3, 2, 2, 2],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("question", "message", "hint"),
    [
        (
            Question("scor"),
            "toy, generation 1: `scor`: there is no such column",
            "did you mean `score`? columns with thresholds: ",
        ),
        (Question("zzzz"), "`zzzz`: there is no such column", "columns with thresholds: document, position, rank, score"),
        (Question("text"), "`text`: it is string, which has no thresholds", "columns with thresholds: document, position, rank"),
        (
            Question("score", by=("sorce",)),
            "rows cannot be grouped by `sorce`: there is no such column",
            "did you mean `source`?",
        ),
        (Question("score", by=("score",)), "rows cannot be grouped by `score`: it is float", "few words or whole numbers"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(toy: str, question: Question, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        sweep(toy, question)
    assert hint in str(refused.value.hint)


def test_too_many_groups_are_refused(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_rows, "MAX_GROUPS", 40)
    with pytest.raises(ConfigError, match="`rank` has more than 40 values: no groups to look at"):
        sweep(toy, Question("score", by=("rank",)))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        sweep(str(tmp_path), Question("score"))


def test_a_run_at_work_tells_what_it_has_so_far(toy: str, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    (tmp_path / "run/manifest/1.json").unlink()  # written last: a run that is at work, or was killed, has none
    next((tmp_path / "run/columns" / RunStore(toy).keys(1)[SOURCE]).glob("*.parquet")).unlink()
    found = sweep(str(tmp_path / "run"), Question("score"))
    assert found.total is not None
    assert (found.finished, found.total.kept, found.without) == (False, None, None)
    assert 0 < found.held < 150
    text = sweep_text(found)
    assert "the generation is not finished: these are the rows scored so far, and what it keeps of them is not known yet" in text
    assert {near.of for near in found.near} == {"all"}


def test_a_run_without_a_value_says_so(tmp_path: Path) -> None:
    run = run_plan(write_lists(tmp_path, [Row("web", "en", None, 50), Row("shop", "en", None, 50)]), tmp_path / "run")
    found = sweep(run, Question("score"))
    assert (found.total, found.thresholds, found.near, found.by) == (None, [], [], {})
    assert sweep_text(found).endswith("no row has a value of `score`")
    write_sweep(tmp_path / "page.html", [found])
    assert "no row has a value of `score`" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    found = sweep(run_plan(write_lists(tmp_path, []), tmp_path / "run"), Question("score"))
    assert (found.partitions, found.held) == (0, 0)
    assert "no row has a value of `score`" in sweep_text(found)


def test_values_beyond_all_numbers_are_counted_apart(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    scores = [0.1, 0.2, float("nan"), float("inf"), float("-inf"), None, 0.3]
    pq.write_table(pa.table({"url": [f"http://w/{at}" for at in range(7)], "score": scores}), tmp_path / "web.parquet")
    write_yaml(tmp_path, "entries:\n  web: {files: [web.parquet], carry: {score: float64}}\n", "catalog.yaml")
    plan = "name: odd\nsource: {catalog: {file: catalog.yaml, entry: web}}\n"
    run = run_plan(load_plan(write_yaml(tmp_path, plan), base=tmp_path), tmp_path / "run")
    found = sweep(run, Question("score"))
    assert found.total is not None
    assert (found.held, found.missing, found.infinite, found.total.all.rows.total) == (7, 2, 2, 3)
    assert "not counted: 2 rows without a value (null or NaN), 2 infinite" in sweep_text(found)


PICTURES = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over images of 20 to 31 pixels, the first of which has a hostile caption; those below 24 were judged out."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    for number in range(PICTURES):
        (folder / f"images/{number:02d}.png").write_bytes(encode(draw("blue", "bar")[: 20 + number]))
        text = HOSTILE if number == 5 else f"a blue bar, {number}"
        (folder / f"images/{number:02d}.txt").write_text(text, encoding="utf-8")
    stages = (Measure(), Keep(column="height", at_least=24))
    plan = Plan(name="pictures", source=(Folder(path=str(folder / "images")),), stages=stages)
    run_plan(plan, folder / "run")
    return folder


def test_the_page_shows_both_sides_of_a_threshold_and_runs_nothing(pictures: Path, tmp_path: Path) -> None:
    found = sweep(str(pictures / "run"), Question("height", at=(26,)), seen=3)
    assert [
        (each.threshold, [seen.value for seen in each.kept], [seen.value for seen in each.dropped]) for each in found.boundaries
    ] == [(26, [26, 27, 28], [25, 24, 23])]
    assert [seen.fate for seen in found.boundaries[0].dropped] == ["kept", "kept", "height_below"]
    write_sweep(tmp_path / "page.html", [found])
    page = safe_page(tmp_path / "page.html", 6)
    for text in (
        "<img src=x onerror=alert(1)>",
        "23 · height_below · images · a blue bar, 3",
        "height at or above 26",
        "images (12)",
    ):
        assert text in page.text
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<polyline") == 4  # of all and of those kept: everything, and the one source


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"at": (float("nan"),)}, "a threshold of nan: no number"),
        ({"at": (0.1, float("inf"))}, "a threshold of inf: no number"),
        ({"fractions": (2.0,)}, "a fraction of 2: not a part of all rows"),
    ],
)
def test_what_no_threshold_can_be_is_refused(question: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Question("height", **question)


def test_a_picture_that_is_gone_costs_only_itself(pictures: Path, tmp_path: Path) -> None:
    found = sweep(str(pictures / "run"), Question("height", at=(26,)), seen=2)
    path = pictures / "images/06.png"
    data = path.read_bytes()
    try:
        path.write_bytes(b"\x89PNG" + bytes(len(data) - 4))
        write_sweep(tmp_path / "page.html", [found])
    finally:
        path.write_bytes(data)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.loads) == 3
    assert "a blue bar, 6 · not shown: " in page.text


def test_rows_of_one_value_are_a_scattered_choice(toy: str) -> None:
    found = sweep(toy, Question("rank", at=(20,)), seen=5)
    again = sweep(toy, Question("rank", at=(20,)), seen=5)
    assert found.boundaries == again.boundaries
    assert [seen.fate for seen in found.boundaries[0].dropped] == ["rank_below"] * 5
    ties = sweep(toy, Question("document", at=(0,)), seen=5).boundaries[0].kept
    assert len({seen.text for seen in ties}) == 5
    assert [seen.text for seen in ties] != ["0", "1", "2", "3", "4"]


def call(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmdata", "sweep", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), *capsys.readouterr()


def test_the_command_prints_tables_or_json_and_writes_the_page(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "TICK_S", 0.0)
    run, page = str(pictures / "run"), tmp_path / "page.html"
    asked = [run, "--column", "height", "--column", "aspect", "--html", str(page)]
    code, out, err = call(asked, capsys, monkeypatch)
    assert code == 0
    assert err == f"height: 1 of 1 partitions read\naspect: 1 of 1 partitions read\nwrote {page}\n"
    lines = out.splitlines()
    assert lines[:4] == [
        "height (px: stored height, upright): plan pictures, generation 1",
        "rows: 12 have the column",
        "all: the 12 rows with a value, whatever became of them; 8 of these were kept",
        "a threshold keeps what is at or above it",
    ]
    assert lines[6:8] == ["at least  all rows          kept rows", "20              12  100.0%          8  100.0%"]
    assert "0.3 of all rows: >= 28 keeps 4 (33.33%); >= 29 keeps 3 (25.00%)" in lines
    assert lines[lines.index("by source") + 1 :][:3] == [
        "          of  rows     26     28     29     30",
        "images   all    12  50.0%  33.3%  25.0%  16.7%",
        "        kept     8  75.0%  50.0%  37.5%  25.0%",
    ]
    assert "aspect (ratio: longer side over shorter side): plan pictures, generation 1" in lines
    assert page.exists()
    facts: list[dict[str, Any]] = json.loads(call([run, "--column", "height", "--json"], capsys, monkeypatch)[1])
    assert (facts[0]["column"], facts[0]["total"]["all"]["rows"]["total"], facts[0]["by"]["source"][0]["name"]) == (
        "height", 12, "images",
    )  # fmt: skip
    assert "boundaries" not in facts[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--keep-fraction", "0.3", "--json"], "--keep-fraction prints a threshold, no JSON and no page"),
        (["--keep-fraction", "30"], "--keep-fraction 30: not a part of all rows"),
    ],
)
def test_what_the_command_refuses(
    toy: str, args: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call([toy, "--column", "score", *args], capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert message in err
