"""Pairs of vectors of at least a cosine, looked for inside clusters and across their borders: faster, not exact.

Decided here: k-means on the sphere (own, in blocks, keyed by a seed) puts each vector into one cluster, and vectors are compared
inside it. Two vectors at an angle that belongs to the threshold lie at most d = sqrt(2 - 2 * threshold) apart. If they are of
two clusters, one of them lies within d/2 of the plane between the two: it also visits the other cluster. `border` times d/2
is the distance that counts: with 1 nothing is missed, less is faster. How much was found is measured each time: a sample of
the vectors is compared with all others.

The work comes in three steps, of which the second and third can be shared: centres are learnt from a sample; each vector is
put into its cluster and those that it visits; clusters are looked through, and the checked vectors compared with all.

All randomness comes from a counter-based generator keyed by the seed. Which cluster a vector on a border is in may change
with the number of threads of BLAS; what is found there is judged by float64 as ever.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmdata.dedupe.blocks import WHOLE, Part
from mmdata.dedupe.cosine import Found, Screen, Unit, best_screen, check_threshold, cross_near
from mmdata.dedupe.lines import Lines
from mmdata.dedupe.pairs import Pairs

_BLOCK = 4096
# Vectors that k-means learns from, a cluster, and its rounds: more of either takes longer than what it saves.
_PER_CLUSTER, _ROUNDS = 32, 4
_HELD = 1 << 20  # candidates that wait until they are computed anew, each once


@dataclass(frozen=True)
class Clustering:
    """How to look.

    clusters  how many; None takes 2 * sqrt(N)
    border    share of the distance at which nothing is missed, in [0, 1]
    visits    clusters that a vector visits at most
    checked   vectors that are compared with all others to measure the recall
    """

    clusters: int | None = None
    border: float = 1.0
    visits: int = 8
    checked: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Stays:
    """Who is where.

    vector_S   (S,) int64, place of a vector            cluster_S   (S,) int64
    guest_S    (S,) bool, whether it only visits        cosine_S    (S,) float32, of the vector with the cluster's centre
    """

    vector_S: np.ndarray
    cluster_S: np.ndarray
    guest_S: np.ndarray
    cosine_S: np.ndarray

    def members(self, *, guests: bool) -> list[np.ndarray]:
        """Return the places in these arrays of those that live in, or only visit, each cluster, ascending by vector."""
        num = int(self.cluster_S.max(initial=-1)) + 1
        mine = np.flatnonzero(self.guest_S == guests)
        mine = mine[np.lexsort((self.vector_S[mine], self.cluster_S[mine]))]
        return np.split(mine, np.cumsum(np.bincount(self.cluster_S[mine], minlength=num))[:-1])


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


def centres_of(unit: Unit, num_clusters: int, seed: int = 0) -> np.ndarray:
    """Return the centres of clusters by cosine, (K, D) float32 of length 1: Lloyd's rounds on a sample.

    A centre that nothing is near stays where it is.
    """
    from scipy.sparse import coo_array

    num_clusters = max(1, min(num_clusters, len(unit)))
    generator = np.random.Generator(np.random.Philox(seed))
    learnt = np.sort(generator.permutation(len(unit))[: num_clusters * _PER_CLUSTER])
    sample = unit.rows(learnt)
    centres = sample[np.sort(generator.permutation(len(sample))[:num_clusters])].copy()
    for _ in range(_ROUNDS if len(unit) else 0):
        of = np.concatenate([nearest.argmax(axis=1) for nearest in _products(sample, centres)])
        sums = coo_array((np.ones(len(of), np.float32), (of, np.arange(len(of)))), (num_clusters, len(of))).tocsr() @ sample
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.where(length > 0, length, 1), centres)
    return centres


def _products(vectors: np.ndarray, centres: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), _BLOCK):
        yield vectors[start : start + _BLOCK] @ centres.T


def stays_of(unit: Unit, centres_KD: np.ndarray, reach: float = 0.0, visits: int = 0, part: Part = WHOLE) -> Stays:
    """Put a part of the vectors into clusters: each into its nearest, and as a guest into those whose border is within `reach`.

    reach   distance of unit vectors to the plane between two clusters      visits   at most so many
    """
    num = len(centres_KD)
    visits = min(visits, num - 1)
    apart = np.sqrt(np.maximum(2 - 2 * centres_KD @ centres_KD.T, 1e-12))
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32))]
    for start in range(_BLOCK * part[0], len(unit), _BLOCK * part[1]):
        products = unit.rows(slice(start, start + _BLOCK)) @ centres_KD.T
        of = products.argmax(axis=1)
        row = np.arange(len(of))
        found.append((row + start, of, np.zeros(len(of), bool), products[row, of]))
        if visits > 0:
            row, house = _visited(products, of, apart, reach, visits)
            found.append((row + start, house, np.ones(len(row), bool), products[row, house]))
    return Stays(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _visited(products: np.ndarray, of: np.ndarray, apart: np.ndarray, reach: float, visits: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(of))
    plane = (products[rows, of][:, None] - products) / apart[of]
    plane[rows, of] = np.inf
    found = []
    for _ in range(visits):  # a few times the least of all is quicker than the order of all
        near = plane.argmin(axis=1)
        here = np.flatnonzero(plane[np.arange(len(rows)), near] <= reach)
        if not len(here):
            break
        found.append((rows[here], near[here]))
        plane[here, near[here]] = np.inf
        if len(here) < len(rows) // 2:
            rows, plane = rows[here], plane[here]
    none = np.zeros(0, np.int64)
    row, house = (np.concatenate([none, *(part[side] for part in found)]) for side in (0, 1))
    return row, house


def reach_of(threshold: float, how: Clustering) -> float:
    """Return how near to a border a vector visits the other side."""
    return float(how.border * (np.sqrt(max(2 - 2 * threshold, 0)) / 2 + 1e-5))  # float32 rounds


def num_clusters_of(how: Clustering, num: int) -> int:
    """Return how many clusters `num` vectors are put into."""
    return how.clusters or max(1, int(2 * num**0.5))


def pairs_in_clusters(unit: Unit, stays: Stays, threshold: float, screen: Screen, part: Part = WHOLE) -> Pairs:
    """Return the pairs of at least the threshold that meet in a part of the clusters; two may meet in several."""
    found, num = Found(unit, threshold), len(unit)
    homes, guests = (stays.members(guests=guests)[part[0] :: part[1]] for guests in (False, True))
    held, waiting = [np.zeros(0, np.int64)], 0
    for home, guest in zip(homes, guests, strict=True):
        for left, right in _candidates(unit, (stays.vector_S[home], stays.vector_S[guest]), screen, threshold):
            held.append(np.minimum(left, right) * num + np.maximum(left, right))
            waiting += len(left)
        if waiting > _HELD:
            _settle(found, held, num)
            held, waiting = [], 0
    _settle(found, held, num)
    return found.pairs()


def _settle(found: Found, held: list[np.ndarray], num: int) -> None:
    """Compute candidates anew: one that met in several clusters once, and neighbours in order, so that few vectors are read."""
    if held:
        keys = np.sort(np.concatenate(held))
        keys = keys[np.diff(keys, prepend=-1) > 0]
        found.add(keys // num, keys % num)


def _candidates(
    unit: Unit, there: tuple[np.ndarray, np.ndarray], screen: Screen, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    home, all_ = there[0], np.concatenate(there)
    if not len(home):
        return
    block = unit.rows(all_)
    bound = threshold - screen.margin(unit.dim)
    right = screen.load(block[: len(home)])
    for start in range(0, len(all_), screen.tall):
        one, other = screen.hits(screen.load(block[start : start + screen.tall]), right, bound)
        one = one + start
        once = one > other  # guests come after the members of the house
        yield all_[one[once]], home[other[once]]


def pairs_checked(unit: Unit, threshold: float, how: Clustering, screen: Screen, part: Part = WHOLE) -> Pairs:
    """Return all pairs of at least the threshold of a part of the checked vectors with any other."""
    checked = _checked(len(unit), how)[part[0] :: part[1]]
    truth = Found(unit, threshold)
    for one, other in cross_near(Unit(unit.rows(checked)), unit, threshold, screen):
        different = checked[one] != other
        truth.add(checked[one[different]], other[different])
    return truth.pairs()


def _checked(num: int, how: Clustering) -> np.ndarray:
    return np.sort(np.random.Generator(np.random.Philox(how.seed + 1)).permutation(num)[: how.checked])


def measured(pairs: Pairs, truth: Pairs, num: int, how: Clustering) -> Looked:
    """Return pairs with their recall by what there is for the checked ones of `num` vectors."""
    num_checked = len(_checked(num, how))
    if not len(truth):
        return Looked(pairs, None, num_checked, 0)
    known, due = (np.append(some.left_P, num) * num + np.append(some.right_P, 0) for some in (pairs, truth))  # ascending
    got = (known[np.searchsorted(known, due)] == due)[:-1]
    return Looked(pairs, float(got.mean()), num_checked, len(truth))


def near_clustered(
    vectors_ND: np.ndarray | Lines,
    threshold: float,
    how: Clustering | None = None,
    screen: Screen | None = None,
    memory_mib: int = 512,
) -> Looked:
    """Look for pairs of vectors whose cosine is at least `threshold`, and measure how many of them were found.

    vectors_ND  (N, D) float16 or float32, of any length, memory-mapped or not
    """
    check_threshold(threshold)
    how, screen, unit = how or Clustering(), screen or best_screen(), Unit(vectors_ND, memory_mib)
    if not len(unit):
        return Looked(Found(unit, threshold).pairs(), None, 0, 0)
    centres = centres_of(unit, num_clusters_of(how, len(unit)), how.seed)
    stays = stays_of(unit, centres, reach_of(threshold, how), how.visits)
    pairs = pairs_in_clusters(unit, stays, threshold, screen)
    return measured(pairs, pairs_checked(unit, threshold, how, screen), len(unit), how)
