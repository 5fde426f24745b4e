"""Embeddings: kept beside the column file, one float16 line a row held, and given to readers as columns like any other."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.engine import Runner, RunStore
from mmdata.engine.gc import collect
from mmdata.engine.keys import plan_keys
from mmdata.errors import RunError
from mmdata.executors import InlineExecutor
from mmdata.models import HashTowers, OpenClip, ScorerSpec
from mmdata.plan import Plan
from mmdata.report.fates import fates
from mmdata.schema import embedding
from mmdata.shards import open_corpus
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.text_rules import TextRules
from tests.flow.small import corpus_digest
from tests.scores.small import plan_of, rows, run, write_images

BOTH = ClipScore(scorer=ScorerSpec(fake=True), embeddings=("image", "text"))
IMAGE, TEXT = "clip_score_image_embedding", "clip_score_text_embedding"


def column_files(folder: Path, plan: Plan, index: int) -> list[Path]:
    """Return the files that hold the columns of a step."""
    return sorted((folder / "columns" / plan_keys(plan.located())[index]).iterdir())


def test_embeddings_lie_beside_the_column_file(tmp_path: Path) -> None:
    plan = plan_of(write_images(tmp_path / "images", 6, {2: None, 4: ""}), BOTH)
    run(plan, tmp_path / "run")
    arrays = [np.load(path) for path in column_files(tmp_path / "run", plan, 0) if path.suffix == ".npy"]
    assert [(array.dtype, array.shape) for array in arrays] == [(np.dtype("float16"), (6, 8))] * 2
    (table,) = [pq.read_table(path) for path in column_files(tmp_path / "run", plan, 0) if path.suffix == ".parquet"]
    assert table.column(IMAGE).to_pylist() == [True] * 6
    assert table.column(TEXT).to_pylist() == [True, True, False, True, False, True]


def test_readers_get_them_as_a_column(tmp_path: Path) -> None:
    run(plan_of(write_images(tmp_path / "images", 6, {2: None}), BOTH), tmp_path / "run")
    table = fates(RunStore(str(tmp_path / "run")), ["text", "clip_score", IMAGE, TEXT])
    assert table.schema.field(IMAGE).type == embedding(8) == pa.list_(pa.float16(), 8)
    known = HashTowers().embed([], ["a blue square"])[1][0]
    for row in table.to_pylist():
        if row["text"] is None:
            assert (row["clip_score"], row[TEXT]) == (None, None)
        else:
            cosine = np.dot(np.asarray(row[IMAGE], np.float64), np.asarray(row[TEXT], np.float64))
            assert abs(cosine - row["clip_score"]) < 2e-3
        if row["text"] == "a blue square":
            assert np.abs(np.asarray(row[TEXT], np.float64) - known).max() < 1e-3


def test_they_reach_no_sample(tmp_path: Path) -> None:
    result = run(plan_of(write_images(tmp_path / "images", 3), BOTH), tmp_path / "run")
    corpus = open_corpus(str(result.corpus))
    facts = json.loads(corpus.read(0)["json"])
    assert "clip_score" in facts
    assert not {IMAGE, TEXT} & set(facts)


def test_rows_added_later_have_an_array_of_their_own_and_the_same_bytes(tmp_path: Path) -> None:
    """Rows 0 to 5 have short captions in turn: the strict rule holds back three, the loose one lets them through."""
    images = write_images(tmp_path / "images", 6, {1: "no", 3: "no", 5: "no"})
    scorer = ScorerSpec(open_clip=OpenClip(batch=4))
    stage = ClipScore(scorer=scorer, embeddings=("image",))
    strict, loose = (plan_of(images, TextRules(min_chars=number), stage) for number in (4, 1))
    run(strict, tmp_path / "run")
    first = corpus_digest(tmp_path / "run")
    result = run(loose, tmp_path / "run")
    assert result.computed["clip_score"] == 3
    arrays = [path for path in column_files(tmp_path / "run", loose, 1) if path.suffix == ".npy"]
    assert [np.load(path).shape for path in arrays] == [(3, 128), (3, 128)]
    run(loose, tmp_path / "fresh")
    assert corpus_digest(tmp_path / "run") == corpus_digest(tmp_path / "fresh")
    columns = ("clip_score", "clip_score_image_embedding")
    assert rows(tmp_path / "run", *columns) == rows(tmp_path / "fresh", *columns)
    assert not run(strict, tmp_path / "run").fresh
    assert corpus_digest(tmp_path / "run") == first


def test_what_a_killed_attempt_left_is_not_taken_for_another(tmp_path: Path) -> None:
    plan = plan_of(write_images(tmp_path / "images", 4), BOTH)
    run(plan, tmp_path / "whole")
    ident = RunStore(str(tmp_path / "whole")).read_json("generations/1.json")["partitions"][0]["ident"]
    stale = tmp_path / "run" / "columns" / plan_keys(plan.located())[0]
    stale.mkdir(parents=True)
    np.save(stale / f"{ident}.0.{IMAGE}.0123456789abcdef.npy", np.zeros((4, 8), np.float16))
    run(plan, tmp_path / "run")
    assert corpus_digest(tmp_path / "run") == corpus_digest(tmp_path / "whole")
    assert rows(tmp_path / "run", IMAGE, TEXT) == rows(tmp_path / "whole", IMAGE, TEXT)


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    plan = plan_of(write_images(tmp_path / "images", 3), BOTH)
    run(plan, tmp_path / "run")
    path = next(path for path in column_files(tmp_path / "run", plan, 0) if IMAGE in path.name)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match=rf"{IMAGE}\.[0-9a-f]{{16}}\.npy is damaged: its SHA-256 is not the one"):
        rows(tmp_path / "run", IMAGE)
    assert rows(tmp_path / "run", "clip_score")[0]["clip_score"] is not None  # nobody else needs the array


def test_gc_frees_them_with_their_column_and_the_array_after_what_names_it(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    first, second = plan_of(images, BOTH), plan_of(images, BOTH.model_copy(update={"column": "other"}))
    run(first, tmp_path / "run")
    run(second, tmp_path / "run")
    key = plan_keys(first.located())[0]
    freed = [name for name in collect(str(tmp_path / "run")).objects if name.startswith(f"columns/{key}/")]
    assert [name.rpartition(".")[2] for name in freed] == ["parquet", "npy", "npy"]
    assert not (tmp_path / "run" / "columns" / key).exists()
    assert rows(tmp_path / "run", "other_image_embedding")[0]["other_image_embedding"] is not None


def test_a_source_may_bring_embeddings(tmp_path: Path) -> None:
    from fire_stages import VectorFolder  # of another package: tests/fire/plugin

    images = write_images(tmp_path / "images", 4)
    np.save(images / "vectors.npy", np.arange(12, dtype=np.float16).reshape(4, 3))
    plan = Plan(name="vectors", source=(VectorFolder(path=str(images)),))
    Runner(plan, str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    found = rows(tmp_path / "run", "vector")
    assert [row["vector"] for row in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [np.load(path).shape for path in column_files(tmp_path / "run", plan, -1) if path.suffix == ".npy"] == [(4, 3)]
