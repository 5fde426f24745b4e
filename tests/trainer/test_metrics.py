"""Metrics against hand-worked examples, closed forms, other implementations, and laws that must hold for any input."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats

from mmdata.loader import keyed
from mmdata.trainer.metrics import (
    Gaussian,
    bits_per_dimension,
    bits_per_token,
    cider,
    exact_match,
    fit_head,
    frechet_distance,
    gaussian,
    judged_by,
    mean,
    nearest,
    paired,
    ranks,
    share,
    student,
    unpaired,
)

# Four images with their captions; the scores are those of pycocoevalcap 1.2 (`Cider().compute_score`, words cut at spaces).
REFERENCES = (
    ("a red square on a white page", "red square", "the square is red and the page is white"),
    ("a blue bar", "a tall blue bar stands on the left"),
    ("two green circles beside a red square", "green circles and a square"),
    ("a black cat sleeps on a red sofa", "cat on a sofa"),
)
MADE = ("a red square on a page", "a blue bar bar bar", "green circles beside a square", "a dog")
PYCOCO = (2.837312080676344, 2.367646762214131, 4.576908281854497, 0.0)


def test_cider_is_what_the_reference_code_says() -> None:
    assert cider(MADE, REFERENCES) == pytest.approx(PYCOCO, abs=1e-12)


def test_cider_of_two_captions_by_hand() -> None:
    # Two images, "red bar" and "red cap". "red" is in both: weight log(2/2) = 0. "bar" and "red bar" are in one: log 2.
    # For "red bar": 1-grams (0, log 2), 2-grams (log 2); both cosines 1, and 0 for 3- and 4-grams, which there are none of.
    # "bar" for "red bar" is one word short: the 1-grams agree, times exp(-1 / 72).
    assert cider(["red bar", "cap"], [["red bar"], ["red cap"]]) == pytest.approx([10 * 2 / 4, 10 / 4 * math.exp(-1 / 72)])


def test_cider_counts_a_repeated_word_as_often_as_the_reference_has_it() -> None:
    once, thrice = (cider([text, "x"], [["bar"], ["cap"]])[0] for text in ("bar", "bar bar bar"))
    assert once == pytest.approx(2.5)
    # min(3, 1) * 1 over the norms 3 * 1, two words too long.
    assert thrice == pytest.approx(2.5 / 3 * math.exp(-4 / 72))


TEXTS = st.lists(st.sampled_from(["red", "blue", "bar", "cap", "on"]), max_size=7).map(" ".join)


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_cider_lies_between_0_and_10_and_no_order_matters(pairs: list[tuple[str, list[str]]]) -> None:
    made, references = [text for text, _ in pairs], [texts for _, texts in pairs]
    found = cider(made, references)
    assert found.min() >= 0
    assert found.max() <= 10 + 1e-9
    back = cider(made[::-1], [texts[::-1] for texts in references[::-1]])
    assert found == pytest.approx(back[::-1])


def test_cider_refuses_a_caption_without_references() -> None:
    with pytest.raises(ValueError, match="CIDEr needs a reference for each caption"):
        cider(["a"], [[]])


def test_captions_match_by_their_words() -> None:
    made = ["A red  square.", "red square a", "a well-lit bar", ""]
    assert exact_match(made, ["a red square", "a red square", "a well lit bar", ""]).tolist() == [True, False, False, True]


def normal(num: int, width: int, *key: object) -> np.ndarray:
    return keyed("features", *key).standard_normal((num, width))


def test_the_frechet_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    # |m1 - m2|^2 + sum (s1 - s2)^2.
    left, right = np.array([1.0, 2.0, 0.5]), np.array([0.5, 3.0, 0.0])
    found = frechet_distance(Gaussian(np.zeros(3), np.diag(left), 9), Gaussian(np.array([1.0, 0.0, 2.0]), np.diag(right), 9))
    assert found == pytest.approx(5 + np.square(left - right).sum(), rel=1e-12)


@pytest.mark.parametrize(("num", "width"), [(400, 12), (400, 400), (20, 50)])
def test_the_frechet_distance_is_that_of_the_matrix_root(num: int, width: int) -> None:
    left = normal(num, width, "l") @ normal(width, width, "a") / width + 1
    right = normal(num + 5, width, "r") @ normal(width, width, "b") / width
    covariances = [np.cov(each, rowvar=False) for each in (left, right)]
    root = linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(width)).real  # as is done where these have no full rank
    apart = np.square(left.mean(0) - right.mean(0)).sum()
    expected = apart + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(gaussian(left), gaussian(right)) == pytest.approx(expected, rel=2e-3 if num < width else 1e-6)


def test_a_set_is_at_no_distance_from_itself_in_any_order() -> None:
    for num in (8, 300):
        features = normal(num, 32, num)
        assert frechet_distance(gaussian(features), gaussian(features[::-1])) == pytest.approx(0, abs=1e-9)


def test_a_shift_of_all_features_is_its_square() -> None:
    features = normal(200, 6, "shift")
    assert frechet_distance(gaussian(features), gaussian(features + 0.5)) == pytest.approx(6 * 0.25, rel=1e-9)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two samples or more, not 1"):
        gaussian(np.zeros((1, 3)))


def test_recall_and_rank_of_a_small_matrix() -> None:
    keys = ["a", "b", "c"]
    found = ranks(np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.5], [0.0, 0.1, 0.2]]), keys, keys)
    assert found.ranks_N.tolist() == [1, 3, 1]
    assert found.first_N.tolist() == [1, 0, 1]
    assert found.five_N.tolist() == [1, 1, 1]
    assert found.median == 1


def test_a_model_that_tells_nothing_apart_is_as_good_as_chance() -> None:
    found = ranks(np.zeros((20, 20)), range(20), range(20))
    assert found.first_N == pytest.approx(np.full(20, 1 / 20))
    assert found.five_N == pytest.approx(np.full(20, 5 / 20))
    assert found.median == pytest.approx(10.5)


def test_equal_captions_are_equally_right() -> None:
    found = ranks(np.array([[0.1, 0.9, 0.5]]), ["bar"], ["bar", "bar", "cap"])
    assert found.ranks_N.tolist() == [1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=3), st.integers(1, 3))
def test_ties_are_means_over_all_orders(rows: list[list[int]], num_right: int) -> None:
    answers = ["right"] * num_right + [f"wrong {n}" for n in range(6 - num_right)]
    found = ranks(np.array(rows, float), ["right"] * len(rows), answers)
    random, draws = keyed("ties", str(rows), num_right), 4000
    for row, first, five, rank in zip(rows, found.first_N, found.five_N, found.ranks_N, strict=True):
        scores = np.array(row) + random.random((draws, 6)) / 2  # ties fall at random, and nothing else changes place
        best = np.argsort(-scores, axis=1)
        places = (best < num_right).argmax(1) + 1
        assert places.mean() == pytest.approx(rank, abs=0.15)
        assert (places == 1).mean() == pytest.approx(first, abs=0.05)
        assert (places <= 5).mean() == pytest.approx(five, abs=0.05)


def test_a_question_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="each question has a right answer"):
        ranks(np.zeros((1, 1)), ["a"], ["b"])


def test_nearest_finds_each_template_through_noise() -> None:
    templates = keyed("templates").integers(0, 256, (300, 4, 4, 3)).astype(np.uint8)
    noisy = np.clip(templates + keyed("noise").normal(0, 8, templates.shape), 0, 255).astype(np.uint8)
    assert nearest(noisy, templates).tolist() == list(range(300))
    with pytest.raises(ValueError, match=r"images of \(2, 2, 3\) are compared with templates of \(4, 4, 3\)"):
        nearest(noisy[:, :2, :2], templates)


def test_bits_of_a_guess_are_the_logarithm_of_the_choices() -> None:
    assert bits_per_token(3 * math.log(1024), 3) == pytest.approx(10)
    assert bits_per_dimension(48 * math.log(256), 48) == pytest.approx(8)
    # All bytes alike: on [-1, 1] the density is 1/2 a number, so its log is -log 2, and the guess costs log2(255) bits.
    assert bits_per_dimension(48 * math.log(2), 48, scaled=True) == pytest.approx(math.log2(255))
    with pytest.raises(ValueError, match="bits per token of no tokens"):
        bits_per_token(1.0, 0)


def test_wilsons_interval_is_scipys() -> None:
    for hits, num in ((0, 8), (8, 8), (3, 10), (999, 1000), (1, 1)):
        found, expected = share(hits, num), stats.binomtest(hits, num).proportion_ci(0.95, "wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ValueError, match="9 of 8 is no share"):
        share(9, 8)


def coverage(estimate: Sequence[tuple[float, float]], truth: float) -> float:
    return sum(low <= truth <= high for low, high in estimate) / len(estimate)


def test_the_intervals_cover_as_often_as_they_say() -> None:
    random = keyed("coverage")
    means = [mean(random.normal(3, 2, 80), turn) for turn in range(200)]
    apart = [unpaired(random.normal(1, 1, 60), random.normal(0, 2, 90), turn) for turn in range(200)]
    seeds = [student(random.normal(5, 1, 3)) for _ in range(400)]
    for found, truth in ((means, 3), (apart, 1), (seeds, 5)):
        assert coverage([(each.low, each.high) for each in found], truth) == pytest.approx(0.95, abs=0.05)


def test_an_interval_is_the_same_every_time_and_another_for_another_key() -> None:
    values = keyed("values").normal(0, 1, 50)
    assert mean(values, "a") == mean(values, "a")
    assert mean(values, "a").low != mean(values, "b").low


def test_pairing_takes_out_what_items_share() -> None:
    random = keyed("pairs")
    items = random.normal(0, 10, 100)
    left, right = items + random.normal(0.5, 0.1, 100), items
    same, other = paired(left, right, "x"), unpaired(left, right, "x")
    assert same.value == pytest.approx(other.value)
    assert same.low > 0 > other.low
    assert same.high - same.low < (other.high - other.low) / 20
    with pytest.raises(ValueError, match="2 and 3 numbers are not of the same items"):
        paired(np.zeros(2), np.zeros(3))


def test_an_estimate_is_flat_keys_of_the_log() -> None:
    found = share(1, 2).flat("val/gen")
    assert set(found) == {"val/gen", "val/gen/low", "val/gen/high", "val/gen/num"}
    assert found["val/gen"] == 0.5
    with pytest.raises(ValueError, match="two runs or more"):
        student(np.array([1.0]))


@pytest.mark.parametrize(("num", "width"), [(200, 10), (12, 40)])
def test_a_head_is_ridge_regression(num: int, width: int) -> None:
    images, texts = normal(num, width, "x"), normal(num, 5, "y")
    head = fit_head(images, texts, penalty=0.5)
    left, right = images - images.mean(0), texts - texts.mean(0)
    slope = left.T @ (right - left @ head.map_DE) - 0.5 * np.square(left).sum(1).mean() * head.map_DE
    assert np.abs(slope).max() < 1e-9  # the gradient is zero


def test_a_head_finds_the_pairs_it_can_explain() -> None:
    images, mapped = normal(300, 20, "i"), normal(20, 8, "m")
    texts = images @ mapped + normal(300, 8, "n") / 10
    head = fit_head(images[:200], texts[:200], penalty=0.01)
    found = ranks(head.similarity(images[200:], texts[200:]), range(100), range(100))
    assert found.first_N.mean() > 0.9
    assert head.score(images[200:], texts[200:]) == pytest.approx(np.diag(head.similarity(images[200:], texts[200:])))
    with pytest.raises(ValueError, match="two pairs or more"):
        fit_head(images[:1], texts[:1])


def test_a_filter_is_no_judge_of_its_own_corpus() -> None:
    makers: dict[str, dict[str, object]] = {
        "clip_score": {"stage": "clip_score", "weights": ["a1", "b2"]},
        "width": {"stage": "x"},
    }
    assert judged_by(makers, ["b2"]) == ["clip_score"]
    assert judged_by(makers, ["c3"]) == []
