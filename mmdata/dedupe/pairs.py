"""Pairs of rows that are near each other: the one shape in which every method of likeness hands over what it found."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Each pair once, sorted by (left, right), left < right.

    left_P, right_P   (P,) int64, places of rows
    distance_P        (P,) float32, what the method measures: bits, or one minus a cosine
    """

    left_P: np.ndarray
    right_P: np.ndarray
    distance_P: np.ndarray

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.left_P)


def in_order(left_P: np.ndarray, right_P: np.ndarray, distance_P: np.ndarray) -> Pairs:
    """Return pairs of any order as `Pairs`: of a pair that is there twice the nearer counts, and no row is near itself."""
    low = np.minimum(left_P, right_P).astype(np.int64)
    high = np.maximum(left_P, right_P).astype(np.int64)
    order = np.lexsort((distance_P, high, low))
    low, high, distance = low[order], high[order], distance_P[order].astype(np.float32)
    fresh = low != high
    fresh[1:] &= (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return Pairs(low[fresh], high[fresh], distance[fresh])
