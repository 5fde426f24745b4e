"""All near pairs between two sets of hashes, exactly: one set is held and arranged, the other streams past it.

Decided here: blocks of bits tell which held hashes an asked one must be compared with, as in `blocks`. For each choice of
blocks the held hashes are moved and sorted once; a bitmap of their top bits lets most of the asked ones go without a search. The
asked ones are never sorted by choice and never held: a past of any size is looked at in chunks of its memory-mapped
files. Hashes are met by their values: a million equal ones on both sides are one until somebody asks for all pairs.
Digests of 128 bits are hashes of two words and radius 0: what shares a word and not the digest does not meet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from mmdata.dedupe.blocks import BRUTE_NS, CANDIDATE_NS, WHOLE, WORD, Move, Part, blocks_of, mean_agreeing
from mmdata.dedupe.hamming import MAX_PAIRS, collapse
from mmdata.dedupe.met import Met, met_of
from mmdata.dedupe.pairs import crossed
from mmdata.errors import RunError

CHUNK = 1 << 22  # asked hashes that are looked at together
MEMORY_MIB = 1024
_TABLE_BITS = 24  # of the bitmap of top bits
_ENTRY_BYTES = 16  # of a held hash in one choice of blocks: its word and its place
_MANY = 1 << 16  # held hashes beyond which those asked for are sorted before they are looked up
_IN_CACHE = 1 << 15  # asked hashes that are moved together
_SAMPLE = 256
_AT_ONCE = 1 << 20  # comparisons in memory at once
# Nanoseconds, measured with numpy 2 on one core.
_SORT_NS, _ASK_NS, _FIND_NS, _CHOICE_NS = 80.0, 20.0, 200.0, 120_000.0


@dataclass(frozen=True)
class Asking:
    """How the held hashes will be asked, by which the fastest way is chosen: how many in all, and how many at a time."""

    num: int
    at_once: int = CHUNK


@dataclass(frozen=True)
class _Lookup:
    """Held hashes by some bits of one of their words.

    word   which word       share  the radius within it       move  the chosen bits on top; null: the word itself
    """

    word: int
    share: int
    move: Move | None

    @property
    def low(self) -> int:
        return 0 if self.move is None else self.move.low

    def key(self, values: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(values[:, self.word])
        return words if self.move is None else self.move.there(words)


@dataclass(frozen=True)
class _Table:
    """A lookup with the held hashes in its order; `known` says of the top bits of a key whether any held one has them."""

    lookup: _Lookup
    keys_U: np.ndarray
    place_U: np.ndarray
    known: np.ndarray

    def candidates(self, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield places of held and asked ones that agree in the bits of the lookup, some at a time."""
        low = (1 << self.lookup.low) - 1
        keys, at = self._known(asked)
        if not len(at):
            return
        if len(self.keys_U) > _MANY:
            order = np.argsort(keys)
            keys, at = keys[order], at[order]
        first = np.searchsorted(self.keys_U, keys & ~np.uint64(low))
        num = np.searchsorted(self.keys_U, keys | np.uint64(low), side="right") - first
        there = np.flatnonzero(num)
        at, first, num = at[there], first[there], num[there]
        for pair, member, _ in crossed(num, np.ones(len(num), np.int64)):
            yield self.place_U[first[pair] + member], at[pair]

    def _known(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys, and places, of those asked whose top bits some held one has."""
        shift, keys, places = np.uint64(WORD + 1 - len(self.known).bit_length()), [], []
        for start in range(0, len(asked), _IN_CACHE):
            key = self.lookup.key(asked[start : start + _IN_CACHE])
            at = np.flatnonzero(self.known[key >> shift])
            keys.append(key[at])
            places.append(at + start)
        return np.concatenate(keys), np.concatenate(places)


def _table(lookup: _Lookup, values: np.ndarray) -> _Table:
    keys = lookup.key(values)
    order = np.argsort(keys)
    keys = keys[order]
    # No finer than the chosen bits, or a neighbour that differs below them would not be seen.
    bits = min(WORD - lookup.low, _TABLE_BITS, max(8, 4 + len(values).bit_length()))
    known = np.zeros(1 << bits, bool)
    known[keys >> np.uint64(WORD - bits)] = True
    return _Table(lookup, keys, order, known)


@dataclass(frozen=True)
class HashIndex:
    """Different hashes, (U, W) uint64, that others are compared with; `tables` null stands for brute force."""

    values_UW: np.ndarray
    radius: int
    tables: Sequence[_Table] | None = None

    def near(self, asked: np.ndarray) -> Met:
        """Return all pairs of held and asked hashes, (V, W) uint64, within the radius; each pair once.

        Raises RunError where there are more than `hamming.MAX_PAIRS`.
        """
        parts, total = [], 0
        if not len(asked):
            return met_of([])
        for held, other, distance in self._brute(asked) if self.tables is None else self._met(self.tables, asked):
            parts.append(Met(held, other, distance))
            total += len(held)
            if total > MAX_PAIRS:
                raise RunError(f"more than {MAX_PAIRS:,} hashes are within {self.radius} bits", hint="take a smaller radius")
        return met_of(parts)

    def _met(self, tables: Sequence[_Table], asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        shares = _shares(self.radius, self.values_UW.shape[1])
        for table in tables:
            for held, other in table.candidates(asked):
                differing = self.values_UW[held] ^ asked[other]
                distance = np.bitwise_count(differing).sum(axis=1, dtype=np.int64)
                near = np.flatnonzero(distance <= self.radius)
                near = near[_fresh(table.lookup, differing[near], shares)]
                if len(near):
                    yield held[near], other[near], distance[near].astype(np.float32)

    def _brute(self, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        step = max(1, _AT_ONCE // max(len(self.values_UW), 1))
        for start in range(0, len(asked), step):
            total = np.zeros((len(asked[start : start + step]), len(self.values_UW)), np.uint16)
            for word in range(asked.shape[1]):
                total += np.bitwise_count(asked[start : start + step, word, None] ^ self.values_UW[None, :, word])
            other, held = np.nonzero(total <= self.radius)
            yield held, other + start, total[other, held].astype(np.float32)


def _fresh(lookup: _Lookup, differing: np.ndarray, shares: Sequence[int]) -> np.ndarray:
    """Say of near pairs, by the bits in which they differ, whether no lookup before this one finds them, (P,) bool."""
    fresh = np.ones(len(differing), bool)
    for before in range(lookup.word):
        if shares[before] >= 0:
            fresh &= np.bitwise_count(differing[:, before]).astype(np.int64) > shares[before]
    if lookup.move is not None:
        fresh &= np.bitwise_count(differing[:, lookup.word]).astype(np.int64) <= lookup.share
        fresh &= lookup.move.first(differing[:, lookup.word])
    return fresh


def hash_indexes(values_UW: np.ndarray, radius: int, asking: Asking, memory_mib: int = MEMORY_MIB) -> Iterator[HashIndex]:
    """Yield indexes that find together, each pair once, what is within the radius of different hashes, (U, W) uint64.

    One does where all choices of blocks fit into `memory_mib`; with more of them the asked hashes come by once for each.
    """
    plan = _lookups(values_UW, radius, asking)
    if plan is None:
        yield HashIndex(values_UW, radius)
        return
    at_once = max(1, (memory_mib << 20) // max(1, len(values_UW) * _ENTRY_BYTES))
    for start in range(0, len(plan), at_once):
        yield HashIndex(values_UW, radius, [_table(lookup, values_UW) for lookup in plan[start : start + at_once]])


def _shares(radius: int, num: int) -> list[int]:
    """Return the radius of each word: r_i + 1 add up to radius + 1, so some word is within its own; -1: not looked at."""
    each, more = divmod(radius + 1, num)
    return [each + (word < more) - 1 for word in range(num)]


def _lookups(values: np.ndarray, radius: int, asking: Asking) -> list[_Lookup] | None:
    """Return the lookups of the least estimated cost, or null where brute force costs less."""
    total, found = 0.0, []
    for word, share in enumerate(_shares(radius, values.shape[1])):
        if share == 0:
            total += _cost(1, WORD, 0.0, len(values), asking)
            found.append(_Lookup(word, share, None))
        elif share > 0:
            cost, k = min(_costs(values[:, word], share, asking))
            blocks = blocks_of(WORD, share + k)
            total += cost
            found += [_Lookup(word, share, Move(WORD, blocks, chosen)) for chosen in combinations(range(share + k), k)]
    brute = len(values) * asking.num * BRUTE_NS * values.shape[1] + _calls(asking) * _CHOICE_NS
    return None if brute <= total else found


def _costs(words: np.ndarray, share: int, asking: Asking) -> Iterator[tuple[float, int]]:
    """Yield nanoseconds and how many blocks are to agree."""
    sample = words[:: max(1, len(words) // _SAMPLE)][:_SAMPLE]
    differing = (sample[:, None] ^ sample[None])[np.triu_indices(len(sample), 1)]
    for k in range(1, min(4, WORD - share) + 1):
        num, bits = comb(share + k, k), k * WORD / (share + k)
        agreeing = mean_agreeing(differing, k, blocks_of(WORD, share + k)) if len(differing) else 0.0
        yield _cost(num, bits, agreeing, len(words), asking), k


def _cost(num: int, bits: float, agreeing: float, num_held: int, asking: Asking) -> float:
    """Return nanoseconds of `num` lookups by so many bits, if a pair agrees in `agreeing` of them on average."""
    survive = min(1.0, num_held * 2.0 ** -min(bits, _TABLE_BITS))
    asked = num * (asking.num * (_ASK_NS + survive * _FIND_NS) + _calls(asking) * _CHOICE_NS)
    candidates = num_held * asking.num * max(num * 2.0**-bits, agreeing)
    return float(num * num_held * _SORT_NS + asked + candidates * CANDIDATE_NS)


def _calls(asking: Asking) -> float:
    return max(1.0, asking.num / asking.at_once)


def cross_hashes(new: np.ndarray, past: np.ndarray, radius: int, *, chunk: int = CHUNK, part: Part = WHOLE) -> Met:
    """Return all pairs of a new hash (held) and one of the past (asked) that differ in at most `radius` bits, in order.

    new, past  (N,) or (N, W) uint64; the past, memory-mapped, is read in chunks and never held
    part       (number, of how many): only these chunks of the past
    raises     RunError where there are more than `hamming.MAX_PAIRS`
    """
    once, parts, total = collapse(new), [], 0
    for index in hash_indexes(once.values_UW, radius, Asking(len(past), chunk)):
        for start in range(part[0] * chunk, len(past), part[1] * chunk):
            others = collapse(np.asarray(past[start : start + chunk]))
            met = index.near(others.values_UW)
            total += int((np.bincount(once.of_N)[met.held_M] * np.bincount(others.of_N)[met.asked_M]).sum()) if len(met) else 0
            if total > MAX_PAIRS:
                raise RunError(f"more than {MAX_PAIRS:,} hashes are within {radius} bits", hint="take a smaller radius")
            parts += [Met(held, asked + start, distance) for held, asked, distance in _expanded(met, once.of_N, others.of_N)]
    found = met_of(parts)
    order = np.lexsort((found.asked_M, found.held_M))
    return Met(found.held_M[order], found.asked_M[order], found.distance_M[order])


def _expanded(met: Met, held_N: np.ndarray, asked_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the pairs of rows of pairs of values."""
    sides = [_members(held_N), _members(asked_N)]
    if not len(met):
        return
    nums = [num[places] for (_, num, _), places in zip(sides, (met.held_M, met.asked_M), strict=True)]
    for pair, one, other in crossed(*nums):
        (order, _, first), (order_, _, first_) = sides
        yield order[first[met.held_M[pair]] + one], order_[first_[met.asked_M[pair]] + other], met.distance_M[pair]


def _members(of_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num = np.bincount(of_N)
    return np.argsort(of_N, kind="stable"), num, np.cumsum(num) - num
