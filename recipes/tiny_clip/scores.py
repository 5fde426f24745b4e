"""Figures that say how well scores tell matching captions from others.

Axes: N pictures, N captions (caption i belongs to picture i), D embedding.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class SwapReport(NamedTuple):
    """How well `score < threshold` finds swapped captions."""

    threshold: float
    precision: float
    recall: float
    f1: float


def matching_auc(scores_NN: Scores) -> float:
    """Return the chance that a matching pair scores above a mismatching one; ties count one half."""
    matching = np.diag(scores_NN)
    others = np.sort(scores_NN[~np.eye(len(scores_NN), dtype=bool)])
    below = np.searchsorted(others, matching, side="left")
    not_above = np.searchsorted(others, matching, side="right")
    return float((below + not_above).mean() / (2 * len(others)))


def recall_at_1(scores_NN: Scores, captions: list[str]) -> float:
    """Return how often the best caption of a picture is its own, or reads the same as its own."""
    best = scores_NN.argmax(axis=1)
    return float(np.mean([captions[index] == captions[row] for row, index in enumerate(best)]))


def swap_captions(num_rows: int, share: float, seed: int) -> NDArray[np.int64]:
    """Return which caption each row gets when `share` of the rows pass theirs on in a ring."""
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(num_rows)[: round(share * num_rows)]
    given = np.arange(num_rows)
    given[chosen] = np.roll(chosen, 1)
    return given


def judge_swaps(scores_N: Scores, is_swapped_N: NDArray[np.bool_], threshold: float) -> SwapReport:
    """Report on dropping every row that scores below the threshold."""
    dropped_N = scores_N < threshold
    hits = int((dropped_N & is_swapped_N).sum())
    precision = hits / max(int(dropped_N.sum()), 1)
    recall = hits / max(int(is_swapped_N.sum()), 1)
    return SwapReport(threshold, precision, recall, 2 * precision * recall / max(precision + recall, 1e-9))


def best_threshold(scores_N: Scores, is_swapped_N: NDArray[np.bool_]) -> float:
    """Return the threshold with the best F1 of "a swapped row is dropped", rounded to three places."""
    candidates = np.unique(np.round(scores_N, 3))
    best = max(candidates, key=lambda threshold: judge_swaps(scores_N, is_swapped_N, threshold).f1)
    return round(float(best), 3)
