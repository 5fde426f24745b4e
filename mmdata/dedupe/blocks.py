"""All pairs of words of at most 64 bits within a Hamming radius, exactly.

Decided here: nothing is approximate. Two words of `bits` bits that differ in at most r of them agree in at least k of any
r + k blocks (pigeonhole; Manku, Jain and Das Sarma 2007; Norouzi, Punjani and Fleet 2012). For each choice of k blocks these
bits are moved to the top and the words themselves are sorted, without an index: neighbours at growing offsets are compared
as long as their top bits agree. k is the one of least estimated cost. Where many words agree in the chosen bits (flat
pictures), that bucket is solved anew by its other bits. Each pair is reported by the first choice of blocks that meets it,
so nothing is collected twice, and memory is a few words a word and what is found. Choices know nothing of each other: any
machine may take its share of them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from math import comb

import numpy as np

WORD = 64
BRUTE_NS = 1.6
CANDIDATE_NS = 30.0
# Nanoseconds, measured with numpy 2 on one core: to compare in brute force, to compare a candidate, to move and sort a word.
_SORT_NS = 30.0
_DENSE_NS = 6.0  # to compare a candidate where most words have one
_CHOICE_NS = 30_000.0  # what a choice of blocks costs whatever its size
_MAX_CHOICES = 200_000
_SAMPLE = 256  # words of which all pairs are looked at to estimate what blocks tell
_FEW = 10  # where fewer than one in so many words agree with another, these are picked
_PIECE = 1 << 15
_HEAVY = 2048  # a bucket of more words is worth solving anew
_TILE = 1 << 20  # comparisons of brute force in memory at once

Found = tuple[np.ndarray, np.ndarray]  # two words, or two places, of each pair
Part = tuple[int, int]  # which part of the work, of how many
WHOLE: Part = (0, 1)


def near_words(words: np.ndarray, radius: int, bits: int, part: Part = WHOLE) -> Iterator[Found]:
    """Yield a part of all pairs within the radius of words, ascending and each once, of which only the lowest `bits` are used.

    Fewer bits than a word has: these are those of a heavy bucket. A heavy bucket of such a one is compared by brute force, as
    choices of choices of blocks grow without bound.
    """
    k = best_choice(words, radius, bits).k
    if k == 0:
        for left, right in brute(words[:, None], radius, part):
            yield words[left], words[right]
        return
    blocks = blocks_of(bits, radius + k)
    moves = (Move(bits, blocks, chosen) for chosen in islice(combinations(range(len(blocks)), k), part[0], None, part[1]))
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
class Choice:
    """How many blocks are to agree, 0 for brute force, and the nanoseconds that it is expected to take."""

    k: int
    cost: float


def best_choice(words: np.ndarray, radius: int, bits: int) -> Choice:
    """Return the number of blocks of the least estimated cost.

    How many candidates there will be is estimated twice, for random bits and by all pairs of a sample, and the larger counts:
    where hashes are so alike that blocks tell nothing, brute force is left.
    """
    pairs = len(words) ** 2 / 2
    best = Choice(0, pairs * BRUTE_NS)
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
        meeting = pairs * max(by_chance, mean_agreeing(differing, k, blocks_of(bits, radius + k)))
        many = meeting * _FEW > choices * len(words)
        cost = choices * (len(words) * _SORT_NS + _CHOICE_NS) + meeting * (_DENSE_NS if many else CANDIDATE_NS)
        if cost < best.cost:
            best = Choice(k, cost)
    return best


def mean_agreeing(differing: np.ndarray, k: int, blocks: Sequence[tuple[int, int]]) -> float:
    """Return in how many choices of k blocks a pair agrees, on average over pairs that differ in these bits."""
    agreeing = np.zeros(len(differing), np.int64)
    for start, width in blocks:
        agreeing += (differing & np.uint64(((1 << width) - 1) << start)) == 0
    numbers = np.bincount(agreeing, minlength=len(blocks) + 1)
    return sum(int(number) * comb(agree, k) for agree, number in enumerate(numbers)) / max(len(differing), 1)


def blocks_of(bits: int, num: int) -> list[tuple[int, int]]:
    """Return where each of `num` blocks starts, and its width, widths as equal as can be."""
    width, wider = divmod(bits, num)
    widths = [width + (place < wider) for place in range(num)]
    return [(sum(widths[:place]), width) for place, width in enumerate(widths)]


@dataclass(frozen=True)
class Move:
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
        for start in range(0, len(words), _PIECE):
            some, to = words[start : start + _PIECE], out[start : start + _PIECE]
            for mask, by in self._runs:
                to |= _shifted(some & np.uint64(mask), by)
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


def _all_agreeing(words: np.ndarray, radius: int, move: Move) -> list[Found]:
    return list(_agreeing(words, radius, move))


def _agreeing(words: np.ndarray, radius: int, move: Move) -> Iterator[Found]:
    """Yield the pairs within the radius that agree in the chosen blocks, unless an earlier choice meets them."""
    moved = move.there(words)
    moved.sort()
    limit = np.uint64(1 << move.low)
    at = np.flatnonzero((moved[1:] ^ moved[:-1]) < limit)
    heavy = _heavy(at)
    for start, stop in heavy:
        bucket, top = moved[start:stop] & (limit - np.uint64(1)), moved[start] & ~(limit - np.uint64(1))
        if move.bits == WORD:
            found = near_words(bucket, radius, move.low)
        else:
            found = ((bucket[left], bucket[right]) for left, right in brute(bucket[:, None], radius))
        for one, other in found:
            yield from _told(top | one, top | other, move)
    if heavy:
        at = at[~_inside(at, heavy)]
    for near, step in _near_at(moved, at, (limit, radius), picked=bool(heavy)):
        yield from _told(moved[near], moved[near + step], move)


def _near_at(
    moved: np.ndarray, at: np.ndarray, within: tuple[np.uint64, int], *, picked: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the places of words that are near the one so many steps further on; `at` are those that agree with the next.

    picked   no others may be looked at, however many they are
    """
    (limit, radius), step = within, 1
    while not picked and len(at) * _FEW > len(moved):
        near, num = _all_at(moved, step, limit, radius)
        yield near, step
        step += 1
        if num * _FEW <= len(moved):
            at = np.flatnonzero((moved[step:] ^ moved[:-step]) < limit)
    differing = moved[at] ^ moved[at + step]
    while len(at):
        yield at[np.bitwise_count(differing) <= radius], step
        step += 1
        at = at[at + step < len(moved)]
        differing = moved[at] ^ moved[at + step]
        same = differing < limit
        at, differing = at[same], differing[same]


def _all_at(moved: np.ndarray, step: int, limit: np.uint64, radius: int) -> tuple[np.ndarray, int]:
    """Return the places of all words that are near the one `step` further on, and how many agree with it in the top bits.

    Most do: words are then compared as they lie, in pieces that stay in the cache, for a fifth of what it takes to pick them.
    """
    found, num, last = [np.zeros(0, np.int64)], 0, len(moved) - step
    for start in range(0, last, _PIECE):
        stop = min(start + _PIECE, last)
        differing = moved[start:stop] ^ moved[start + step : stop + step]
        same = differing < limit
        num += int(np.count_nonzero(same))
        same &= np.bitwise_count(differing) <= radius
        if same.any():
            found.append(np.flatnonzero(same) + start)
    return np.concatenate(found), num


def _told(one: np.ndarray, other: np.ndarray, move: Move) -> Iterator[Found]:
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


def brute(values: np.ndarray, radius: int, part: Part = WHOLE) -> Iterator[Found]:
    """Yield places of a part of all pairs within the radius of (N, W) hashes: those with nearly as many set bits are compared."""
    weight = np.zeros(len(values), np.int64)
    for word in range(values.shape[1]):
        weight += np.bitwise_count(values[:, word])
    order = np.argsort(weight, kind="stable")
    weight, values = weight[order], values[order]
    for start in range(256 * part[0], len(values), 256 * part[1]):
        stop = min(start + 256, len(values))
        last = int(np.searchsorted(weight, weight[stop - 1] + radius, side="right"))
        width = max(1, _TILE // (stop - start))
        for first in range(start, last, width):
            row, column = np.nonzero(_tile(values[start:stop], values[first : min(first + width, last)]) <= radius)
            above = column + first > row + start
            if above.any():
                yield order[row[above] + start], order[column[above] + first]


def _tile(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.bitwise_count(rows[:, 0, None] ^ columns[None, :, 0])
    for word in range(1, rows.shape[1]):
        # 255 stands for all larger distances: radii end far below.
        more = np.bitwise_count(rows[:, word, None] ^ columns[None, :, word])
        total = np.minimum(total, np.uint8(255 - WORD)) + more
    return total
