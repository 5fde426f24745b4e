"""SemDeDup's rule: of vectors near each other inside a cluster, all go that have a near one before them.

Abbas et al. 2023, arXiv:2303.09540. Inside a cluster vectors are ordered by their cosine with its centre; one whose largest
cosine with those before it is above 1 - epsilon goes. Likeness chains here: what drops a row may have been dropped itself.
So the keeper named is found by going from each dropped one to the nearest before it until one is met that stays; it may be
farther away than epsilon. (`mmdata.dedupe.groups` does not chain, and drops fewer.)
"""

from typing import Literal

import numpy as np

from mmdata.dedupe.blocks import WHOLE, Part
from mmdata.dedupe.clustered import Stays, centres_of, stays_of
from mmdata.dedupe.cosine import Unit
from mmdata.dedupe.lines import Lines
from mmdata.storage.digest import mix64

Keep = Literal["hard", "easy", "random"]
_BLOCK = 2048
_ROUNDED = 1e-5  # float32 products only screen


def semdedup(
    vectors_ND: np.ndarray | Lines, epsilon: float, num_clusters: int, keep: Keep = "hard", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keeper of each vector, its own place where it stays, (N,) int64, and one minus their cosine, (N,) float32.

    epsilon   in (0, 1): vectors with a cosine above 1 - epsilon are the same
    keep      `hard`: the one farthest from the centre of its cluster; `easy`: the nearest; `random`: any, by the seed
    """
    unit = Unit(vectors_ND)
    centres = centres_of(unit, num_clusters, seed)
    before = np.arange(len(unit))
    out, at = befores(unit, stays_of(unit, centres), epsilon, (keep, seed))
    before[out] = at
    return by_chains(unit, before)


def befores(
    unit: Unit, stays: Stays, epsilon: float, order: tuple[Keep, int], part: Part = WHOLE
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for a part of the clusters, the vectors that go, and of each the nearest one before it, (G,) int64 both.

    order   how vectors are ordered in a cluster, and a seed
    """
    gone = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for home in stays.members(guests=False)[part[0] :: part[1]]:
        vectors = stays.vector_S[home]
        vectors = vectors[np.argsort(_order(stays.cosine_S[home], vectors, order), kind="stable")]
        out, at = _judge(unit.rows(vectors), epsilon + _ROUNDED)
        out, at = vectors[out], vectors[at]
        sure = unit.cosines(out, at) > 1 - epsilon
        gone.append((out[sure], at[sure]))
    out, at = (np.concatenate(column) for column in zip(*gone, strict=True))
    return out, at


def by_chains(unit: Unit, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the keeper of each vector and one minus their cosine, from what each is a copy of, itself where it stays."""
    keeper = before
    while (before[keeper] != keeper).any():
        keeper = before[keeper]
    distance = np.zeros(len(unit), np.float32)
    out = np.flatnonzero(keeper != np.arange(len(unit)))
    distance[out] = np.maximum(1 - unit.cosines(out, keeper[out]), 0)
    return keeper, distance


def _order(to_centre: np.ndarray, home: np.ndarray, order: tuple[Keep, int]) -> np.ndarray:
    """Return what the vectors of a cluster are ordered by, lowest first; equal ones stay in the order given."""
    keep, seed = order
    if keep == "random":
        return mix64(home.astype(np.uint64) ^ np.uint64(seed * 0x9E3779B97F4A7C15 % (1 << 64)))
    return to_centre if keep == "hard" else -to_centre


def _judge(block: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which of ordered vectors go, and the nearest before each, by place."""
    gone = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for start in range(0, len(block), _BLOCK):
        products = block[start : start + _BLOCK] @ block[: start + _BLOCK].T
        products[np.triu_indices(len(products), start, products.shape[1])] = -2
        best = products.argmax(axis=1)
        goes = np.flatnonzero(products[np.arange(len(products)), best] > 1 - epsilon)
        gone.append((start + goes, best[goes]))
    out, at = (np.concatenate(column) for column in zip(*gone, strict=True))
    return out, at
