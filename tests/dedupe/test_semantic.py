"""Runs that dedupe by embeddings and by words: the same verdicts on every executor, each with its keeper and how far it is."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmdata.dedupe.cosine import best_screen, near_vectors
from mmdata.engine import Runner, RunResult
from mmdata.engine.task import Executor
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor, ProcessExecutor
from mmdata.plan import Plan
from mmdata.report.duplicates import duplicate_groups
from mmdata.report.table import funnel_text
from mmdata.schema import BASE_FIELDS
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.likeness import Clusters, SemDeDup, Texts, Vectors
from mmdata.stages.sources import Catalog
from tests.conftest import encode

NUM = 60


def vectors_of() -> np.ndarray:
    """Return lines of three numbers; every third is nearly the one before."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(NUM, 3)) * 4
    vectors[1::3] = vectors[::3] + 0.01 * rng.normal(size=(NUM // 3, 3))
    return vectors.astype(np.float16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with a vector each."""
    folder = tmp_path_factory.mktemp("images")
    data = encode(np.zeros((8, 8, 3), np.uint8))
    for number in range(NUM):
        (folder / f"{number:02}.png").write_bytes(data)
        (folder / f"{number:02}.txt").write_text("x" * (number % 7 + 1), encoding="utf-8")
    np.save(folder / "vectors.npy", vectors_of())
    return folder


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessExecutor]:
    """Two workers for all tests: each loads torch once."""
    executor = ProcessExecutor(2)
    yield executor
    executor.close()


def run(home: Path, images: Path, stage: Dedupe, executor: Executor) -> tuple[RunResult, list[bytes]]:
    """Return what a run came to, and the files that its tasks shared and wrote."""
    from fire_stages import VectorFolder  # of another package: tests/fire/plugin

    source = VectorFolder(path=str(images), partition_rows=12)
    result = Runner(Plan(name="semantic", source=(source,), stages=(stage,)), str(home)).execute(executor, quiet=True)
    return result, [path.read_bytes() for path in sorted(home.glob("passes/*/*/*.arrow"))]


EXACT = Dedupe(semantic=Vectors(column="vector", cosine=0.999), keep=("caption_length",))
CLUSTERED = Dedupe(semantic=Vectors(column="vector", cosine=0.999, clustered=Clusters(clusters=6, border=1.0, checked=NUM)))
SEMDEDUP = Dedupe(semdedup=SemDeDup(column="vector", epsilon=0.001, clusters=3, keep="easy"))


@pytest.mark.parametrize("stage", [EXACT, CLUSTERED, SEMDEDUP], ids=["exact", "clustered", "semdedup"])
def test_tasks_that_share_the_work_give_the_same_bytes_on_every_executor(
    tmp_path: Path, images: Path, stage: Dedupe, processes: ProcessExecutor
) -> None:
    result, files = run(tmp_path / "a", images, stage, InlineExecutor())
    assert files == run(tmp_path / "b", images, stage, processes)[1]
    assert result.funnel["kept"] + result.funnel["dropped"]["near_duplicate"] == NUM
    assert result.funnel["dropped"]["near_duplicate"] >= NUM // 3


def test_the_clustered_way_says_how_much_it_found(tmp_path: Path, images: Path) -> None:
    exact, _ = run(tmp_path / "a", images, Dedupe(semantic=Vectors(column="vector", cosine=0.999)), InlineExecutor())
    result, _ = run(tmp_path / "b", images, CLUSTERED, InlineExecutor())
    assert result.funnel == exact.funnel
    num = len(near_vectors(vectors_of(), 0.999, best_screen("numpy")))
    note = f"dedupe: {num:,} pairs; measured on {NUM} vectors: recall 1.0000 of {num} pairs"
    assert note in funnel_text(result)
    again, _ = run(tmp_path / "b", images, CLUSTERED, InlineExecutor())
    assert note in funnel_text(again)
    assert not again.fresh


def test_the_longest_caption_stays(tmp_path: Path, images: Path) -> None:
    run(tmp_path, images, EXACT, InlineExecutor())
    groups = duplicate_groups(str(tmp_path), 100)
    assert len(groups) >= 15
    for group in groups:
        assert all(len(copy.row.text or "") <= len(group.keeper.text or "") for copy in group.copies)
        assert all(copy.value is not None and 0 <= copy.value <= 0.0011 for copy in group.copies)
        assert {copy.by for copy in group.copies} == {"dedupe vector of cosine 0.999"}


STORY = "the old red boat lay at the end of the long pier while two gulls walked along its rail and looked for fish"
WORDS = re.findall(r"\w+", STORY)


def texts_of(number: int) -> str:
    """Return one of twenty texts; every third is the one before with another word at its end."""
    dice = random.Random(number - number % 3)
    told = [dice.choice(WORDS) for _ in range(40)]
    return " ".join([*told[:-1], "harbour"] if number % 3 == 1 else told if number % 3 == 0 else [str(number), *reversed(told)])


@pytest.mark.parametrize("rows", [7, 100])
def test_captions_are_alike_by_their_words(tmp_path: Path, rows: int) -> None:
    lines: list[dict[str, object]] = [{"url": f"http://pictures.test/{number}", "text": texts_of(number)} for number in range(60)]
    lines += [
        {"url": "http://pictures.test/again", "text": texts_of(0).upper()},
        {"url": "http://pictures.test/none", "text": None},
    ]
    source = catalog_of(tmp_path, lines, rows)
    stage = Dedupe(captions=Texts(jaccard=0.8), keep=("earliest",))
    runner = Runner(Plan(name="words", source=(source,), stages=(stage,)), str(tmp_path / "run"))
    assert runner.execute(InlineExecutor(), quiet=True).funnel["dropped"] == {"near_duplicate": 21}
    groups = {group.keeper.text: group for group in duplicate_groups(str(tmp_path / "run"), 100)}
    assert {text: {copy.row.text for copy in group.copies} for text, group in groups.items()} == {
        texts_of(number): {texts_of(number + 1), *([texts_of(0).upper()] if number == 0 else [])} for number in range(0, 60, 3)
    }
    values = {copy.row.text: copy.value for group in groups.values() for copy in group.copies}
    assert values[texts_of(0).upper()] == 0
    assert 0 < values[texts_of(1)] <= 0.2  # type: ignore[operator]


def test_documents_are_alike_by_all_their_words(tmp_path: Path) -> None:
    """Of two documents that differ by a word the earlier stays whole; a third has one block of it and stays too."""
    blocks = [texts_of(number) for number in (0, 2, 5)]
    documents = [blocks, [blocks[0], blocks[1], texts_of(5).replace("5", "five")], [blocks[0], texts_of(8), texts_of(11)]]
    lines: list[dict[str, object]] = [{"images": [None] * 3, "texts": texts} for texts in documents]
    source = catalog_of(tmp_path, lines, 100, "shape: documents, ")
    stage = Dedupe(captions=Texts(jaccard=0.9), keep=("earliest",), unit="sample")
    result = Runner(Plan(name="documents", source=(source,), stages=(stage,)), str(tmp_path / "run")).execute(
        InlineExecutor(), quiet=True
    )
    assert (result.funnel["kept"], result.funnel["dropped"]) == (6, {"near_duplicate": 3})
    (group,) = duplicate_groups(str(tmp_path / "run"), 10)
    assert [copy.row.text for copy in group.copies] == documents[1]


def catalog_of(home: Path, lines: list[dict[str, object]], rows: int, more: str = "") -> Catalog:
    (home / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (home / "catalog.yaml").write_text(f"entries:\n  x: {{{more}files: [list.jsonl]}}\n", encoding="utf-8")
    return Catalog(file=str(home / "catalog.yaml"), entry="x", partition_rows=rows)


def test_what_cannot_be_compared_is_refused() -> None:
    fields = {field.name: field for field in BASE_FIELDS}
    with pytest.raises(ConfigError, match=r"`dedupe` needs embeddings, but `url` is string[\s\S]*clip_score"):
        Dedupe(semantic=Vectors(column="url")).check(fields)
    with pytest.raises(ValueError, match="`likeness` and `semantic` are ways to compare rows: give one"):
        Dedupe.model_validate({"likeness": {}, "semantic": {"column": "vector"}})
    with pytest.raises(ValueError, match="`semdedup` says itself what is kept"):
        Dedupe.model_validate({"semdedup": {"column": "vector"}, "keep": ["area"]})
    with pytest.raises(ValueError, match="`unit` and `share` are for rows that are alike"):
        Dedupe.model_validate({"by": "url", "unit": "sample"})
