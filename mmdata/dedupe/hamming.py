"""All pairs of 64-bit or longer hashes within a Hamming radius, exactly.

Decided here: a hash of one word is searched by blocks of its bits (see `blocks`). Longer hashes are cut into 64-bit words: at
distance R, some word i is within r_i, where the r_i + 1 add up to R + 1. Equal hashes are one: a million equal ones make no
pairs until somebody asks for the pairs of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import comb

import numpy as np

from mmdata.dedupe.blocks import BRUTE_NS, CANDIDATE_NS, WHOLE, WORD, Found, Part, best_choice, brute, near_words
from mmdata.dedupe.pairs import Pairs, crossed, expanded, in_order, no_pairs, num_expanded
from mmdata.errors import RunError

MAX_PAIRS = 200_000_000  # beyond it the answer would not fit; a radius that gives so many says nothing


def chance_links(num: int, radius: int, bits: int) -> float:
    """Return how many of `num` hashes of independent random bits a hash is expected to have within the radius by chance."""
    ball = sum(comb(bits, distance) for distance in range(min(radius, bits) + 1))
    return float(max(num - 1, 0) * (ball / 2**bits))


@dataclass(frozen=True)
class Collapsed:
    """Hashes, each once.

    values_UW   (U, W) uint64, ascending by their words      of_N   (N,) int64, which of them each hash is
    """

    values_UW: np.ndarray
    of_N: np.ndarray


def collapse(hashes: np.ndarray) -> Collapsed:
    """Return (N,) or (N, W) uint64 hashes, each once."""
    words = _words(hashes)
    order = np.argsort(words[:, 0]) if words.shape[1] == 1 else np.lexsort(words.T[::-1])
    ordered = words[order]
    fresh = np.ones(len(words), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    of_N = np.empty(len(words), np.int64)
    of_N[order] = np.cumsum(fresh) - 1
    return Collapsed(ordered[fresh], of_N)


def near_hashes(hashes: np.ndarray, radius: int, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Return all pairs of hashes that differ in at most `radius` bits, equal ones included.

    hashes    (N,) uint64, or (N, W) uint64 for W words a hash
    raises    RunError where there are more than `max_pairs`: the equal ones count too, see `near_values`
    """
    once = collapse(hashes)
    found = near_values(once.values_UW, radius, max_pairs)
    _refuse_many(num_expanded(found, once.of_N), max_pairs, radius)
    return expanded(found, once.of_N)


def near_values(values_UW: np.ndarray, radius: int, max_pairs: int = MAX_PAIRS, part: Part = WHOLE) -> Pairs:
    """Return all pairs of different hashes, as `collapse` gives them, that differ in at most `radius` bits.

    part      (number, of how many): only this part of the pairs; all parts together hold each pair once
    raises    RunError where there are more than `max_pairs`
    """
    values = _words(values_UW)
    if radius <= 0 or len(values) < 2:
        return no_pairs()
    if values.shape[1] == 1:
        words = values[:, 0]
        one, other = _gathered(near_words(words, radius, WORD, part), max_pairs, radius)
        left, right = np.searchsorted(words, one), np.searchsorted(words, other)
    else:
        left, right = _gathered(_near_long(values, radius, part), max_pairs, radius)
    return in_order(left, right, _distance(values, left, right))


def _words(hashes: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(hashes, np.uint64)
    return words.reshape(-1, 1) if words.ndim == 1 else words


def _distance(values: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes at these places differ, (P,) int64."""
    total = np.zeros(len(left), np.int64)
    for word in range(values.shape[1]):
        total += np.bitwise_count(values[left, word] ^ values[right, word])
    return total


def _gathered(parts: Iterator[Found], max_pairs: int, radius: int) -> Found:
    found, total = [], 0
    for part in parts:
        total += len(part[0])
        _refuse_many(total, max_pairs, radius)
        found.append(part)
    none = np.zeros(0, np.uint64)
    sides = [np.concatenate([part[side] for part in found]) if found else none for side in (0, 1)]
    return sides[0], sides[1]


def _refuse_many(total: int, max_pairs: int, radius: int) -> None:
    if total > max_pairs:
        raise RunError(
            f"more than {max_pairs:,} pairs of hashes are within {radius} bits of each other",
            hint="take a smaller radius or a longer hash, or drop pictures without detail first",
        )


# Several words a hash.


def _near_long(values: np.ndarray, radius: int, part: Part) -> Iterator[Found]:
    """Yield places of a part of all pairs within the radius of (N, W) hashes, each once."""
    shares = _shares(radius, values.shape[1])
    columns = [collapse(values[:, word]) if share >= 0 else None for word, share in enumerate(shares)]
    cost = sum(_word_cost(column, share) for column, share in zip(columns, shares, strict=True) if column is not None)
    if cost > len(values) ** 2 / 2 * BRUTE_NS * values.shape[1]:
        yield from brute(values, radius, part)
        return
    for word, column in enumerate(columns):
        if column is not None:
            for left, right in _near_in_word(column, shares[word], part):
                told = _distance(values, left, right) <= radius
                # A pair that is near in an earlier word was told there.
                for before in range(word):
                    told &= np.bitwise_count(values[left, before] ^ values[right, before]).astype(np.int64) > shares[before]
                yield left[told], right[told]


def _shares(radius: int, num: int) -> list[int]:
    """Return the radius of each word: r_i + 1 add up to radius + 1; -1 for a word that need not be looked at."""
    each, more = divmod(radius + 1, num)
    return [each + (word < more) - 1 for word in range(num)]


def _word_cost(column: Collapsed, radius: int) -> float:
    """Return nanoseconds that the pairs of one word take: equal words cross, and others are searched."""
    num_U = np.bincount(column.of_N).astype(np.float64)
    crossing = float((num_U * (num_U - 1)).sum() / 2) * 2 * CANDIDATE_NS
    return crossing + (best_choice(column.values_UW[:, 0], radius, WORD).cost if radius else 0.0)


def _near_in_word(column: Collapsed, radius: int, part: Part) -> Iterator[Found]:
    """Yield places of a part of all pairs of hashes whose words are within the radius, some millions at a time at most."""
    order = np.argsort(column.of_N, kind="stable")
    num_U = np.bincount(column.of_N, minlength=len(column.values_UW))
    first_U = np.cumsum(num_U) - num_U
    same = np.flatnonzero(num_U > 1)[part[0] :: part[1]]
    words = column.values_UW[:, 0]
    parts: Iterator[Found] = iter([(words[same], words[same])])
    if radius > 0:
        parts = chain(parts, near_words(words, radius, WORD, part))
    for one, other in parts:
        left, right = np.searchsorted(words, one), np.searchsorted(words, other)
        for pair, row, column_ in crossed(num_U[left], num_U[right]):
            places = order[row + first_U[left[pair]]], order[column_ + first_U[right[pair]]]
            keep = (left[pair] != right[pair]) | (row < column_)
            yield places[0][keep], places[1][keep]
