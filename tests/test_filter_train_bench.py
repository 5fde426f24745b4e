"""The benchmark of filtering for training: its corpora hold out the same, its scores are the trainer's own losses."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.filter_train import GROUP, best_step, by_group, compare, judge
from benchmarks.filter_train_data import CORPORA, Data, Row, filtered, held_out, held_out_pairs, pass_on
from benchmarks.filter_train_score import Pair, score_pairs
from mmdata.shards import open_corpus
from mmdata.trainer import TrainConfig, train
from tests.conftest import encode
from tests.corpus import COLORS, SHAPES, draw

NAMES, FAMILIES = tuple(COLORS), 24
THRESHOLD = -0.08  # about the median of scores of these drawings
SMALL = {
    "text": {"vocab": 300},
    "image": {"size": 16, "patch": 4},
    "layout": {"row_tokens": 96},
    "model": {"width": 48, "layers": 1, "heads": 2},
    "optim": {"steps": 2, "rows": 2, "micro_rows": 2},
    "threads": 1,
}


def rows(num: int) -> list[Row]:
    """Return rows of `num` families of two, whose captions differ."""
    return [
        Row(f"{number:032x}", f"http://host-01.demo.localhost/images/{number}.png", text, f"family {number // 2}", text)
        for number in range(2 * num)
        for text in [f"{NAMES[number % len(NAMES)]} thing {number}"]
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    home = tmp_path_factory.mktemp("filter-train")
    (home / "images").mkdir()
    for number in range(2 * FAMILIES):
        picture = draw(NAMES[number % len(NAMES)], SHAPES[number // 2 % len(SHAPES)])
        (home / f"images/{number}.png").write_bytes(encode(picture))
    return filtered(home, rows(FAMILIES), THRESHOLD)


@pytest.fixture(scope="module")
def checkpoint(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig.model_validate({"name": "small", "corpus": data.folders["filtered"], **SMALL})
    return train(config, tmp_path_factory.mktemp("run")).checkpoint


def test_captions_are_passed_on_among_training_rows_alone() -> None:
    given = rows(50)
    kept_out = {row.uid for row in given[:20]}
    made = pass_on(given, kept_out)
    assert [row.text for row in made[:20]] == [row.own for row in given[:20]]
    assert [row.held_out for row in made] == [True] * 20 + [False] * 80
    assert Counter(row.text for row in made) == Counter(row.text for row in given)
    assert all(row.wrong == (row.text != row.own) for row in made)
    assert sum(row.wrong for row in made) == 24  # 30 % of 80


def test_what_is_held_out_is_the_same_and_right_in_all_corpora(data: Data) -> None:
    kept_out = [held_out(data.folders[name]) for name in CORPORA]
    assert kept_out[0] == kept_out[1] == kept_out[2]
    assert len(kept_out[0]) % 2 == 0  # families of two stay together
    pairs = [held_out_pairs(data.folders[name], "test") for name in CORPORA]
    assert [one[2] for one in pairs[0]] == [one[2] for one in pairs[1]] == [one[2] for one in pairs[2]]
    assert all(caption.endswith(f"thing {int(uid, 16)}") for uid, _, caption in pairs[0])
    families = [int(uid, 16) // 2 for uid, _, _ in pairs[0]]
    assert len(set(families)) == len(families) > 0


def test_what_is_removed_is_counted_against_the_truth(data: Data) -> None:
    unfiltered, chosen, clean = (data.removed[name] for name in CORPORA)
    assert (unfiltered.dropped, unfiltered.hits) == (0, 0)
    assert clean.dropped == clean.hits == clean.wrong == unfiltered.wrong > 0
    assert 0 < chosen.dropped < chosen.rows
    for name in CORPORA:
        corpus = open_corpus(data.folders[name])
        assert len(corpus.samples) == 2 * FAMILIES - data.removed[name].dropped


def test_scores_are_the_same_for_a_pair_whatever_stands_beside_it(data: Data, checkpoint: Path) -> None:
    pairs = [Pair(*one) for one in held_out_pairs(data.folders["clean"], "test")]
    longer = pairs[0]._replace(caption=f"{pairs[0].caption}, and much more than the others have to say")
    alone = [score_pairs(checkpoint, [pair]) for pair in pairs]
    together = score_pairs(checkpoint, [*pairs, longer])
    assert np.allclose(together.nats_N[:-1], [one.nats_N[0] for one in alone], atol=1e-4)
    assert np.allclose(together.image_N[:-1], [one.image_N[0] for one in alone], atol=1e-4)
    assert together.nats_N[-1] > together.nats_N[0] + 10
    assert np.isnan(score_pairs(checkpoint, pairs[:1], image=False).image_N).all()


def test_a_caption_costs_about_its_tokens_before_much_is_learnt(data: Data, checkpoint: Path) -> None:
    """After two steps all tokens are nearly alike: a caption and its end cost the log of the vocabulary each."""
    pair = Pair(*held_out_pairs(data.folders["clean"], "test")[0])
    nats = score_pairs(checkpoint, [pair, pair._replace(caption="")], image=False).nats_N
    assert nats[1] == pytest.approx(np.log(300), rel=0.2)
    assert 3 < nats[0] / nats[1] <= len(pair.caption.encode()) + 1


def test_a_checkpoint_is_judged_by_every_measure(data: Data, checkpoint: Path) -> None:
    image = held_out_pairs(data.folders["clean"], "test")[0][1]
    pairs = [Pair(str(number), image, f"{number} {'x' * number}") for number in range(GROUP + 3)]
    found = judge(checkpoint, pairs)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(found, (GROUP,))
    assert np.allclose(found["worth"], 0, atol=1e-4)  # all images are one
    assert found["captions"].sum() == 1  # so one caption is the likeliest for all


def test_the_step_that_loses_least_on_held_out_text_is_judged() -> None:
    losses = {10: 5.0, 20: 3.0, 30: 3.0, 40: 4.0}
    records: list[dict[str, float]] = [{"step": step, "loss/text": 1 / step} for step in range(1, 10)]
    records += [{"step": step, "loss/text": 1 / step, "val/text": loss} for step, loss in losses.items()]
    assert best_step(records) == 20


def test_groups_say_what_an_image_tells() -> None:
    """In the first group each caption is likeliest after its own image; in the second the first two captions are swapped."""
    nats_GIC = np.full((2, GROUP, GROUP), 1e3)
    nats_GIC[:, 2:, 2:] = np.where(np.eye(GROUP - 2, dtype=bool), 5, 1e3)
    nats_GIC[0, :2, :2] = [[3, 6], [6, 5]]
    nats_GIC[1, :2, :2] = [[4, 3], [5, 6]]
    found = by_group(nats_GIC)
    assert found["nats"][:2].tolist() == [3, 5]
    assert found["captions"].tolist() == [1.0] * GROUP + [0.0, 0.0] + [1.0] * (GROUP - 2)
    assert found["images"].tolist() == [1.0] * GROUP + [1.0, 0.0] + [1.0] * (GROUP - 2)
    assert found["worth"][0] == pytest.approx(-3 - np.log((np.exp(-3) + np.exp(-6)) / GROUP))
    assert found["worth"][2] == pytest.approx(np.log(GROUP))


def test_an_interval_is_of_pairs_and_of_seeds() -> None:
    dice = np.random.default_rng(0)
    left = dice.normal(10, 3, (3, 200))
    same = compare(left, left)
    assert (same.low, same.high) == (0, 0)
    near = compare(left, left + dice.normal(0.5, 1, (3, 200)))
    assert 0.3 < near.low < 0.5 < near.high < 0.7
    by_seed = compare(left, left + np.asarray([[-1.0], [0.0], [1.0]]))
    assert by_seed.low == pytest.approx(-1)
    assert by_seed.high == pytest.approx(1)
