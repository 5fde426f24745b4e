"""What MinHash keeps of a text: the least of its runs of words under each of many orders, and keys of bands of them.

Broder, "On the resemblance and containment of documents", 1997. Decided here: a text is the set of its runs of n words. An
order is a permutation of 32 bits of a run's hash that the seed and its number alone decide; so any split of the texts, on any
machine, gives the same.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmdata.dedupe.words import Pieces, runs_of, slices
from mmdata.storage.digest import mix64

_TEXT_AT_ONCE = 1 << 24  # bytes
_RUNS_AT_ONCE = 1 << 14  # of 4 bytes: they and their products stay in the processor's cache
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
        sets = sets_of(pa.chunked_array([part]), way.n)
        keys.append(band_keys(_signatures(sets, way), way.bands))
        both.append(np.stack([_sums(mix64(sets.hash_S + salt), sets) for salt in (_GOLDEN, _GOLDEN << np.uint64(1))], axis=1))
    return Sketches(np.concatenate(keys), np.concatenate(both))


def signatures(texts: pa.ChunkedArray, way: MinHash) -> np.ndarray:
    """Return the least of each text's runs under each of the orders, (N, bands x rows) uint32.

    Two of Jaccard similarity s agree in a share s of them. A text without words has 2^32 - 1 everywhere.
    """
    parts = [_signatures(sets_of(pa.chunked_array([part]), way.n), way) for part in slices(texts, _TEXT_AT_ONCE)]
    return np.concatenate([np.zeros((0, way.bands * way.rows), np.uint32), *parts])


def band_keys(signatures_NH: np.ndarray, bands: int) -> np.ndarray:
    """Return 64 bits of the hashes of each band, (N, bands) uint64, from (N, bands x rows) uint32."""
    cut = signatures_NH.reshape(len(signatures_NH), bands, signatures_NH.shape[1] // bands)
    key = np.broadcast_to(mix64(np.arange(bands, dtype=np.uint64)), cut.shape[:2]).copy()
    for row in range(cut.shape[2]):
        key *= _GOLDEN
        key += cut[:, :, row]
    return mix64(key)


def sets_of(texts: pa.ChunkedArray, n: int) -> Pieces:
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


def _sums(value_S: np.ndarray, sets: Pieces) -> np.ndarray:
    """Return the sum of each text's values modulo 2^64, (N,) uint64."""
    filled = np.flatnonzero(sets.num_N())
    found = np.zeros(len(sets.first_N) - 1, np.uint64)
    if len(filled):
        found[filled] = np.add.reduceat(value_S, sets.first_N[filled])
    return found
