"""SemDeDup's rule: of vectors near each other inside a cluster, all go that have a near one before them.

Abbas et al. 2023, arXiv:2303.09540. Inside a cluster vectors are ordered by their cosine with its centre; one whose largest
cosine with those before it is above 1 - epsilon goes. Likeness chains here: what drops a row may have been dropped itself.
So the keeper named is found by going from each dropped one to the nearest before it until one is met that stays; it may be
farther away than epsilon. (`mmdata.dedupe.groups` does not chain, and drops fewer.)
"""

from typing import Literal

import numpy as np

from mmdata.dedupe.clustered import Clusters, kmeans
from mmdata.dedupe.cosine import Unit

Keep = Literal["hard", "easy", "random"]
_BLOCK = 2048


def semdedup(
    vectors_ND: np.ndarray, epsilon: float, num_clusters: int, keep: Keep = "hard", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keeper of each vector, its own place where it stays, (N,) int64, and one minus their cosine, (N,) float32.

    epsilon   in [0, 1): vectors with a cosine above 1 - epsilon are the same
    keep      `hard`: the one farthest from the centre of its cluster; `easy`: the nearest; `random`: any, by the seed
    """
    unit = Unit(vectors_ND)
    clusters = kmeans(unit, num_clusters, seed)
    before = np.arange(len(unit))
    rank = _order(unit, clusters, keep, seed)
    for members in clusters.members():
        ordered = members[np.argsort(rank[members], kind="stable")]
        _judge(unit, ordered, epsilon, before)
    keeper = before
    while (before[keeper] != keeper).any():
        keeper = before[keeper]
    distance = np.zeros(len(unit), np.float32)
    out = np.flatnonzero(keeper != np.arange(len(unit)))
    distance[out] = np.maximum(1 - unit.cosines(out, keeper[out]), 0)
    return keeper, distance


def _order(unit: Unit, clusters: Clusters, keep: Keep, seed: int) -> np.ndarray:
    """Return what vectors are ordered by, lowest first, (N,) float64; equal ones stay in the order given."""
    if keep == "random":
        return np.random.Generator(np.random.Philox(seed + 2)).permutation(len(unit)).astype(np.float64)
    to_centre = np.empty(len(unit), np.float64)
    for start in range(0, len(unit), _BLOCK):
        some = slice(start, start + _BLOCK)
        to_centre[some] = (unit.rows(some) * clusters.centres_KD[clusters.of_N[some]]).sum(axis=1)
    return to_centre if keep == "hard" else -to_centre


def _judge(unit: Unit, ordered: np.ndarray, epsilon: float, before: np.ndarray) -> None:
    """Write to `before`, for each that goes, the place of the nearest one before it."""
    block = unit.rows(ordered)
    for start in range(0, len(ordered), _BLOCK):
        products = block[start : start + _BLOCK] @ block[: start + _BLOCK].T
        products[np.triu_indices(len(products), start, products.shape[1])] = -2
        best = products.argmax(axis=1)
        goes = np.flatnonzero(products[np.arange(len(products)), best] > 1 - epsilon)
        before[ordered[start + goes]] = ordered[best[goes]]
