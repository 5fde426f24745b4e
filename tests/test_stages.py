"""Each stage on the smallest possible input."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.dedupe import exact_verdicts
from mmdata.schema import OUTCOME, ROW
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards, order_of
from mmdata.stages.split_captions import SplitCaptions
from mmdata.stages.text_rules import TextRules, latin_shares
from mmdata.stages.verbs import Batch, Filter, WorkerContext
from mmdata.storage import open_store


@pytest.fixture
def ctx() -> WorkerContext:
    return WorkerContext(open_store("."))


def batch(images: list[np.ndarray] | None = None, **columns: Sequence[object]) -> Batch:
    num = len(next(iter(columns.values())))
    return Batch(pa.table({ROW: list(range(num)), **columns}), images or [])


def reasons(stage: Filter, ctx: WorkerContext, **columns: Sequence[object]) -> list[str | None]:
    found: list[str | None] = stage.open(ctx)(batch(None, **columns)).column("reason").to_pylist()
    return found


def test_keep_has_both_ends(ctx: WorkerContext) -> None:
    stage = Keep(column="x", at_least=0.2, at_most=0.4)
    assert reasons(stage, ctx, x=[0.1, 0.2, 0.4, 0.5, None, float("nan")]) == [
        "x_below", None, None, "x_above", "x_missing", "x_missing",
    ]  # fmt: skip
    assert reasons(Keep(column="x", at_least=0, nulls="keep"), ctx, x=[None]) == [None]


def test_text_rules_name_the_first_that_fails(ctx: WorkerContext) -> None:
    stage = TextRules(min_words=2, max_words=3, min_chars=4, max_chars=12, min_latin=0.5)
    texts = [None, "one", "a b c d", "a b", "aaaaaaa bbbbbbb", "世界 你好", "good text"]
    num = len(texts)
    assert reasons(stage, ctx, text=texts, document=[False] * num, media=["image"] * num) == [
        "text_missing", "text_few_words", "text_many_words", "text_short", "text_long", "text_not_latin", None,
    ]  # fmt: skip


def test_an_image_block_of_a_document_needs_no_text(ctx: WorkerContext) -> None:
    found = reasons(TextRules(min_words=1), ctx, text=[None, None], document=[True, True], media=["image", None])
    assert found == [None, "text_missing"]


def test_latin_share() -> None:
    assert latin_shares(pl.Series(["año 12", "ab世界", "123"])).tolist() == [1, 0.5, 1]


def test_split_captions_makes_one_row_of_each(ctx: WorkerContext) -> None:
    captions = [[{"text": "two", "kind": "alt"}, {"text": "one", "kind": "alt"}, {"text": "", "kind": "alt"}], None, []]
    parents, table = SplitCaptions().open(ctx)(batch(text=["one", None, "three"], captions=captions, document=[False] * 3))
    assert parents.tolist() == [0, 0, 1, 2]
    assert table.column("text").to_pylist() == ["one", "two", None, "three"]
    assert table.column("caption_kind").to_pylist() == [None, "alt", None, None]


def test_measure_is_of_what_is_stored(ctx: WorkerContext) -> None:
    payload = [{"size": 7, "sha256": "ab"}]
    row = Measure().open(ctx)(batch([np.zeros((30, 60, 3), np.uint8)], payload=payload)).to_pylist()[0]
    assert row == {"width": 60, "height": 30, "aspect": 2.0, "bytes": 7, "sha256": "ab"}


def test_clip_score_gives_no_score_without_a_caption(ctx: WorkerContext) -> None:
    stage = ClipScore.model_validate({"scorer": {"fake": True}})
    images = [np.full((4, 4, 3), value, np.uint8) for value in (0, 1, 2)]
    table = stage.open(ctx)(batch(images, text=["a", None, ""]))
    first, *rest = table.column("clip_score").to_pylist()
    assert -1 <= first <= 1
    assert rest == [None, None]
    assert table.column(OUTCOME).to_pylist() == [None, None, None]


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.1, 0.2, None]), st.integers(0, 3)), min_size=1, max_size=12)


def duplicates(rows: list[tuple[str, float | None, int]], order: list[int]) -> list[dict[str, object]]:
    table = pa.table({
        "_partition": pa.array([number % 2 for number in range(len(rows))], pa.int64()),
        ROW: pa.array(range(len(rows)), pa.int64()),
        "sample_id": [f"{sample:032x}" for _, _, sample in rows],
        "position": pa.array([0] * len(rows), pa.int32()),
        "hash": [key for key, _, _ in rows],
        "score": pa.array([score for _, score, _ in rows], pa.float32()),
    })  # fmt: skip
    found: list[dict[str, object]] = exact_verdicts(table.take(order), "hash", "score").to_pylist()
    return found


@pytest.fixture(scope="module", autouse=True)
def _polars() -> None:
    """Load polars, which dedupe does at its first call: that is no example's time."""
    duplicates([("a", None, 0)], [0])


@given(ROWS, st.randoms(use_true_random=False))
def test_dedupe_keeps_one_of_each_whatever_the_order(rows: list[tuple[str, float | None, int]], random: object) -> None:
    order = list(range(len(rows)))
    found = duplicates(rows, order)
    assert len(rows) - len(found) == len({key for key, _, _ in rows})
    random.shuffle(order)  # type: ignore[attr-defined]
    assert duplicates(rows, order) == found


def test_dedupe_keeps_the_copy_with_the_better_score() -> None:
    found = duplicates([("a", 0.2, 1), ("a", 0.4, 2), ("b", None, 3)], [0, 1, 2])
    assert [(row[ROW], row["reason"], row["keeper_id"]) for row in found] == [(0, "duplicate", f"{2:032x}")]


def test_the_order_of_samples_depends_on_the_seed_alone() -> None:
    assert order_of(0, "a") == order_of(0, "a")
    assert order_of(0, "a") != order_of(1, "a")
    assert order_of(-1, "a") >= 0


def test_a_sink_needs_media() -> None:
    from mmdata.errors import ConfigError

    with pytest.raises(ConfigError, match="no stage gives `payload`"):
        Shards().reads({"url": pa.field("url", pa.string())})
