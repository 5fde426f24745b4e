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
import pyarrow.compute as pc

from mmdata.dedupe.blocks import WHOLE, Part
from mmdata.dedupe.hamming import MAX_PAIRS
from mmdata.dedupe.pairs import Pairs, crossed, expanded, in_order, no_pairs, num_expanded
from mmdata.dedupe.words import Pieces, runs_of, slices
from mmdata.errors import PartitionError
from mmdata.storage.digest import mix64

_TEXT_AT_ONCE = 1 << 24  # bytes
_RUNS_AT_ONCE = 1 << 14  # of 4 bytes: they and their products stay in the processor's cache
_COMMON_AT_ONCE = 1 << 24  # runs of pairs that are compared
_TRIES_A_PAIR = 20  # pairs that are compared for each that may be found
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class MinHash:
    """How texts are hashed. The defaults are those of `minhash_for(0.8)`; FineWeb's are bands=14, rows=8 (arXiv:2406.17557).

    n            words a run
    bands, rows  a pair is compared where all `rows` hashes of one of the `bands` are equal
    seed         of the orders; the same seed gives the same hashes on every machine
    """

    n: int = 5
    bands: int = 21
    rows: int = 6
    seed: int = 0


def chance_met(similarity: float, bands: int, rows: int) -> float:
    """Return with which probability a pair of this Jaccard similarity is met: 1 - (1 - s^rows)^bands."""
    return float(1 - (1 - similarity**rows) ** bands)


def minhash_for(threshold: float, n: int = 5, hashes: int = 128, least: float = 0.99) -> MinHash:
    """Return the longest bands of at most `hashes` hashes that meet a pair at the threshold with a probability of `least`.

    Longer bands cost less: fewer pairs are compared in vain. Pairs above the threshold are met more surely.
    """
    good = [rows for rows in range(1, hashes + 1) if chance_met(threshold, hashes // rows, rows) >= least]
    rows = max(good, default=1)
    return MinHash(n, hashes // rows, rows)


# One text at a time: any split of the texts gives the same.


@dataclass(frozen=True)
class Sketches:
    """What is kept of each text.

    keys_NB   (N, B) uint64, one key a band: texts are compared where one is equal
    set_N2    (N, 2) uint64, equal where texts are of the same runs; zeros where a text has no words
    """

    keys_NB: np.ndarray
    set_N2: np.ndarray

    def to_table(self) -> pa.Table:
        """Return them as a table, one row a text."""
        arrays = {"keys": self.keys_NB, "set": self.set_N2}
        return pa.table({name: pa.FixedSizeListArray.from_arrays(of.ravel(), of.shape[1]) for name, of in arrays.items()})

    @staticmethod
    def from_table(table: pa.Table) -> "Sketches":
        """Return those of a table, which may be of several parts."""
        keys, sets = (table.column(name).combine_chunks() for name in ("keys", "set"))
        return Sketches(*(of.flatten().to_numpy().reshape(len(of), of.type.list_size) for of in (keys, sets)))


def sketches(texts: pa.ChunkedArray, way: MinHash) -> Sketches:
    """Return what is kept of each text: 8 bytes for each band, and 16."""
    keys, both = [np.zeros((0, way.bands), np.uint64)], [np.zeros((0, 2), np.uint64)]
    for part in slices(texts, _TEXT_AT_ONCE):
        sets = _sets(pa.chunked_array([part]), way.n)
        keys.append(band_keys(_signatures(sets, way), way.bands))
        sums = [_by_text(np.add, mix64(sets.hash_S + salt), sets, 0) for salt in (_GOLDEN, _GOLDEN << np.uint64(1))]
        both.append(np.stack(sums, axis=1))
    return Sketches(np.concatenate(keys), np.concatenate(both))


def signatures(texts: pa.ChunkedArray, way: MinHash) -> np.ndarray:
    """Return the least of each text's runs under each of the orders, (N, bands x rows) uint32.

    Two of Jaccard similarity s agree in a share s of them. A text without words has 2^32 - 1 everywhere.
    """
    parts = [_signatures(_sets(pa.chunked_array([part]), way.n), way) for part in slices(texts, _TEXT_AT_ONCE)]
    return np.concatenate([np.zeros((0, way.bands * way.rows), np.uint32), *parts])


def band_keys(signatures_NH: np.ndarray, bands: int) -> np.ndarray:
    """Return 64 bits of the hashes of each band, (N, bands) uint64, from (N, bands x rows) uint32."""
    cut = signatures_NH.reshape(len(signatures_NH), bands, signatures_NH.shape[1] // bands)
    key = np.broadcast_to(mix64(np.arange(bands, dtype=np.uint64)), cut.shape[:2]).copy()
    for row in range(cut.shape[2]):
        key *= _GOLDEN
        key += cut[:, :, row]
    return mix64(key)


def _sets(texts: pa.ChunkedArray, n: int) -> Pieces:
    """Return the different runs of each text, ascending."""
    runs = runs_of(texts, n)
    num_N, hash_S = runs.num_N(), runs.hash_S
    order = np.argsort(num_N, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(num_N[order])) + 1):  # of as many runs each: rows of one array
        at = runs.first_N[same, None] + np.arange(num_N[same[0]] if len(same) else 0)
        hash_S[at] = np.sort(hash_S[at], axis=1)
    fresh = np.ones(len(hash_S), bool)
    fresh[1:] = hash_S[1:] != hash_S[:-1]
    fresh[runs.first_N[:-1][num_N > 0]] = True
    return Pieces(hash_S[fresh], np.append(0, np.cumsum(fresh))[runs.first_N])


def _signatures(sets: Pieces, way: MinHash) -> np.ndarray:
    num = way.bands * way.rows
    words = mix64(mix64(np.array([way.seed], np.uint64)) + np.arange(num, dtype=np.uint64) * _GOLDEN)
    factor, flip = words.astype(np.uint32) | np.uint32(1), (words >> np.uint64(32)).astype(np.uint32)
    short_S = (sets.hash_S >> np.uint64(32)).astype(np.uint32)
    found = np.full((len(sets.first_N) - 1, num), 0xFFFFFFFF, np.uint32)
    filled = np.flatnonzero(sets.num_N())
    first = sets.first_N[filled]
    start = 0
    while start < len(filled):
        stop = max(int(np.searchsorted(first, first[start] + _RUNS_AT_ONCE)) - 1, start + 1)
        end = first[stop] if stop < len(filled) else len(short_S)
        runs, cuts = short_S[first[start] : end], first[start:stop] - first[start]
        least = np.empty((num, stop - start), np.uint32)
        order = np.empty_like(runs)
        for number in range(num):  # an order of all numbers of 32 bits: an odd factor is a permutation of them
            np.multiply(np.bitwise_xor(runs, flip[number], out=order), factor[number], out=order)
            np.minimum.reduceat(order, cuts, out=least[number])
        found[filled[start:stop]] = least.T
        start = stop
    return found


def _by_text(add: np.ufunc, value_S: np.ndarray, sets: Pieces, empty: int) -> np.ndarray:
    filled = np.flatnonzero(sets.num_N())
    found = np.full(len(sets.first_N) - 1, empty, value_S.dtype)
    if len(filled):
        found[filled] = add.reduceat(value_S, sets.first_N[filled])
    return found


# All texts together.


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
    raises      PartitionError where there are more than `max_pairs`: equal texts count too, see `near_values`
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
    raises    PartitionError where there are more than `max_pairs`, or 20 times as many would have to be compared
    """
    bands = range(part[0], values.keys_VB.shape[1], part[1])
    groups = {band: _groups(values.keys_VB[:, band]) for band in bands}
    tries = sum(int((num * (num - 1) // 2).sum()) for _, num in groups.values())
    if tries > _TRIES_A_PAIR * max_pairs:
        raise PartitionError(
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
        sets = _sets(texts.take(pa.array(values.first_U[which])), values.n)
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
        raise PartitionError(
            f"more than {max_pairs:,} pairs of texts have a similarity of {threshold} or more",
            hint="take a higher threshold, or drop equal texts first",
        )


def whole_texts(table: pa.Table) -> pa.Table:
    """Return the text of each sample: the texts of its rows, in `position` order, a newline between two; nulls left out.

    table    `sample_id`, `position`, `text`
    returns  `sample_id`, ascending, and `text`, large_string: null where no row has one
    """
    import polars as pl  # a worker that only downloads does not need it

    frame = pl.DataFrame(pl.from_arrow(table.select(["sample_id", "position", "text"])))
    there = pl.col("text").drop_nulls()
    whole = pl.when(pl.col("text").count() > 0).then(there.str.join("\n")).alias("text")
    found = frame.sort("sample_id", "position", "text").group_by("sample_id", maintain_order=True).agg(whole)
    return found.to_arrow().cast(pa.schema([("sample_id", pa.string()), ("text", pa.large_string())]))


def whole_at_first(table: pa.Table, column: str) -> pa.ChunkedArray:
    """Return `whole_texts` of a column, each at the first row of its sample by `position`, and null at its other rows.

    table    (N rows) `sample_id`, `position`, the column; samples are whole in it
    """
    whole = whole_texts(table.select(["sample_id", "position", column]).rename_columns(["sample_id", "position", "text"]))
    ids = table.column("sample_id").combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((table.column("position").to_numpy(), ids))
    first = order[np.append(True, np.diff(ids[order]) > 0)[: len(order)]]
    place = pc.index_in(table.column("sample_id").take(pa.array(first)), whole.column("sample_id").combine_chunks())
    at_N = np.full(table.num_rows, -1)
    at_N[first] = place.to_numpy()
    return whole.column("text").take(pa.array(at_N, mask=at_N < 0))
