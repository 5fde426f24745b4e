"""Which caption a model finds for an image, and which image for a caption, from a matrix of similarities.

Decided here: what is equally similar comes in any order with equal chance, and the numbers are means over these orders. A model
that gives all pairs the same score is then as good as chance, not perfect. Captions that are equal are equally right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranks:
    """Where the first right answer of each question stands; means over them are what is reported.

    ranks_N   (N,) float64, mean rank from 1 on     first_N, five_N   (N,) float64, chance that it is first, among the first five
    """

    ranks_N: np.ndarray
    first_N: np.ndarray
    five_N: np.ndarray

    @property
    def median(self) -> float:
        """The median rank."""
        return float(np.median(self.ranks_N))


def ranks(similarity_NM: np.ndarray, questions: Sequence[object], answers: Sequence[object]) -> Ranks:
    """Rank the right answers to each question: R@1 and R@5 are the means of `first_N` and `five_N`, in [0, 1].

    similarity_NM  (N, M): how well answer m fits question n, more is better, no NaN; give its transpose for the other direction
    questions      N keys, answers M keys: those that are equal belong together (captions, or ids)

    Raises ValueError for a question without a right answer.
    """
    scores = np.asarray(similarity_NM, np.float64)
    numbers = {key: number for number, key in enumerate(dict.fromkeys([*questions, *answers]))}
    right_NM = np.equal.outer([numbers[key] for key in questions], [numbers[key] for key in answers])
    if scores.shape != right_NM.shape or not right_NM.any(1).all() or np.isnan(scores).any():
        raise ValueError("similarities are (questions, answers), none of them NaN, and each question has a right answer")
    best_N1 = np.where(right_NM, scores, -np.inf).max(1, keepdims=True)
    before_N = ((scores > best_N1) & ~right_NM).sum(1)
    ties_N = ((scores == best_N1) & ~right_NM).sum(1)
    equals_N = ((scores == best_N1) & right_NM).sum(1)
    # The first of e right ones among t wrong ones, in any order, stands behind t / (e + 1) of these.
    ranks_N = before_N + 1 + ties_N / (equals_N + 1)
    return Ranks(ranks_N, *(_chance(k - before_N, ties_N, equals_N) for k in (1, 5)))


def _chance(places_N: np.ndarray, ties_N: np.ndarray, equals_N: np.ndarray) -> np.ndarray:
    """Return the chance that one of e right ones is among the first k of t + e in any order (hypergeometric)."""
    missed_N = np.ones(len(places_N))
    for drawn in range(max(int(places_N.max(initial=0)), 0)):
        left_N = np.maximum(ties_N - drawn, 0)
        missed_N *= np.where(drawn < places_N, left_N / np.maximum(left_N + equals_N, 1), 1.0)
    return 1 - missed_N
