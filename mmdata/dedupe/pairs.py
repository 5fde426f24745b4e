"""Pairs of rows that are near each other: the one shape in which every method of likeness hands over what it found."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_AT_ONCE = 1 << 20


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


def no_pairs() -> Pairs:
    """Return that nothing is near anything."""
    return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def num_expanded(pairs: Pairs, of_N: np.ndarray) -> int:
    """Return how many pairs `expanded` gives."""
    num_U = np.bincount(of_N)
    return int((num_U[pairs.left_P] * num_U[pairs.right_P]).sum() + (num_U * (num_U - 1) // 2).sum())


def expanded(pairs: Pairs, of_N: np.ndarray) -> Pairs:
    """Return the pairs of rows from those of the values that they share: rows of one value are at distance 0.

    of_N   (N,) int64, the place of each row's value among those that `pairs` are of; each value has a row
    """
    num_U = np.bincount(of_N)
    order, first_U = np.argsort(of_N, kind="stable"), np.cumsum(num_U) - num_U
    many = np.flatnonzero(num_U > 1)
    left, right = np.concatenate([pairs.left_P, many]), np.concatenate([pairs.right_P, many])
    distance = np.concatenate([pairs.distance_P, np.zeros(len(many), np.float32)])
    none = no_pairs()
    parts = [(none.left_P, none.right_P, none.distance_P)]
    for pair, one, other in crossed(num_U[left], num_U[right]):
        keep = (left[pair] != right[pair]) | (one < other)
        places = order[one + first_U[left[pair]]], order[other + first_U[right[pair]]]
        parts.append((places[0][keep], places[1][keep], distance[pair[keep]]))
    return in_order(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def crossed(num_one: np.ndarray, num_other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all members of one group with all of another, for pairs of groups of these sizes: pair, and member of each."""
    ends = np.cumsum(num_one * num_other)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, _AT_ONCE):
        number = np.arange(start, min(start + _AT_ONCE, total))
        pair = np.searchsorted(ends, number, side="right")
        within = number - (ends[pair] - num_one[pair] * num_other[pair])
        yield pair, within // num_other[pair], within % num_other[pair]


def to_table(pairs: Pairs) -> pa.Table:
    """Return pairs as a table."""
    return pa.table({"left": pairs.left_P, "right": pairs.right_P, "distance": pairs.distance_P})


def from_table(table: pa.Table) -> Pairs:
    """Return the pairs of a table, which may be of several parts."""
    return in_order(*(table.column(name).to_numpy() for name in ("left", "right", "distance")))
