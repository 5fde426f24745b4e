"""A number of an evaluation with its 95 % interval.

Decided here: resampling goes by a counter-based generator keyed by what is asked, so an interval is the same everywhere and for
ever. Items that are not independent (captions of one image, repeats of one sample) are to be averaged before.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mmdata.loader import keyed

LEVEL = 0.95
DRAWS = 2000
CHUNK = 1 << 22  # numbers that are drawn at a time


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and how many items it is of."""

    value: float
    low: float
    high: float
    num: int

    def flat(self, name: str) -> dict[str, float]:
        """Return it as keys of a line of `metrics.jsonl`: NAME, NAME/low, NAME/high, NAME/num."""
        return {name: self.value, f"{name}/low": self.low, f"{name}/high": self.high, f"{name}/num": float(self.num)}


def share(hits: int, num: int) -> Estimate:
    """Return a share of independent yes-or-no items with Wilson's score interval (JASA 22, 1927), all in [0, 1].

    Unlike the plain one it is of use near 0 and 1, where good models are: 8 of 8 is [0.676, 1]. Raises ValueError for no items.
    """
    if not 0 <= hits <= num or num < 1:
        raise ValueError(f"{hits} of {num} is no share")
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    p, spread = hits / num, z**2 / num
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / num + spread / (4 * num))
    return Estimate(p, 0.0 if hits == 0 else centre - half, 1.0 if hits == num else centre + half, num)


def mean(values_N: np.ndarray, *key: object) -> Estimate:
    """Return the mean of a number an item, with the percentile bootstrap's interval (Efron 1979); `key` names the drawing."""
    means = _means(values_N, "mean", *key)
    return _estimate(float(np.mean(values_N)), means, len(values_N))


def paired(left_N: np.ndarray, right_N: np.ndarray, *key: object) -> Estimate:
    """Return the mean of left - right over the same items, each item drawn with both its numbers.

    Two models on one set of items differ by less than their own intervals say, for hard items are hard for both.
    """
    if len(left_N) != len(right_N):
        raise ValueError(f"{len(left_N)} and {len(right_N)} numbers are not of the same items")
    return mean(np.asarray(left_N, np.float64) - np.asarray(right_N, np.float64), "paired", *key)


def unpaired(left_N: np.ndarray, right_M: np.ndarray, *key: object) -> Estimate:
    """Return the mean of left - the mean of right over different items, each side drawn by itself."""
    apart = _means(left_N, "left", *key) - _means(right_M, "right", *key)
    return _estimate(float(np.mean(left_N) - np.mean(right_M)), apart, min(len(left_N), len(right_M)))


def student(values_N: np.ndarray) -> Estimate:
    """Return the mean of a few independent runs (seeds) with Student's interval, which a bootstrap of three would not cover.

    Raises ValueError for fewer than two.
    """
    num = len(values_N)
    if num < 2:
        raise ValueError("an interval over runs needs two runs or more")
    centre = float(np.mean(values_N))
    half = float(stats.t.ppf((1 + LEVEL) / 2, num - 1)) * float(np.std(values_N, ddof=1)) / math.sqrt(num)
    return Estimate(centre, centre - half, centre + half, num)


def _means(values_N: np.ndarray, *key: object) -> np.ndarray:
    values = np.asarray(values_N, np.float64)
    if not len(values):
        raise ValueError("a mean of no items")
    random, found = keyed("bootstrap", *key), []
    step = max(1, CHUNK // len(values))
    for start in range(0, DRAWS, step):
        drawn = random.integers(0, len(values), (min(step, DRAWS - start), len(values)))
        found.append(values[drawn].mean(1))
    return np.concatenate(found)


def _estimate(value: float, draws: np.ndarray, num: int) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), num)
