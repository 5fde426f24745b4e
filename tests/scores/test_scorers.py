"""Scorers of other packages, columns that a catalog brings, and what a corpus tells of its scores."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.config import parse_yaml
from mmdata.errors import ConfigError
from mmdata.models import TINY_CLIP_FOLDER, HashScorer, ScorerModel, ScorerSpec, scorers
from mmdata.plan import Plan, load_plan, parse_plan
from mmdata.report.schema import json_schema
from mmdata.shards import open_corpus
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.score import Score
from mmdata.storage import digest_file
from tests.conftest import write_yaml
from tests.scores.small import plan_of, rows, run, write_images
from tests.test_docs import blocks

GUIDE = "docs/adding-a-score.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The guide's example as an installed package: its module, and its entry point as the guide writes it."""
    home = tmp_path / "site"
    (home / "my_package").mkdir(parents=True)
    (home / "my_package/__init__.py").touch()
    (home / "my_package/sharpness.py").write_text(blocks(GUIDE, "python")[0], encoding="utf-8")
    info = home / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    header, line = blocks(GUIDE, "toml")[0].strip().splitlines()
    group = header.removeprefix('[project.entry-points."').removesuffix('"]')
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(home))
    scorers.cache_clear()
    yield home
    scorers.cache_clear()
    sys.modules.pop("my_package.sharpness", None)


def test_the_guides_scorer_runs_from_another_package(package: Path, tmp_path: Path) -> None:
    assert len(blocks(GUIDE, "python")[0].splitlines()) < 60
    write_images(tmp_path / "images", 8)
    text = f"name: sharp\nsource: {{folder: {{path: images}}}}\n{blocks(GUIDE, 'yaml')[0]}  - measure\nsink: {{shards: {{}}}}\n"
    plan = load_plan(write_yaml(tmp_path, text), base=tmp_path)
    result = run(plan, tmp_path / "run")
    found = rows(tmp_path / "run", "sharpness")
    assert [row["reason"] for row in found] == ["sharpness_below" if row["sharpness"] < 3 else None for row in found]
    assert 0 < result.funnel["kept"] <= 8
    maker = open_corpus(str(result.corpus)).facts["makers"]["sharpness"]  # type: ignore[index]
    assert maker == {"stage": "score", "version": 1, "model": "differences over 2 px", "weights": []}
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{by: sharpnes}", r"own.yaml:4: `by`: no scorer is called `sharpnes` \(did you mean `sharpness`\?\)"),
        ("{by: {sharpness: {step: 0}}}", r"own.yaml:4: `by`: `sharpness.step`: Input should be greater than or equal to 1"),
        ("{by: {sharpness: {}, fake: {}}}", r"own.yaml:4: `by`: a scorer is one name with its fields"),
    ],
)
def test_mistakes_in_a_scorers_name_or_fields_have_a_line(package: Path, spec: str, message: str) -> None:
    text = f"name: x\nsource: {{folder: {{path: .}}}}\nstages:\n  - score: {spec}\n"
    with pytest.raises(ConfigError, match=message):
        parse_plan(parse_yaml(text, "own.yaml"))


class Odd(ScorerModel):
    """Gives a number only for texts of more than three letters."""

    name = "odd"
    reads = ("text",)

    def label(self) -> str:
        return "odd"

    def meaning(self) -> str:
        return "length"

    def open(self, device: str, threads: int):  # type: ignore[no-untyped-def] # noqa: ANN201
        from contextlib import nullcontext

        class Opened:
            def score(self, images: list[np.ndarray], texts: list[str]) -> np.ndarray:
                assert not images
                return np.asarray([len(text) if len(text) > 3 else np.nan for text in texts], np.float32)

        return nullcontext(Opened())


def test_a_scorer_of_texts_needs_no_image_and_a_number_that_is_none_is_counted(tmp_path: Path) -> None:
    from mmdata.schema import OUTCOME, ROW
    from mmdata.stages.verbs import Batch, WorkerContext
    from mmdata.storage import open_store

    stage = Score(by=Odd())
    batch = Batch(pa.table({ROW: range(4), "text": ["four", "no", None, " "]}))
    table = stage.open(WorkerContext(open_store(".")))(batch)
    assert table.column("odd").to_pylist() == [4.0, None, None, None]
    assert table.column(OUTCOME).to_pylist() == [None, "scorer_error", None, None]


def test_the_fake_scores_every_pair_alike(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4, {3: None})
    plan = plan_of(images, Score.model_validate({"by": "fake", "column": "hash"}), sink=False)
    run(plan, tmp_path / "run")
    found = [row["hash"] for row in rows(tmp_path / "run", "hash")]
    assert found[3] is None
    assert HashScorer().score([np.zeros((2, 2, 3), np.uint8)], ["a"]) == HashScorer().score(
        [np.zeros((2, 2, 3), np.uint8)], ["a"]
    )
    assert all(-1 <= value <= 1 for value in found[:3])


def test_the_corpus_says_who_made_each_score(tmp_path: Path) -> None:
    result = run(
        plan_of(write_images(tmp_path / "images", 3), ClipScore(), ClipScore(scorer=ScorerSpec(fake=True), column="hash")),
        tmp_path / "run",
    )
    facts = open_corpus(str(result.corpus)).facts
    weights = [digest_file(TINY_CLIP_FOLDER / name) for name in ("open_clip_config.json", "open_clip_model.safetensors")]
    assert facts["makers"]["clip_score"] == {"stage": "clip_score", "version": 2, "model": "mmdata-tiny", "weights": weights}  # type: ignore[index]
    assert facts["makers"]["hash"]["model"] == "a hash (fake)"  # type: ignore[index]
    assert facts["columns"]["clip_score"] == "cosine of image and caption by mmdata-tiny [cosine]"  # type: ignore[index]
    assert "profiles" not in facts


def test_a_corpus_of_several_profiles_says_so(tmp_path: Path) -> None:
    """Rows that are added later are scored with another batch shape: nothing is computed again, but it is told."""
    from mmdata.models import OpenClip
    from mmdata.stages.text_rules import TextRules

    images = write_images(tmp_path / "images", 4, {1: "no"})
    for chars, batch in ((4, 2), (1, 4)):
        stage = ClipScore(scorer=ScorerSpec(open_clip=OpenClip(batch=batch)))
        result = run(plan_of(images, TextRules(min_chars=chars), stage), tmp_path / "run")
    assert result.computed["clip_score"] == 1
    profiles = open_corpus(str(result.corpus)).facts["profiles"]
    assert sorted(profile["batch"] for profile in profiles["clip_score"]) == [2, 4]  # type: ignore[index]


CARRIED = {
    "laion": ("similarity", "URL", "TEXT"), "coyo": ("clip_similarity_vitb32", "url", "text"),
    "datacomp": ("clip_b32_similarity_score", "url", "text"),
}  # fmt: skip


@pytest.mark.parametrize("dataset", CARRIED)
def test_scores_that_a_catalog_brings_are_judged_without_media(tmp_path: Path, dataset: str) -> None:
    """No download, nothing but columns: the urls lead nowhere and nobody asks them."""
    column, url, text = CARRIED[dataset]
    scores = [0.1, 0.25, 0.3, None, 0.9]
    table = pa.table(
        {url: [f"http://nowhere.invalid/{n}" for n in range(5)], text: ["a"] * 5, column: pa.array(scores, pa.float32())}
    )
    pq.write_table(table, tmp_path / "part.parquet")
    write_yaml(tmp_path, f"entries:\n  {dataset}: {{files: [part.parquet], carry: {{{column}: float32}}}}\n", "catalog.yaml")
    source = f"source: {{catalog: {{file: catalog.yaml, entry: {dataset}}}}}"
    text = f"name: x\n{source}\nstages:\n  - keep: {{column: {column}, at_least: 0.25}}\n"
    result = run(load_plan(write_yaml(tmp_path, text), base=tmp_path), tmp_path / "run")
    assert result.funnel["dropped"] == {f"{column}_below": 1, f"{column}_missing": 1}
    kept = [row for row in rows(tmp_path / "run", "url", column) if row["reason"] is None]
    assert [row["url"][-1] for row in kept] == ["1", "2", "4"]
    assert not (tmp_path / "run/payload").exists()


def test_the_plans_schema_names_scorers() -> None:
    stages = json_schema("plan")["properties"]["stages"]["items"]["oneOf"]
    score = next(choice["properties"]["score"] for choice in stages if "score" in choice["properties"])
    assert score["properties"]["by"]["type"] == ["string", "object"]
    assert json.dumps(score)
