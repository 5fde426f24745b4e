"""Documents: each image against the texts beside it, and the assignment of images to texts."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.engine import Runner
from mmdata.engine.keys import plan_keys
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.models import HashTowers, ScorerSpec
from mmdata.plan import Plan, load_plan
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.foreign import WebdatasetTars
from mmdata.stages.match_texts import MatchTexts, match
from mmdata.stages.text_rules import TextRules
from mmdata.stages.verbs import Stage
from tests.conftest import encode, write_yaml
from tests.scores.small import rows
from tests.shards.tars import write_tar

FAKE = ScorerSpec(fake=True)
SCORED = (ClipScore(scorer=FAKE, embeddings=("image",)), MatchTexts(scorer=FAKE))
COLUMNS = ("sample_id", "position", "text", "clip_match", "clip_match_before", "clip_match_after", "clip_match_position")


def picture(number: int) -> np.ndarray:
    """Return a picture that is like no other."""
    return np.full((8, 8, 3), number, np.uint8)


def document(number: int, kinds: str) -> list[tuple[str, bytes]]:
    """Return the members of a document: `t` and `i` say what its blocks are; texts are words of their place."""
    blocks: list[dict[str, Any]] = []
    members = []
    for position, kind in enumerate(kinds):
        block = {"type": "image" if kind == "i" else "text", "position": position}
        if kind == "i":
            members.append((f"{number:06d}.{position}.png", encode(picture(10 * number + position))))
        else:
            block["text"] = "" if kind == "e" else f"text {number} {position}"
        blocks.append(block)
    facts = {"sample_id": f"{number:032x}", "blocks": blocks}
    return [*members, (f"{number:06d}.json", json.dumps(facts).encode())]


def plan_over(folder: Path, *stages: Stage) -> Plan:
    return Plan(name="documents", source=(WebdatasetTars(path=str(folder)),), stages=stages)


def cosine(number: int, image: int, text: int) -> float:
    towers = HashTowers()
    left, right = towers.embed([towers.prepare(picture(10 * number + image))], [f"text {number} {text}"])
    return float((left * right).sum())


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three documents and a pair: texts around images, more images than texts, an empty text."""
    (tmp_path / "tars").mkdir()
    members = [*document(1, "titit"), *document(2, "iiti"), *document(3, "eit")]
    members += [("000004.png", encode(picture(99))), ("000004.txt", b"a pair")]
    write_tar(tmp_path / "tars" / "0.tar", members)
    return tmp_path / "tars"


def test_each_image_is_scored_against_the_texts_beside_it(tmp_path: Path, tars: Path) -> None:
    Runner(plan_over(tars, *SCORED), str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    found = {(int(row["sample_id"], 16), row["position"]): row for row in rows(tmp_path / "run", *COLUMNS)}
    expected = {(1, 1): (0, 2), (1, 3): (2, 4), (2, 0): (None, 2), (2, 1): (None, 2), (2, 3): (2, None), (3, 1): (None, 2)}
    for (number, position), sides in expected.items():
        row = found[number, position]
        for end, side in zip(("before", "after"), sides, strict=True):
            value = row[f"clip_match_{end}"]
            assert (value is None) == (side is None)
            assert side is None or value == pytest.approx(cosine(number, position, side), abs=2e-3)
    others = [row for place, row in found.items() if place not in expected]
    assert all(row[name] is None for row in others for name in COLUMNS if name.startswith("clip_match"))


def test_images_are_assigned_to_texts_for_the_most_cosine_in_all(tmp_path: Path, tars: Path) -> None:
    """Of document 2's three images one has the only text: the one that goes best with it."""
    Runner(plan_over(tars, *SCORED), str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    found = {(int(row["sample_id"], 16), row["position"]): row for row in rows(tmp_path / "run", *COLUMNS)}
    best = max(itertools.permutations((0, 2, 4), 2), key=lambda texts: cosine(1, 1, texts[0]) + cosine(1, 3, texts[1]))
    assert tuple(found[1, image]["clip_match_position"] for image in (1, 3)) == best
    assert found[1, 1]["clip_match"] == pytest.approx(cosine(1, 1, best[0]), abs=2e-3)
    winner = max((0, 1, 3), key=lambda image: cosine(2, image, 2))
    assert [found[2, image]["clip_match_position"] for image in (0, 1, 3)] == [
        2 if image == winner else None for image in (0, 1, 3)
    ]


def test_the_assignment_is_the_best_of_all() -> None:
    draw = np.random.default_rng(3)
    for images, texts in ((3, 4), (4, 3), (1, 1)):
        cosines = draw.uniform(-1, 1, (images, texts))
        found, best = match(cosines, np.arange(images) * 2, np.arange(texts) * 2 + 1)
        pairs = [
            list(zip(*order, strict=True))
            for num in [min(images, texts)]
            for order in itertools.product(itertools.permutations(range(images), num), itertools.combinations(range(texts), num))
        ]
        assert np.nansum(found[2]) == pytest.approx(max(sum(cosines[pair] for pair in some) for some in pairs), abs=1e-5)
        assert (best >= 0).sum() == min(images, texts)


def test_what_an_earlier_stage_left_of_a_document_is_what_is_matched(tmp_path: Path, tars: Path) -> None:
    """A rule that takes the last text of document 1 makes other neighbours, in a run that goes on as in a fresh one."""
    loose, strict = (plan_over(tars, TextRules(max_chars=n, min_chars=0), *SCORED) for n in (100, 7))
    assert plan_keys(loose)[1] == plan_keys(strict)[1]  # embeddings are of one row each
    assert plan_keys(loose)[2] != plan_keys(strict)[2]
    for plan, folder in ((loose, "run"), (strict, "run"), (strict, "fresh")):
        Runner(plan, str(tmp_path / folder)).execute(InlineExecutor(), quiet=True)
    assert rows(tmp_path / "run", *COLUMNS) == rows(tmp_path / "fresh", *COLUMNS)


def test_whole_documents_cannot_be_matched_behind_a_stage_that_new_files_change(tmp_path: Path, tars: Path) -> None:
    with pytest.raises(ConfigError, match=r"looks at whole documents[\s\S]*hint: put it before `dedupe`"):
        plan_over(tars, SCORED[0], Dedupe(by="text"), SCORED[1]).check()


def test_a_column_that_holds_no_embeddings_is_refused_with_its_line(tmp_path: Path, tars: Path) -> None:
    stages = "  - clip_score: {scorer: {fake: true}}\n  - match_texts: {images: clip_score}\n"
    text = f"name: x\nsource: {{webdataset: {{path: tars}}}}\nstages:\n{stages}"
    with pytest.raises(ConfigError, match=r"plan.yaml:5: `match_texts` needs embeddings, but `clip_score` is float"):
        load_plan(write_yaml(tmp_path, text), base=tmp_path)
