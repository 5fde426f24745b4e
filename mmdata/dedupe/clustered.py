"""Pairs of vectors of at least a cosine, looked for inside clusters and across their borders: faster, not exact.

Decided here: k-means on the sphere (own, in blocks, keyed by a seed) puts each vector into one cluster, and vectors are compared
inside it. Two vectors at an angle that belongs to the threshold lie at most d = sqrt(2 - 2 * threshold) apart. If they are of
two clusters, one of them lies within d/2 of the plane between the two: it also visits the other cluster. `border` times d/2
is the distance that counts: with 1 nothing is missed, less is faster. How much was found is measured each time: a sample of
the vectors is compared with all others.

All randomness comes from a counter-based generator keyed by the seed. Which cluster a vector on a border is in may change
with the number of threads of BLAS; what is found there is judged by float64 as ever.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmdata.dedupe.cosine import Found, Screen, Unit, best_screen, check_threshold, cross_near
from mmdata.dedupe.pairs import Pairs

_BLOCK = 4096
_PER_CLUSTER = 64  # vectors that k-means learns from, a cluster
_ROUNDS = 8


@dataclass(frozen=True)
class Clustering:
    """How to look.

    clusters  how many; None takes 2 * sqrt(N)
    border    share of the distance at which nothing is missed, in [0, 1]
    visits    clusters that a vector visits at most
    checked   vectors that are compared with all others to measure the recall
    """

    clusters: int | None = None
    border: float = 0.5
    visits: int = 16
    checked: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Clusters:
    """Centres of length 1, (K, D) float32, and the cluster of each vector, (N,) int64."""

    centres_KD: np.ndarray
    of_N: np.ndarray

    def members(self) -> list[np.ndarray]:
        """Return the places of each cluster's vectors, ascending."""
        order = np.argsort(self.of_N, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.of_N, minlength=len(self.centres_KD)))[:-1])


@dataclass(frozen=True)
class Looked:
    """What was found, and how much of what there is.

    recall  share of the pairs of `num_checked` vectors, of which there are `num_pairs`, that was found; null where there are none
    """

    pairs: Pairs
    recall: float | None
    num_checked: int
    num_pairs: int

    def __str__(self) -> str:
        """Say it for people."""
        share = "no pair to find" if self.recall is None else f"recall {self.recall:.4f} of {self.num_pairs:,} pairs"
        return f"{len(self.pairs):,} pairs; measured on {self.num_checked:,} vectors: {share}"


def kmeans(unit: Unit, num_clusters: int, seed: int = 0) -> Clusters:
    """Cluster vectors by cosine: Lloyd's rounds on a sample, then each vector goes to its nearest centre.

    A centre that nothing is near stays where it is.
    """
    num_clusters = max(1, min(num_clusters, len(unit)))
    generator = np.random.Generator(np.random.Philox(seed))
    learnt = np.sort(generator.permutation(len(unit))[: num_clusters * _PER_CLUSTER])
    sample = unit.rows(learnt)
    centres = sample[np.sort(generator.permutation(len(sample))[:num_clusters])].copy()
    for _ in range(_ROUNDS if len(unit) else 0):
        of = np.concatenate([nearest.argmax(axis=1) for nearest in _products(sample, centres)])
        order = np.argsort(of, kind="stable")
        there, first = np.unique(of[order], return_index=True)
        sums = np.add.reduceat(sample[order], first, axis=0)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres[there] = np.divide(sums, length, out=centres[there], where=length > 0)
    of_N = np.empty(len(unit), np.int64)
    for start in range(0, len(unit), _BLOCK):
        of_N[start : start + _BLOCK] = (unit.rows(slice(start, start + _BLOCK)) @ centres.T).argmax(axis=1)
    return Clusters(centres, of_N)


def _products(vectors: np.ndarray, centres: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), _BLOCK):
        yield vectors[start : start + _BLOCK] @ centres.T


def near_clustered(
    vectors_ND: np.ndarray, threshold: float, how: Clustering | None = None, screen: Screen | None = None, memory_mib: int = 512
) -> Looked:
    """Look for pairs of vectors whose cosine is at least `threshold`, and measure how many of them were found.

    vectors_ND  (N, D) float16 or float32, of any length, memory-mapped or not
    """
    check_threshold(threshold)
    how, screen, unit = how or Clustering(), screen or best_screen(), Unit(vectors_ND, memory_mib)
    if not len(unit):
        return Looked(Found(unit, threshold).pairs(), None, 0, 0)
    clusters = kmeans(unit, how.clusters or int(2 * len(unit) ** 0.5), how.seed)
    found = Found(unit, threshold)
    visitors = _visitors(unit, clusters, threshold, how)
    for home, guests in zip(clusters.members(), visitors, strict=True):
        _look(found, unit, home, guests, screen, threshold)
    pairs = found.pairs()
    return _measured(pairs, unit, threshold, how, screen)


def _look(found: Found, unit: Unit, home: np.ndarray, guests: np.ndarray, screen: Screen, threshold: float) -> None:
    if not len(home):
        return
    all_ = np.concatenate([home, guests])
    block = unit.rows(all_)
    bound = threshold - screen.margin(unit.dim)
    right = screen.load(block[: len(home)])
    for start in range(0, len(all_), screen.tall):
        one, other = screen.hits(screen.load(block[start : start + screen.tall]), right, bound)
        one = one + start
        once = one > other  # guests come after the members of the house
        found.add(all_[one[once]], home[other[once]])


def _visitors(unit: Unit, clusters: Clusters, threshold: float, how: Clustering) -> list[np.ndarray]:
    """Return the vectors that visit each cluster."""
    num = len(clusters.centres_KD)
    reach = how.border * (np.sqrt(max(2 - 2 * threshold, 0)) / 2 + 1e-5)  # float32 rounds
    visits = min(how.visits, num - 1)
    if visits < 1 or not len(unit):
        return [np.zeros(0, np.int64)] * num
    apart = np.sqrt(np.maximum(2 - 2 * clusters.centres_KD @ clusters.centres_KD.T, 1e-12))
    guests, houses = [], []
    for start in range(0, len(unit), _BLOCK):
        of = clusters.of_N[start : start + _BLOCK]
        products = unit.rows(slice(start, start + _BLOCK)) @ clusters.centres_KD.T
        own = np.take_along_axis(products, of[:, None], axis=1)
        plane = (own - products) / apart[of]
        plane[np.arange(len(of)), of] = np.inf
        near = np.argpartition(plane, visits - 1, axis=1)[:, :visits]
        row, place = np.nonzero(np.take_along_axis(plane, near, axis=1) <= reach)
        guests.append(row + start)
        houses.append(near[row, place])
    guest, house = np.concatenate(guests), np.concatenate(houses)
    order = np.argsort(house, kind="stable")
    return np.split(guest[order], np.cumsum(np.bincount(house, minlength=num))[:-1])


def _measured(pairs: Pairs, unit: Unit, threshold: float, how: Clustering, screen: Screen) -> Looked:
    generator = np.random.Generator(np.random.Philox(how.seed + 1))
    checked = np.sort(generator.permutation(len(unit))[: how.checked])
    truth = Found(unit, threshold)
    for one, other in cross_near(Unit(unit.rows(checked)), unit, threshold, screen):
        different = checked[one] != other
        truth.add(checked[one[different]], other[different])
    there = truth.pairs()
    if not len(there):
        return Looked(pairs, None, len(checked), 0)
    known = pairs.left_P * len(unit) + pairs.right_P
    got = np.isin(there.left_P * len(unit) + there.right_P, known)
    return Looked(pairs, float(got.mean()), len(checked), len(there))
