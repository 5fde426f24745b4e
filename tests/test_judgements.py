"""Judgements: each rule beside the same rule said in another way, whatever the rows and however they are cut."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.config import parse_yaml
from mmdata.errors import ConfigError
from mmdata.plan import parse_plan
from mmdata.schema import PARTITION, ROW
from mmdata.stages import expression
from mmdata.stages.block import Block
from mmdata.stages.cap import Cap
from mmdata.stages.hosts import domain_of
from mmdata.stages.keep import Keep
from mmdata.stages.passes import Gather, Judge, Round, Scatter
from mmdata.stages.ranks import sample_hashes
from mmdata.stages.sample import Sample
from mmdata.stages.text_rules import TextRules
from mmdata.stages.top import Top
from mmdata.stages.verbs import Batch, Filter, GlobalFilter, WorkerContext
from mmdata.storage import open_store

SCORES = st.one_of(st.none(), st.sampled_from([math.nan, -0.0, 0.0, 0.25, 0.25, -1.5, math.inf]), st.floats(-1, 1, width=32))
ROWS = st.lists(st.tuples(SCORES, st.sampled_from(["a", "b", None])), min_size=1, max_size=40)


@pytest.fixture
def ctx() -> WorkerContext:
    return WorkerContext(open_store("."))


def table_of(rows: Sequence[tuple[float | None, str | None]], kind: pa.DataType | None = None) -> pa.Table:
    num = len(rows)
    return pa.table({
        PARTITION: pa.array([0] * num, pa.int64()), ROW: pa.array(range(num), pa.int64()),
        "sample_id": [f"{row:032x}" for row in range(num)], "position": pa.array([0] * num, pa.int32()),
        "document": [False] * num, "source": pa.array([source for _, source in rows], pa.string()),
        "score": pa.array([score for score, _ in rows], kind or pa.float32()),
    })  # fmt: skip


def cut(table: pa.Table, places: Sequence[int]) -> list[pa.Table]:
    """Cut a table into partitions, in another order than its rows'."""
    ends = sorted({0, table.num_rows, *(place % (table.num_rows + 1) for place in places)})
    parts = [table.slice(start, stop - start) for start, stop in itertools.pairwise(ends)]
    return [
        part.set_column(0, PARTITION, pa.array([number] * part.num_rows, pa.int64())) for number, part in enumerate(parts[::-1])
    ]


def dropped(stage: GlobalFilter, parts: list[pa.Table]) -> dict[int, str]:
    """Run a GlobalFilter's passes as the engine does; return the reasons of the rows that go."""
    passes, value = stage.passes(), None
    last = passes[-1]
    if isinstance(last, Judge):
        for this in passes[:-1]:
            assert isinstance(this, Round)
            if value is None or not this.done(value):
                value = this.close(this.add([this.count(part, value) for part in parts]), value)
        verdicts = [last.work(part, value) for part in parts]
    else:
        scatter = passes[0]
        assert isinstance(scatter, Scatter)
        assert isinstance(last, Gather)
        assert scatter.bucket is not None
        records = pa.concat_tables([scatter.prepare(part) for part in parts])
        where = scatter.bucket(records, 3)
        verdicts = [last.work(records.filter(pa.array(where == bucket))) for bucket in range(3)]
    rows = [row for table in verdicts for row in table.to_pylist()]
    found = {row[ROW]: row["reason"] for row in rows}
    assert len(found) == len(rows)  # nobody is judged twice
    assert set(found.values()) <= set(stage.reasons())
    return found


def ranked(rows: Sequence[tuple[float | None, str | None]], per: bool) -> pl.DataFrame:
    """Return the rows with a score, with the number of those that are better, and of all, in their group."""
    frame = pl.DataFrame(pl.from_arrow(table_of(rows))).with_columns(pl.col("score").fill_nan(None) + 0.0).drop_nulls("score")
    over = ["source"] if per else [pl.lit(0)]
    return frame.with_columns(
        better=pl.col("score").rank("min", descending=True).over(over) - 1, total=pl.len().over(over)
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(0, 12), st.booleans(), st.lists(st.integers(0, 40), max_size=4))
def test_top_count_is_that_of_a_sort(rows: list[Any], count: int, per: bool, places: list[int]) -> None:
    stage = Top(column="score", count=count, per=("source",) if per else ())
    found = dropped(stage, cut(table_of(rows), places))
    oracle = ranked(rows, per)
    worse = set(oracle.filter(pl.col("better") >= count)[ROW])
    assert {row for row, reason in found.items() if reason == "score_below_top"} == worse
    assert {row for row, reason in found.items() if reason == "score_missing"} == set(range(len(rows))) - set(oracle[ROW])


@settings(deadline=None, max_examples=40)
@given(ROWS, st.sampled_from([0.01, 0.29, 0.3, 0.5, 1.0]), st.sampled_from(["keep", "hash", "datacomp"]), st.booleans())
def test_top_fraction_by_each_rule_for_ties(rows: list[Any], fraction: float, ties: str, per: bool) -> None:
    stage = Top.model_validate(
        {"column": "score", "fraction": fraction, "ties": ties, "per": ["source"] if per else [], "nulls": "keep"}
    )
    kept = set(range(len(rows))) - set(dropped(stage, cut(table_of(rows), [7, 20])))
    scored = ranked(rows, per)
    kept &= set(scored[ROW])
    for _, group in scored.group_by(["source"] if per else [pl.lit(0)]):
        scores = sorted(group["score"], reverse=True)
        mine = kept & set(group[ROW])
        if ties == "datacomp":
            last = int(len(scores) * fraction)
            assert mine == set(group.filter(pl.col("score") >= (scores[last] if last < len(scores) else -math.inf))[ROW])
            continue
        wanted = math.floor(len(scores) * round(fraction * 100) / 100 + 1e-9)
        assert len(mine) == wanted if ties == "hash" else len(mine) >= wanted
        worst = min(group.filter(pl.col(ROW).is_in(list(mine)))["score"], default=math.inf)
        above = group.filter(pl.col("score") > worst)
        assert set(above[ROW]) <= mine


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=30), st.integers(0, 9), st.booleans()
)
def test_top_is_exact_for_whole_numbers_of_64_bits(values: list[int | None], count: int, lowest: bool) -> None:
    table = table_of([(None, None)] * len(values)).set_column(6, "score", pa.array(values, pa.int64()))
    found = dropped(Top(column="score", count=count, lowest=lowest), cut(table, [3, 9]))
    ordered = sorted((value for value in values if value is not None), reverse=not lowest)
    bound = ordered[min(count, len(ordered)) - 1] if count and ordered else None
    kept = [] if bound is None else [value for value in ordered if (value <= bound if lowest else value >= bound)]
    assert sorted(value for row, value in enumerate(values) if row not in found and value is not None) == sorted(kept)


def test_ties_by_hash_do_not_depend_on_the_cuts_and_differ_by_seed() -> None:
    table = table_of([(0.5, "a")] * 300)
    keeps = [
        set(range(300)) - set(dropped(Top(column="score", count=100, ties="hash", seed=seed), cut(table, places)))
        for seed, places in [(0, [50]), (0, [7, 100, 220]), (1, [50])]
    ]
    assert [len(kept) for kept in keeps] == [100, 100, 100]
    assert keeps[0] == keeps[1] != keeps[2]


@settings(deadline=None, max_examples=40)
@given(ROWS, st.integers(1, 5), st.booleans(), st.lists(st.integers(0, 40), max_size=4))
def test_cap_is_that_of_a_sort(rows: list[Any], most: int, best: bool, places: list[int]) -> None:
    stage = Cap(per=("source",), rows=most, best="score" if best else None)
    table = table_of(rows)
    frame = pl.DataFrame(pl.from_arrow(table)).with_columns(
        rank=pl.col("score").fill_nan(None) + 0.0 if best else pl.lit(0),
        hash=pl.Series(sample_hashes(table.column("sample_id"), 0)),
    )
    ordered = frame.drop_nulls("source").sort("rank", "hash", descending=[True, False], nulls_last=True)
    over = ordered.with_columns(place=pl.int_range(pl.len()).over("source")).filter(pl.col("place") >= most)
    assert set(dropped(stage, cut(table, places))) == set(over[ROW])


def test_cap_by_domain_counts_sub_domains_together() -> None:
    urls = [
        "http://a.x.co.uk/1",
        "http://b.x.co.uk:80/2",
        "https://X.co.uk./3",
        "http://y.com",
        "http://10.0.0.1/",
        None,
        "no url",
    ]
    table = table_of([(0.0, "a")] * len(urls)).append_column("url", pa.array(urls, pa.string()))
    assert len(dropped(Cap(per=("domain(url)",), rows=1), [table])) == 2
    assert dropped(Cap(per=("host(url)",), rows=1), [table]) == {}
    assert [domain_of(host) for host in ("a.b.com", "10.0.0.1", "x.co.uk", "localhost")] == [
        "b.com", "10.0.0.1", "x.co.uk", "localhost",
    ]  # fmt: skip


def test_a_sample_is_of_samples_and_a_smaller_one_is_part_of_it() -> None:
    rows = 3000
    table = table_of([(0.0, "a")] * rows)
    ids = [f"{row // 3 if row % 2 else row:032x}" for row in range(rows)]
    documents = pa.array([bool(row % 2) for row in range(rows)])
    table = table.set_column(2, "sample_id", pa.array(ids)).set_column(4, "document", documents)
    half, tenth = (set(dropped(Sample(share=share), cut(table, [1000]))) for share in (0.5, 0.1))
    assert half < tenth
    assert 0.4 < len(half) / rows < 0.6
    assert half == set(dropped(Sample(share=0.5), [table]))
    assert half != set(dropped(Sample(share=0.5, seed=1), [table]))
    gone = {ids[row] for row in half}
    assert gone.isdisjoint(ids[row] for row in range(rows) if row not in half)  # documents stay whole


@pytest.mark.parametrize("count", [1, 10, 40, 500])
def test_a_count_of_samples_counts_a_document_once(count: int) -> None:
    """40 documents of 5 rows and 60 pairs."""
    ids = [f"{row // 5 if row < 200 else row:032x}" for row in range(260)]
    table = table_of([(0.0, "a")] * 260).set_column(2, "sample_id", pa.array(ids))
    table = table.set_column(4, "document", pa.array([row < 200 for row in range(260)]))
    found = dropped(Sample(count=count), [table.slice(0, 100), table.slice(100)])
    assert len({ids[row] for row in range(260)} - {ids[row] for row in found}) == min(count, 100)


def hash_by_hand(text: str, seed: int) -> int:
    """Eight bytes after the other through SplitMix64's finalizer, with its step between them."""

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    data = text.encode()
    state = (seed ^ len(data) * 0x9E3779B97F4A7C15) % 2**64
    for start in range(0, len(data), 8):
        state = (mix(state ^ int.from_bytes(data[start : start + 8], "little")) + 0x9E3779B97F4A7C15) % 2**64
    return mix(state)


def test_hashes_of_ids_are_the_same_for_ever() -> None:
    texts = ["0" * 32, "0" * 31 + "1", "short", "", "é" * 9]
    ids = pa.chunked_array([[*texts, None]], pa.string())
    assert sample_hashes(ids, 7).tolist() == [hash_by_hand(text, 7) for text in [*texts, ""]]
    assert sample_hashes(ids.slice(1), 7).tolist() == sample_hashes(ids, 7)[1:].tolist()
    assert sample_hashes(ids, 7)[0] == 0x20B67A783457603E


def reasons(stage: Filter, ctx: WorkerContext, **columns: object) -> list[str | None]:
    table = pa.table({ROW: list(range(len(next(iter(columns.values()))))), **columns})  # type: ignore[arg-type]
    found: list[str | None] = stage.open(ctx)(Batch(table)).column("reason").to_pylist()
    return found


def test_where_is_false_null_or_true(ctx: WorkerContext) -> None:
    text = "clip_score >= 0.28 and (width >= 200 or source = 'laion')"
    columns = {
        "clip_score": pa.array([0.28, 0.3, 0.3, 0.1, None, math.nan, None], pa.float32()),
        "width": pa.array([200, 10, 10, 500, 500, 500, None], pa.int32()),
        "source": ["a", "laion", "a", "a", "a", "a", None],
    }
    stage = Keep(where=text, named="good")
    assert stage.reads() == ("clip_score", "source", "width")
    assert reasons(stage, ctx, **columns) == [None, None, "good_false", "good_false", "good_null", "good_null", "good_null"]
    assert reasons(Keep(where=text, nulls="keep"), ctx, **columns) == [None, None, "where_false", "where_false", None, None, None]
    assert reasons(Keep(where="width > 100 or clip_score > 0"), ctx, **columns)[3:5] == [None, None]  # true, whatever the other
    assert stage.flag() == "keep_good"


VALUES = {"x": [0.5, 0.25, None, 3.0], "n": [1, 2, None, 4], "s": ["a", None, "b%", ""], "f": [True, False, None, True]}


@pytest.mark.parametrize(("text", "python"), [
    ("x > 0.25 and n < 4", lambda x, n, s, f: None if x is None else x > 0.25 and n < 4),
    ("s = 'a' or s = ''", lambda x, n, s, f: None if s is None else s in ("a", "")),
    ("s in ('a', 'b%')", lambda x, n, s, f: None if s is None else s in ("a", "b%")),
    ("s like '%b%'", lambda x, n, s, f: None if s is None else "b" in s),
    ("not f", lambda x, n, s, f: None if f is None else not f),
    ("x is null or n between 2 and 3", lambda x, n, s, f: x is None or 2 <= n <= 3),
    ("greatest(x, n) / least(x, n) <= 3.0", lambda x, n, s, f: None if x is None else max(x, n) / min(x, n) <= 3),
    ("length(s) > 1", lambda x, n, s, f: None if s is None else len(s) > 1),
    ("coalesce(n, 0) % 2 = 0", lambda x, n, s, f: (n or 0) % 2 == 0),
    ("case when f then x > 1 else n = 2 end", lambda x, n, s, f: (x > 1) if f else None if n is None else n == 2),
    ('"x" + n <> 1.5', lambda x, n, s, f: None if x is None else x + n != 1.5),
])  # fmt: skip
def test_where_says_what_it_says(text: str, python: Callable[..., bool | None]) -> None:
    kinds = {"x": pa.float32(), "n": pa.int32(), "s": pa.string(), "f": pa.bool_()}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in VALUES.items()})
    expression.check(text, {name: pa.field(name, kind) for name, kind in kinds.items()})
    assert expression.evaluate(text, table).to_pylist() == [python(*row) for row in zip(*VALUES.values(), strict=True)]


PLAN = """\
name: w
source:
  catalog: {file: mmdata/demo/data/catalog.yaml, entry: pairs}
stages:
  - text_rules
  - keep:
      where: WHERE
"""


@pytest.mark.parametrize(("where", "message"), [
    ("positoin > 1", r"plan.yaml:6: `keep` reads `positoin`, which nothing before it writes\n  hint: did you mean `position`"),
    ("position", r"plan.yaml:6: .*it gives Int32, not true or false"),
    ("position > 'x'", r"plan.yaml:6: .*cannot compare string with numeric"),
    ("url + position > 1", r"plan.yaml:6: .*\n  hint: .*`url` is string"),
    ("position >", r"plan.yaml:6: .*unable to parse[\s\S]*hint: write SQL"),
    ("position > 1; drop table x", r"plan.yaml:6: .*unexpected token"),
    ("__import__(url) = 'x'", r"plan.yaml:6: .*unsupported function '__import__'"),
    ("position > avg(position)", r"plan.yaml:6: .*looks at more than one row[\s\S]*`top`"),
    ("sum(position) > 3", r"plan.yaml:6: .*looks at more than one row"),
    ("count(*) > 3", r"plan.yaml:6: .*looks at more than one row"),
    ("row_number() over (partition by url) = 1", r"plan.yaml:6: .*looks at more than one row"),
    ("count(*) over (partition by url) = 1", r"plan.yaml:6: .*looks at more than one row"),
    ("position in (select position from x)", r"plan.yaml:6: .*relation 'x' was not found"),
    ("position > 1 and now() > 1", r"plan.yaml:6: .*asks for the time"),
    ("1 = 1", r"plan.yaml:6: .*names no column"),
    ("cast(url as int) > 1", r"plan.yaml:6: .*cast[\s\S]*try_cast"),
    ("url ~ '('", r"plan.yaml:6: .*regex"),
    ("(" * 40 + "position > 1" + ")" * 40, r"plan.yaml:6: .*nests more than"),
    ("position > 1 or " * 400 + "document", r"plan.yaml:6: .*longer than 4,000 characters"),
    ("read_csv('/etc/passwd') = 1", r"plan.yaml:6: .*unsupported function|plan.yaml:6: .*read_csv"),
])  # fmt: skip
def test_an_expression_that_cannot_be_asked_is_refused_with_its_line(where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_plan(parse_yaml(PLAN.replace("WHERE", json.dumps(where)), "plan.yaml"))


@pytest.mark.parametrize(("stages", "message"), [
    ("- keep: {column: position, where: 'position > 1'}", r"give either `column`, with a range, or `where`"),
    ("- keep: {where: 'position > 1', at_least: 1}", r"`where` says its bounds itself"),
    ("- top: {column: position}", r"give either `fraction` or `count`"),
    ("- top: {column: url, count: 3}", r"p:4: `top` needs numbers, but `url` is string"),
    ("- top: {column: position, count: 3, per: [captions]}", r"p:4: `top` groups by `captions`, which is list"),
    ("- top: {column: position, count: 3, per: [suorce]}", r"p:4: `top` reads `suorce`, .*\n  hint: did you mean `source`"),
    ("- top: {column: position, count: 3, ties: datacomp}", r"`ties: datacomp` is a rule for the highest `fraction`"),
    ("- cap: {per: ['hots(url)'], rows: 3}", r"a group is a column, `host\(COLUMN\)` or `domain\(COLUMN\)`"),
    ("- cap: {per: ['host(position)'], rows: 3}", r"p:4: `cap`: `host\(position\)` is of texts, but `position` is int32"),
    ("- sample: {share: 0.1, count: 3}", r"give either `share` or `count`"),
    ("- block: {urls: nowhere.txt}", r"p:4: block list nowhere.txt: no such file"),
    ("- block: {}", r"give `urls`, `domains` or `phrases`"),
    ("- keep: {where: 'position > 1', tag: true}\n- keep: {where: 'position > 2', tag: true}",
     r"p:5: `keep` writes `keep_where`, which is there already"),
])  # fmt: skip
def test_mistakes_in_judgements_are_named(stages: str, message: str) -> None:
    text = f"name: w\nsource: {{catalog: {{file: mmdata/demo/data/catalog.yaml, entry: pairs}}}}\nstages:\n{stages}\n"
    with pytest.raises(ConfigError, match=message):
        parse_plan(parse_yaml(text, "p"))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.float16(), pa.int64(), pa.uint8()])
@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=9), bounds=st.tuples(*[st.integers(0, 90)] * 2)
)
def test_ranges_are_as_python_has_them(kind: pa.DataType, values: list[int | None], bounds: tuple[int, int]) -> None:
    least, most = sorted(bound / 10 for bound in bounds)
    column = pa.array([None if value is None else value / (10 if pa.types.is_floating(kind) else 1) for value in values]).cast(
        kind
    )
    found = reasons(Keep(column="x", at_least=least, at_most=most), WorkerContext(open_store(".")), x=column)
    number = np.dtype(kind.to_pandas_dtype()).type if pa.types.is_floating(kind) else float
    wide = np.float32 if kind == pa.float16() else number
    for value, reason in zip(column.to_pylist(), found, strict=True):
        if value is None:
            assert reason == "x_missing"
        else:
            low, high = wide(value) < wide(least), wide(value) > wide(most)
            assert reason == ("x_below" if low else "x_above" if high else None)


def test_a_bound_counts_in_the_columns_own_precision(ctx: WorkerContext) -> None:
    column = pa.array([0.3], pa.float32())
    assert reasons(Keep(column="x", at_most=0.3), ctx, x=column) == [None]
    assert reasons(Keep(where="x <= 0.3"), ctx, x=column) == [None]
    big = pa.array([2**53, 2**53 + 1], pa.int64())
    assert reasons(Keep(column="x", at_most=float(2**53)), ctx, x=big) == [None, "x_above"]


def by_hand(text: str | None, stage: TextRules) -> str | None:
    if text is None:
        return "text_missing"
    words, letters = len(text.split()), [char for char in text if char.isalpha()]
    latin = sum(char < "\u0250" for char in letters) / len(letters) if letters else 1.0
    rules = {
        "text_few_words": words < stage.min_words, "text_many_words": words > stage.max_words,
        "text_short": len(text) < stage.min_chars, "text_long": len(text) > stage.max_chars,
        "text_not_latin": latin < stage.min_latin,
    }  # fmt: skip
    return next((name for name, broken in rules.items() if broken), None)


TEXTS = st.lists(
    st.one_of(st.none(), st.text(st.sampled_from("ab é世д1,. \t\n\u00a0\u2003\x1c\x1f\u0660\u0301ªǅ"), max_size=24)),
    min_size=1,
    max_size=9,
)


@given(TEXTS, st.integers(0, 20), st.integers(1, 5), st.integers(0, 9), st.sampled_from([0.0, 0.5, 0.9]))
def test_text_rules_are_as_python_has_them(texts: list[str | None], least: int, most: int, short: int, latin: float) -> None:
    stage = TextRules(min_words=least, max_words=most, min_chars=short, max_chars=12, min_latin=latin)
    columns = {"document": [False] * len(texts), "media": ["image"] * len(texts)}
    found = reasons(stage, WorkerContext(open_store(".")), text=pa.array(texts, pa.string()), **columns)
    assert found == [by_hand(text, stage) for text in texts]


def lists(folder: Path, **entries: str) -> dict[str, str]:
    for name, text in entries.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: str(folder / name) for name in entries}


def test_block_lists_name_the_first_that_holds(tmp_path: Path, ctx: WorkerContext) -> None:
    paths = lists(
        tmp_path, urls="http://a.com/1\n# http://a.com/2\n", domains="bad.org\nÜ.de\n", phrases="buy  now\nCialis\nsüß\n"
    )
    urls = [
        "http://a.com/1",
        "http://a.com/2",
        "http://x.BAD.org:80/3",
        "http://notbad.org",
        None,
        "http://bad.org.",
        "http://[x/",
    ]
    texts = ["buy now", "Buy, NOW!", "-", "cialisx specialist", "cialis", "-", "so SÜSS"]
    found = reasons(Block(**paths), ctx, url=urls, text=texts)
    assert found == ["url_blocked", "phrase_blocked", "domain_blocked", None, "phrase_blocked", "domain_blocked", None]
    inside = reasons(Block(phrases=paths["phrases"], match="anywhere"), ctx, text=["xcialisx", "buy now", None])
    assert inside == ["phrase_blocked", None, None]  # `anywhere` takes a phrase as it is written


def test_a_changed_list_is_another_judgement_and_its_place_is_not(tmp_path: Path) -> None:
    first = Block(**lists(tmp_path, urls="http://a.com/1\n"))
    (tmp_path / "b").mkdir()
    again = Block(**lists(tmp_path / "b", urls="http://a.com/1\n"))
    assert first.inputs() == again.inputs()
    assert first.inputs() != Block(**lists(tmp_path, domains="http://a.com/1\n")).inputs()
    (tmp_path / "urls").write_text("http://a.com/2\n", encoding="utf-8")
    assert first.inputs() != again.inputs()


@given(st.lists(st.one_of(st.none(), st.text(st.sampled_from("ht p:/.a@B1[]\\?#é"), max_size=14)), min_size=1, max_size=6))
def test_hosts_are_those_that_deny_reads(urls: list[str | None]) -> None:
    from mmdata.stages.deny import host_of
    from mmdata.stages.hosts import hosts_of

    urls += [None if url is None else f"http://{url}" for url in urls]
    found = hosts_of(pa.chunked_array([urls], pa.string())).to_pylist()
    assert found == [None if url is None else host_of(url) for url in urls]


def test_thousands_of_phrases_are_fast(tmp_path: Path, ctx: WorkerContext) -> None:
    """20,000 phrases and 20,000 captions: one by one this would be 400 million searches."""
    import time

    path = lists(tmp_path, phrases="".join(f"phrase number {n} {n * 7919 % 20011}\n" for n in range(20_000)))["phrases"]
    texts = [f"a caption of phrase number {n}, {n * 7919 % 20011 + n % 2}." for n in range(20_000)]
    work = Block(phrases=path).open(ctx)
    started = time.perf_counter()
    found = work(Batch(pa.table({ROW: range(20_000), "text": texts}))).column("reason")
    assert found.null_count == 10_000
    assert time.perf_counter() - started < 5


def test_stages_are_listed_without_polars() -> None:
    code = "import sys; import mmdata.stages; print(sorted({'polars', 'ray', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
