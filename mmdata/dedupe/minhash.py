"""Texts that are nearly the same, by MinHash and bands of it; each pair that is told is checked exactly.

Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3. Decided here: a text is the set of its runs of n words (see `words`; a text of fewer words has one run, itself), and
two texts are as near as these sets: common runs over all runs of both (Jaccard). `bands` x `rows` hashes are taken of each
set, the least of its runs under as many orders; two texts whose hashes agree in all rows of some band are compared. So a pair
is met with the probability that `chance_met` gives, and a pair that is told is near: no false ones. Equal sets are one:
a million equal texts make no pairs until somebody asks for the pairs of rows. A text without words is near nothing.

The work in steps: `sketches` of any parts of the texts; `collapse`, of all of them; `near_values`, in parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmdata.dedupe.blocks import WHOLE, Part
from mmdata.dedupe.hamming import MAX_PAIRS
from mmdata.dedupe.pairs import Pairs, crossed, expanded, in_order, no_pairs, num_expanded
from mmdata.dedupe.sketch import MinHash, Sketches, band_keys, chance_met, minhash_for, sets_of, signatures, sketches
from mmdata.dedupe.words import whole_at_first, whole_texts
from mmdata.errors import RunError

__all__ = [
    "MinHash", "Sketches", "Values", "band_keys", "chance_met", "collapse", "minhash_for", "near_texts", "near_values",
    "signatures", "sketches", "whole_at_first", "whole_texts",
]  # fmt: skip

_COMMON_AT_ONCE = 1 << 24  # runs of pairs that are compared
_TRIES_A_PAIR = 20  # pairs that are compared for each that may be found


@dataclass(frozen=True)
class Values:
    """Texts of equal runs as one value; those without words, which are near nothing, come last, each by itself.

    texts     N texts         n         words a run
    keys_VB   (V, B) uint64, of the values that have words      first_U   (U,) int64, the first text of each value
    of_N      (N,) int64, the value of each text
    """

    texts: pa.ChunkedArray
    n: int
    keys_VB: np.ndarray
    first_U: np.ndarray
    of_N: np.ndarray


def collapse(texts: pa.ChunkedArray, of: Sketches, way: MinHash) -> Values:
    """Return texts of equal runs as one value."""
    set_N2 = of.set_N2
    order = np.lexsort((~set_N2[:, 1], ~set_N2[:, 0]))  # those without words last
    ordered = set_N2[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    fresh |= ~ordered.any(axis=1)
    first_U, of_N = order[fresh], np.empty(len(order), np.int64)
    of_N[order] = np.cumsum(fresh) - 1
    num_values = int(set_N2[first_U].any(axis=1).sum())
    return Values(texts, way.n, of.keys_NB[first_U[:num_values]], first_U, of_N)


def near_texts(
    texts: pa.ChunkedArray,
    threshold: float,
    way: MinHash | None = None,
    share: int = 0,
    of: int = 1,
    max_pairs: int = MAX_PAIRS,
) -> Pairs:
    """Return pairs of texts of a Jaccard similarity of at least `threshold`; the distance is one minus it.

    way         None is `minhash_for(threshold)`: it meets 99 % of the pairs at the threshold, and more above it
    share, of   one share of the pairs: all shares together hold each pair once
    raises      RunError where there are more than `max_pairs`: equal texts count too, see `near_values`
    """
    way = way or minhash_for(threshold)
    values = collapse(texts, sketches(texts, way), way)
    found = near_values(values, threshold, (share, of), max_pairs)
    _refuse_many(num_expanded(found, values.of_N), max_pairs, threshold)
    pairs = expanded(found, values.of_N)
    if share == 0:
        return pairs
    other = values.of_N[pairs.left_P] != values.of_N[pairs.right_P]  # equal ones were told by the first share
    return Pairs(pairs.left_P[other], pairs.right_P[other], pairs.distance_P[other])


def near_values(values: Values, threshold: float, part: Part = WHOLE, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Return pairs of different values of a Jaccard similarity of at least `threshold`, places in `first_U`.

    The runs of those texts that have another beside them in some band of this part are held in memory, about 55 bytes each.

    part      (number, of how many): only this part of the pairs; all parts together hold each pair once
    raises    RunError where there are more than `max_pairs`, or 20 times as many would have to be compared
    """
    bands = range(part[0], values.keys_VB.shape[1], part[1])
    groups = {band: _groups(values.keys_VB[:, band]) for band in bands}
    tries = sum(int((num * (num - 1) // 2).sum()) for _, num in groups.values())
    if tries > _TRIES_A_PAIR * max_pairs:
        raise RunError(
            f"{tries:,} pairs of texts would have to be compared: many texts are alike in a part of their words",
            hint="take a higher threshold or longer bands, or drop texts made from a template first",
        )
    meeting = np.zeros(len(values.keys_VB), bool)
    for members, _ in groups.values():
        meeting[members] = True
    compare = _Compare(values, np.flatnonzero(meeting))
    none = no_pairs()
    found, total = [(none.left_P, none.right_P, none.distance_P)], 0
    for band in bands:
        for left, right in _candidates(values.keys_VB, band, *groups[band]):
            similarity = compare(left, right)
            near = similarity >= threshold
            total += int(near.sum())
            _refuse_many(total, max_pairs, threshold)
            found.append((left[near], right[near], (1 - similarity[near]).astype(np.float32)))
    return in_order(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of keys that others are equal to, group after group, (M,) int64, and the size of each group, (G,)."""
    order = np.argsort(keys)
    ordered = keys[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(keys)])
    num = np.diff(np.append(first, len(keys)))
    return order[np.repeat(num > 1, num)], num[num > 1]


def _candidates(keys_VB: np.ndarray, band: int, members: np.ndarray, num: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places of all pairs in the groups of a band whose first equal key is that of it, a million at a time at most."""
    first = np.cumsum(num) - num
    for group, one, other in crossed(num, num):
        once = one < other
        left, right = members[first[group[once]] + one[once]], members[first[group[once]] + other[once]]
        for before in range(band):
            apart = keys_VB[left, before] != keys_VB[right, before]
            left, right = left[apart], right[apart]
        yield left, right


class _Compare:
    """Jaccard similarities of pairs of values, exactly."""

    def __init__(self, values: Values, which: np.ndarray) -> None:
        """Read the runs of some values."""
        from scipy.sparse import csr_array

        texts = pa.chunked_array([chunk.cast(pa.large_string()) for chunk in values.texts.chunks], pa.large_string())
        sets = sets_of(texts.take(pa.array(values.first_U[which])), values.n)
        self._num = sets.num_N()
        self._row = np.full(len(values.keys_VB), -1)
        self._row[which] = np.arange(len(which))
        different, column = np.unique(sets.hash_S, return_inverse=True)
        shape = (len(which), max(len(different), 1))
        self._runs = csr_array((np.ones(len(column), np.int8), column, sets.first_N), shape=shape)

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the similarities of pairs of these places, (P,) float64."""
        one, other = self._row[left], self._row[right]
        total = self._num[one] + self._num[other]
        common = np.zeros(len(one), np.float64)
        cuts = np.flatnonzero(np.diff(np.cumsum(total) // _COMMON_AT_ONCE)) + 1
        for pairs in np.split(np.arange(len(one)), cuts):
            both = self._runs[one[pairs]].multiply(self._runs[other[pairs]])
            common[pairs] = np.diff(both.indptr)
        similarity: np.ndarray = common / (total - common)
        return similarity


def _refuse_many(total: int, max_pairs: int, threshold: float) -> None:
    if total > max_pairs:
        raise RunError(
            f"more than {max_pairs:,} pairs of texts have a similarity of {threshold} or more",
            hint="take a higher threshold, or drop equal texts first",
        )
