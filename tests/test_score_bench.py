"""What the page of the filter quality counts."""

import numpy as np

from benchmarks.filter_quality import auc, best_threshold, given, judge, swapped


def test_three_of_ten_captions_are_passed_on_and_none_is_lost() -> None:
    order = given(10, seed=1)
    assert sorted(order) == list(range(10))
    assert (order != np.arange(10)).sum() == 3


def test_precision_recall_and_auc_by_hand() -> None:
    """Of five rows the two swapped score 0.1 and 0.4; below 0.35 lie one of them and one that was not swapped."""
    scores, truth = np.array([0.1, 0.4, 0.3, 0.5, 0.6]), np.array([True, True, False, False, False])
    assert judge(scores, truth, 0.35) == (1 / 2, 1 / 2)
    assert auc(scores, truth) == (1 + 2 + 2) / 6
    assert best_threshold(scores, truth) == 0.5  # 0.1, 0.3 and 0.4 go: two of three are right, and none is missed


def test_swapping_is_a_product_of_what_was_kept() -> None:
    """Captions that are their pictures' own score 1 and all others 0."""
    vectors = np.eye(10, dtype=np.float32)
    scores, truth = swapped(vectors, vectors, np.arange(10))
    assert len(scores) == 5 * 10
    assert (scores == ~truth).all()
    assert truth.sum() == 5 * 3
