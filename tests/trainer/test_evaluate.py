"""Evaluation in the loop: figures of both directions with intervals, pictures, and a judge that is not the filter."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmdata.demo.shapes import write_shapes
from mmdata.errors import ConfigError
from mmdata.models import TINY_CLIP_FOLDER, OpenClip
from mmdata.shards import open_corpus
from mmdata.trainer import TrainConfig, train
from mmdata.trainer.evaluate import Evaluation
from mmdata.trainer.likelihood import Scoring
from tests.corpus import make_corpus
from tests.trainer.common import OBJECTIVES, Small, config, picture, small


def settings(corpus: str, **evaluate: object) -> TrainConfig:
    return config(
        corpus=corpus, image={"size": 12, "patch": 4}, layout={"row_tokens": 64, "max_text_tokens": 8},
        optim={"steps": 4, "rows": 2, "micro_rows": 2}, sampler={"steps": 2, "max_text_tokens": 4},
        evaluate={"samples": 5, "every": 2, "retrieval": 3, **evaluate},
    )  # fmt: skip


def test_the_loop_tells_both_directions_of_seen_and_held_out_pairs(tmp_path: Path) -> None:
    corpus = write_shapes(tmp_path / "shapes", copies=1)
    train(settings(corpus, scorer={"fake": {}}), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {key for key in lines[1] if key.startswith(("val/", "seen/"))}
    for split in ("val", "seen"):
        for name in ("caption_exact", "caption_cider", "image_nearest", "clip_caption", "clip_image", "retrieval"):
            assert {f"{split}/{name}", f"{split}/{name}/low", f"{split}/{name}/high"} <= told
            assert lines[1][f"{split}/{name}/num"] == (3 if name == "retrieval" else 5)
        assert {f"{split}/caption_bits", f"{split}/image_error"} <= told
    assert not [key for key in lines[2] if key.startswith("seen/")]
    assert "seen/caption_exact" in lines[3]
    shown = sorted((tmp_path / "out" / "samples").iterdir())
    assert [folder.name for folder in shown] == ["step-000002", "step-000004"]
    captions = json.loads((shown[0] / "captions.json").read_text(encoding="utf-8"))
    assert len(captions) == len(list(shown[0].glob("*.png"))) == 5


def test_the_filter_is_no_judge(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path, num=8, val=0.3))
    weights = list(OpenClip().digests())
    corpus.facts["makers"] = {"clip_score": {"stage": "clip_score", "weights": weights}}
    one = small(tmp_path, OBJECTIVES["transfusion"])
    asked = settings(".", scorer={"open_clip": {"model": str(TINY_CLIP_FOLDER)}})
    with pytest.raises(ConfigError, match="also made `clip_score`, by which the corpus may have been filtered"):
        Evaluation(asked.model_copy(update={"split": "train"}), corpus, one.sequencer)


def scoring(one: Small, seed: int = 0) -> Scoring:
    return Scoring(one.model.eval(), one.encoders, one.sequencer, seed)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_of_pairs_do_not_depend_on_those_beside_them(tmp_path: Path, objective: str) -> None:
    one = small(tmp_path, OBJECTIVES[objective])
    pairs = [(f"a red {number}", picture(number)) for number in range(3)]
    together, alone = scoring(one).losses(pairs), scoring(one).losses(pairs[:1])
    for name in ("text_N", "image_N", "text_tokens_N", "image_tokens_N"):
        assert getattr(together, name)[0] == pytest.approx(getattr(alone, name)[0], abs=1e-9)
    again, other = scoring(one).losses(pairs), scoring(one, seed=1).losses(pairs)
    assert np.array_equal(together.text_N, again.text_N)
    if objective != "ar":
        assert not np.array_equal(together.image_N, other.image_N)
    assert (together.text_tokens_N > 0).all()
    assert (together.image_tokens_N > 0).all()


def test_captions_of_an_image_are_compared_under_the_same_noise(tmp_path: Path) -> None:
    one = small(tmp_path, OBJECTIVES["masked"])
    found = scoring(one).captions([picture(0), picture(1)], ["a red 0", "a red 0", "a blue bar"])
    assert found.shape == (2, 3)
    assert found[:, 0] == pytest.approx(found[:, 1], abs=1e-9)
    assert found[0, 0] != pytest.approx(found[0, 2], abs=1e-6)
