"""All pairs of 64-bit or longer hashes within a Hamming radius, exactly.

Decided here: nothing is approximate. Two hashes of `bits` bits that differ in at most r of them agree in at least k of any
r + k blocks (pigeonhole; Manku, Jain and Das Sarma 2007; Norouzi, Punjani and Fleet 2012). For each choice of k blocks these
bits are moved to the top and the words themselves are sorted, without an index: neighbours at growing offsets are compared
as long as their top bits agree. k is the one of least estimated cost. Where many hashes agree in the chosen bits (flat
pictures), that bucket is solved anew by its other bits. Each pair is reported by the first choice of blocks that meets it,
so nothing is collected twice, and memory is a few words a hash and what is found.

Longer hashes are cut into 64-bit words: at distance R, some word i is within r_i, where the r_i + 1 add up to R + 1.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, islice
from math import comb

import numpy as np

from mmdata.dedupe.pairs import Pairs, in_order
from mmdata.errors import PartitionError

WORD = 64
MAX_PAIRS = 200_000_000  # beyond it the answer would not fit; a radius that gives so many says nothing
# Nanoseconds, measured with numpy 2 on one core: to move and sort a word, to compare a candidate, to compare in brute force.
_SORT_NS, _CANDIDATE_NS, _BRUTE_NS = 30.0, 30.0, 1.6
_CHOICE_NS = 30_000.0  # what a choice of blocks costs whatever its size
_MAX_CHOICES = 200_000
_SAMPLE = 256  # hashes of which all pairs are looked at to estimate what blocks tell
_HEAVY = 2048  # a bucket of more hashes is worth solving anew
_TILE = 1 << 20  # comparisons of brute force in memory at once

_Found = tuple[np.ndarray, np.ndarray]  # two words, or two places, of each pair


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
    raises    PartitionError where there are more than `max_pairs`: the equal ones count too, see `near_values`
    """
    once = collapse(hashes)
    found = near_values(once.values_UW, radius, max_pairs)
    order = np.argsort(once.of_N, kind="stable")
    num_U = np.bincount(once.of_N, minlength=len(once.values_UW))
    first_U = np.cumsum(num_U) - num_U
    total = int((num_U[found.left_P] * num_U[found.right_P]).sum() + (num_U * (num_U - 1) // 2).sum())
    _refuse_many(total, max_pairs, radius)
    many = np.flatnonzero(num_U > 1)
    left, right = np.concatenate([found.left_P, many]), np.concatenate([found.right_P, many])
    distance = np.concatenate([found.distance_P, np.zeros(len(many), np.float32)])
    none: list[np.ndarray] = [np.zeros(0, np.int64)] * 2 + [np.zeros(0, np.float32)]
    parts = [none]
    for pair, one, other in _crossed(num_U[left], num_U[right]):
        keep = (left[pair] != right[pair]) | (one < other)
        places = order[one + first_U[left[pair]]], order[other + first_U[right[pair]]]
        parts.append([places[0][keep], places[1][keep], distance[pair[keep]]])
    return in_order(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def near_values(values_UW: np.ndarray, radius: int, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Return all pairs of different hashes, as `collapse` gives them, that differ in at most `radius` bits.

    raises    PartitionError where there are more than `max_pairs`
    """
    values = _words(values_UW)
    if radius <= 0 or len(values) < 2:
        return in_order(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    if values.shape[1] == 1:
        words = values[:, 0]
        one, other = _gathered(_near_words(words, radius, WORD), max_pairs, radius)
        left, right = np.searchsorted(words, one), np.searchsorted(words, other)
    else:
        left, right = _gathered(_near_long(values, radius), max_pairs, radius)
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


def _gathered(parts: Iterator[_Found], max_pairs: int, radius: int) -> _Found:
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
        raise PartitionError(
            f"more than {max_pairs:,} pairs of hashes are within {radius} bits of each other",
            hint="take a smaller radius or a longer hash, or drop pictures without detail first",
        )


# One word a hash.


def _near_words(words: np.ndarray, radius: int, bits: int) -> Iterator[_Found]:
    """Yield all pairs within the radius of words, ascending and each once, of which only the lowest `bits` are used.

    Fewer bits than a word has: these are those of a heavy bucket. A heavy bucket of such a one is compared by brute force, as
    choices of choices of blocks grow without bound.
    """
    k = _best(words, radius, bits).k
    if k == 0:
        for left, right in _brute(words[:, None], radius):
            yield words[left], words[right]
        return
    blocks = _blocks(bits, radius + k)
    moves = (_Move(bits, blocks, chosen) for chosen in combinations(range(len(blocks)), k))
    if len(words) < 100_000:
        for move in moves:
            yield from _agreeing(words, radius, move)
        return
    # numpy lets go of the interpreter: two choices of blocks at a time, taken in their order.
    with ThreadPoolExecutor(2) as pool:
        ahead = deque(pool.submit(_all_agreeing, words, radius, move) for move in islice(moves, 2))
        while ahead:
            yield from ahead.popleft().result()
            ahead.extend(pool.submit(_all_agreeing, words, radius, move) for move in islice(moves, 1))


@dataclass(frozen=True)
class _Choice:
    """How many blocks are to agree, 0 for brute force, and the nanoseconds that it is expected to take."""

    k: int
    cost: float


def _best(words: np.ndarray, radius: int, bits: int) -> _Choice:
    """Return the number of blocks of the least estimated cost.

    How many candidates there will be is estimated twice, for random bits and by all pairs of a sample, and the larger counts:
    where hashes are so alike that blocks tell nothing, brute force is left.
    """
    pairs = len(words) ** 2 / 2
    best = _Choice(0, pairs * _BRUTE_NS)
    if best.cost < len(words) * _SORT_NS + _CHOICE_NS:
        return best
    sample = words[:: max(1, len(words) // _SAMPLE)][:_SAMPLE]
    upper = np.triu_indices(len(sample), 1)
    differing = (sample[:, None] ^ sample[None])[upper]
    for k in range(1, bits - radius + 1):
        choices = comb(radius + k, k)
        if choices * (len(words) * _SORT_NS + _CHOICE_NS) > best.cost or choices > _MAX_CHOICES:
            break
        by_chance = choices * 2.0 ** (-k * bits / (radius + k))
        meeting = pairs * max(by_chance, _meeting(differing, k, _blocks(bits, radius + k)))
        cost = choices * (len(words) * _SORT_NS + _CHOICE_NS) + meeting * _CANDIDATE_NS
        if cost < best.cost:
            best = _Choice(k, cost)
    return best


def _meeting(differing: np.ndarray, k: int, blocks: Sequence[tuple[int, int]]) -> float:
    """Return in how many choices of k blocks a pair agrees, on average over pairs that differ in these bits."""
    agreeing = np.zeros(len(differing), np.int64)
    for start, width in blocks:
        agreeing += (differing & np.uint64(((1 << width) - 1) << start)) == 0
    numbers = np.bincount(agreeing, minlength=len(blocks) + 1)
    return sum(int(number) * comb(agree, k) for agree, number in enumerate(numbers)) / max(len(differing), 1)


def _blocks(bits: int, num: int) -> list[tuple[int, int]]:
    """Return where each of `num` blocks starts, and its width, widths as equal as can be."""
    width, wider = divmod(bits, num)
    widths = [width + (place < wider) for place in range(num)]
    return [(sum(widths[:place]), width) for place, width in enumerate(widths)]


@dataclass(frozen=True)
class _Move:
    """The bits of chosen blocks moved to the top of a word, the others below them, all else as it was."""

    bits: int
    blocks: Sequence[tuple[int, int]]
    chosen: tuple[int, ...]

    @property
    def low(self) -> int:
        """How many bits lie below those of the chosen blocks."""
        return self.bits - sum(self.blocks[block][1] for block in self.chosen)

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        """The bits that move together: their mask, and by how much to the left."""
        runs: list[tuple[int, int]] = []
        to = 0
        for block in (*(place for place in range(len(self.blocks)) if place not in self.chosen), *self.chosen):
            start, width = self.blocks[block]
            mask, by = ((1 << width) - 1) << start, to - start
            to += width
            if runs and runs[-1][1] == by:
                mask |= runs.pop()[0]
            runs.append((mask, by))
        return runs

    def there(self, words: np.ndarray) -> np.ndarray:
        """Return the words moved."""
        out = np.zeros_like(words)
        for mask, by in self._runs:
            out |= _shifted(words & np.uint64(mask), by)
        return out

    def back(self, words: np.ndarray) -> np.ndarray:
        """Return moved words as they were."""
        out = np.zeros_like(words)
        for mask, by in self._runs:
            out |= _shifted(words, -by) & np.uint64(mask)
        return out

    def first(self, differing: np.ndarray) -> np.ndarray:
        """Say of pairs by the bits in which they differ, not moved, whether no earlier choice of blocks meets them too."""
        fresh = np.ones(len(differing), bool)
        for block in range(self.chosen[-1]):
            if block not in self.chosen:
                start, width = self.blocks[block]
                fresh &= (differing & np.uint64(((1 << width) - 1) << start)) != 0
        return fresh


def _shifted(words: np.ndarray, by: int) -> np.ndarray:
    return words << np.uint64(by) if by >= 0 else words >> np.uint64(-by)


def _all_agreeing(words: np.ndarray, radius: int, move: _Move) -> list[_Found]:
    return list(_agreeing(words, radius, move))


def _agreeing(words: np.ndarray, radius: int, move: _Move) -> Iterator[_Found]:
    """Yield the pairs within the radius that agree in the chosen blocks, unless an earlier choice meets them."""
    moved = move.there(words)
    moved.sort()
    limit = np.uint64(1 << move.low)
    differing = moved[1:] ^ moved[:-1]
    at = np.flatnonzero(differing < limit)
    heavy = _heavy(at)
    for start, stop in heavy:
        bucket, top = moved[start:stop] & (limit - np.uint64(1)), moved[start] & ~(limit - np.uint64(1))
        if move.bits == WORD:
            found = _near_words(bucket, radius, move.low)
        else:
            found = ((bucket[left], bucket[right]) for left, right in _brute(bucket[:, None], radius))
        for one, other in found:
            yield from _told(top | one, top | other, move)
    if heavy:
        at = at[~_inside(at, heavy)]
    differing, step = differing[at], 1
    while len(at):
        near = at[np.bitwise_count(differing) <= radius]
        if len(near):
            yield from _told(moved[near], moved[near + step], move)
        step += 1
        at = at[at + step < len(moved)]
        differing = moved[at] ^ moved[at + step]
        same = differing < limit
        at, differing = at[same], differing[same]


def _told(one: np.ndarray, other: np.ndarray, move: _Move) -> Iterator[_Found]:
    one, other = move.back(one), move.back(other)
    fresh = move.first(one ^ other)
    if fresh.any():
        yield one[fresh], other[fresh]


def _heavy(at: np.ndarray) -> list[tuple[int, int]]:
    """Return the buckets of more than `_HEAVY` words by the places, ascending, that agree with the next: start and stop."""
    if len(at) < _HEAVY:
        return []
    far = at[_HEAVY - 1 :] - at[: len(at) - _HEAVY + 1] == _HEAVY - 1
    if not far.any():
        return []
    ends = np.flatnonzero(np.diff(at, append=at[-1] + 2) > 1)
    starts = np.concatenate([[0], ends[:-1] + 1])
    large = ends - starts + 1 >= _HEAVY
    return [(int(at[start]), int(at[end]) + 2) for start, end in zip(starts[large], ends[large], strict=True)]


def _inside(at: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    starts, stops = np.array(ranges).T
    inside: np.ndarray = (at < stops[np.searchsorted(starts, at, side="right") - 1]) & (at >= starts[0])
    return inside


def _brute(values: np.ndarray, radius: int) -> Iterator[_Found]:
    """Yield places of all pairs within the radius of (N, W) hashes: those whose numbers of set bits are near are compared."""
    weight = np.zeros(len(values), np.int64)
    for word in range(values.shape[1]):
        weight += np.bitwise_count(values[:, word])
    order = np.argsort(weight, kind="stable")
    weight, values = weight[order], values[order]
    start = 0
    while start < len(values):
        stop = min(start + 256, len(values))
        last = int(np.searchsorted(weight, weight[stop - 1] + radius, side="right"))
        width = max(1, _TILE // (stop - start))
        for first in range(start, last, width):
            row, column = np.nonzero(_tile(values[start:stop], values[first : min(first + width, last)]) <= radius)
            above = column + first > row + start
            if above.any():
                yield order[row[above] + start], order[column[above] + first]
        start = stop


def _tile(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.bitwise_count(rows[:, 0, None] ^ columns[None, :, 0])
    for word in range(1, rows.shape[1]):
        # 255 stands for all larger distances: radii end far below.
        more = np.bitwise_count(rows[:, word, None] ^ columns[None, :, word])
        total = np.minimum(total, np.uint8(255 - WORD)) + more
    return total


# Several words a hash.


def _near_long(values: np.ndarray, radius: int) -> Iterator[_Found]:
    """Yield places of all pairs within the radius of (N, W) hashes, each once."""
    shares = _shares(radius, values.shape[1])
    columns = [collapse(values[:, word]) if share >= 0 else None for word, share in enumerate(shares)]
    cost = sum(_word_cost(column, share) for column, share in zip(columns, shares, strict=True) if column is not None)
    if cost > len(values) ** 2 / 2 * _BRUTE_NS * values.shape[1]:
        yield from _brute(values, radius)
        return
    for word, column in enumerate(columns):
        if column is not None:
            for left, right in _near_in_word(column, shares[word]):
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
    crossing = float((num_U * (num_U - 1)).sum() / 2) * 2 * _CANDIDATE_NS
    return crossing + (_best(column.values_UW[:, 0], radius, WORD).cost if radius else 0.0)


def _near_in_word(column: Collapsed, radius: int) -> Iterator[_Found]:
    """Yield places of all pairs of hashes whose words are within the radius, some millions at a time at most."""
    order = np.argsort(column.of_N, kind="stable")
    num_U = np.bincount(column.of_N, minlength=len(column.values_UW))
    first_U = np.cumsum(num_U) - num_U
    same = np.flatnonzero(num_U > 1)
    words = column.values_UW[:, 0]
    parts: Iterator[_Found] = iter([(words[same], words[same])])
    if radius > 0:
        parts = chain(parts, _near_words(words, radius, WORD))
    for one, other in parts:
        left, right = np.searchsorted(words, one), np.searchsorted(words, other)
        for pair, row, column_ in _crossed(num_U[left], num_U[right]):
            places = order[row + first_U[left[pair]]], order[column_ + first_U[right[pair]]]
            keep = (left[pair] != right[pair]) | (row < column_)
            yield places[0][keep], places[1][keep]


def _crossed(num_one: np.ndarray, num_other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all members of one group with all of another, for pairs of groups of these sizes: pair, and member of each."""
    ends = np.cumsum(num_one * num_other)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, _TILE):
        number = np.arange(start, min(start + _TILE, total))
        pair = np.searchsorted(ends, number, side="right")
        within = number - (ends[pair] - num_one[pair] * num_other[pair])
        yield pair, within // num_other[pair], within % num_other[pair]
