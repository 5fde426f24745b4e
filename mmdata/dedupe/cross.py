"""All near pairs between two sets of hashes or vectors, exactly: one set is held and arranged, the other streams past it.

Decided here: blocks of bits tell which held hashes an asked one must be compared with, as in `blocks`. For each choice of
blocks the held hashes are moved and sorted once; a bitmap of their top bits lets most of the asked ones go without a search. The
asked ones are never sorted by choice and never held: a past of any size is looked at in chunks of its memory-mapped
files. Hashes are met by their values: a million equal ones on both sides are one until somebody asks for all pairs.
Digests of 128 bits are hashes of two words and radius 0: what shares a word and not the digest does not meet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import comb
from typing import Any, Protocol

import numpy as np

from mmdata.dedupe.blocks import BRUTE_NS, CANDIDATE_NS, WHOLE, WORD, Move, Part, blocks_of, mean_agreeing
from mmdata.dedupe.cosine import Screen, Unit, best_screen, check_threshold
from mmdata.dedupe.hamming import MAX_PAIRS, collapse
from mmdata.dedupe.lines import Lines
from mmdata.dedupe.pairs import crossed
from mmdata.errors import PartitionError

CHUNK = 1 << 22  # asked hashes that are looked at together
MEMORY_MIB = 1024
_TABLE_BITS = 24  # of the bitmap of top bits
_ENTRY_BYTES = 16  # of a held hash in one choice of blocks: its word and its place
_MANY = 1 << 16  # held hashes beyond which those asked for are sorted before they are looked up
_IN_CACHE = 1 << 15  # asked hashes that are moved together
_SAMPLE = 256
_ROWS = 8192  # vectors that are looked at together
_AT_ONCE = 1 << 20  # comparisons in memory at once
# Nanoseconds, measured with numpy 2 on one core.
_SORT_NS, _ASK_NS, _FIND_NS, _CHOICE_NS = 80.0, 20.0, 200.0, 120_000.0


@dataclass(frozen=True)
class Met:
    """What is near each other, in any order: places of held and asked ones, (M,) int64, and distances, (M,) float32."""

    held_M: np.ndarray
    asked_M: np.ndarray
    distance_M: np.ndarray

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.held_M)


def met_of(parts: Sequence[Met]) -> Met:
    """Return several as one."""
    none = Met(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    held, asked, distance = zip(*((part.held_M, part.asked_M, part.distance_M) for part in (none, *parts)), strict=True)
    return Met(np.concatenate(held), np.concatenate(asked), np.concatenate(distance))


class Index(Protocol):
    """What is held, ready to be asked."""

    def near(self, asked: Any) -> Met:  # noqa: ANN401 - words or vectors
        """Return what is near: places among the held and among the asked."""


# Hashes.


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

        Raises PartitionError where there are more than `hamming.MAX_PAIRS`.
        """
        parts, total = [], 0
        if not len(asked):
            return met_of([])
        for held, other, distance in self._brute(asked) if self.tables is None else self._met(self.tables, asked):
            parts.append(Met(held, other, distance))
            total += len(held)
            if total > MAX_PAIRS:
                raise PartitionError(
                    f"more than {MAX_PAIRS:,} hashes are within {self.radius} bits", hint="take a smaller radius"
                )
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
    raises     PartitionError where there are more than `hamming.MAX_PAIRS`
    """
    once, parts, total = collapse(new), [], 0
    for index in hash_indexes(once.values_UW, radius, Asking(len(past), chunk)):
        for start in range(part[0] * chunk, len(past), part[1] * chunk):
            others = collapse(np.asarray(past[start : start + chunk]))
            met = index.near(others.values_UW)
            total += int((np.bincount(once.of_N)[met.held_M] * np.bincount(others.of_N)[met.asked_M]).sum()) if len(met) else 0
            if total > MAX_PAIRS:
                raise PartitionError(f"more than {MAX_PAIRS:,} hashes are within {radius} bits", hint="take a smaller radius")
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


# Vectors.


class VectorIndex:
    """Vectors that others are compared with by their cosine; products only screen, see `cosine`."""

    def __init__(self, vectors: np.ndarray | Lines, cosine: float, screen: Screen | None = None, memory_mib: int = 512) -> None:
        """Take (N, D) float16 or float32 vectors and a cosine in (0, 1]."""
        check_threshold(cosine)
        self._unit, self._screen = Unit(vectors, memory_mib), screen or best_screen()
        self._bound, self._least = cosine - self._screen.margin(self._unit.dim), min(cosine, 1 - 1e-12)
        self._loaded: dict[int, Any] = {}
        self._keeps = len(self._unit) * self._unit.dim * 4 <= memory_mib << 20

    def near(self, asked: np.ndarray | Lines) -> Met:
        """Return all pairs of at least the cosine; the distance is one minus it. A tile of candidates is held at a time."""
        other, parts = Unit(asked), []
        for top in range(0, len(other), self._screen.tall):
            left = self._screen.load(other.rows(slice(top, top + self._screen.tall)))
            for first in range(0, len(self._unit), self._screen.wide):
                places, held = self._screen.hits(left, self._tile(first), self._bound)
                held, places = held + first, places + top
                cosine = self._unit.cosines(held, places, other)
                near = cosine >= self._least
                parts.append(Met(held[near], places[near], np.maximum(1 - cosine[near], 0).astype(np.float32)))
        return met_of(parts)

    def _tile(self, first: int) -> Any:  # noqa: ANN401 - of the screen's own kind
        load = partial(self._screen.load, self._unit.rows(slice(first, first + self._screen.wide)))
        if not self._keeps:
            return load()
        if first not in self._loaded:
            self._loaded[first] = load()
        return self._loaded[first]


class Picked(Lines):
    """Some of the vectors of others, (n, D), read where they are asked for."""

    def __init__(self, vectors: np.ndarray | Lines, places: np.ndarray) -> None:
        """Take vectors, and places of them."""
        self._of, self._places = vectors, places

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return len(self._places), int(self._of.shape[1])

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self._places) * self.shape[1]

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Return some of them, (m, D)."""
        return np.asarray(self._of[self._places[which]])


def distinct(vectors: np.ndarray | Lines) -> tuple[np.ndarray | Lines, np.ndarray]:
    """Return (N, D) float16 vectors, each once, and which of them each is, (N,) int64.

    A picture that many sites show in place of another has one embedding, and would make pairs without end.
    """
    hash_N = np.zeros(len(vectors), np.uint64)
    weights = np.random.default_rng(0).integers(0, 1 << 64, vectors.shape[1], np.uint64, endpoint=False) | np.uint64(1)
    for start in range(0, len(vectors), _ROWS):
        hash_N[start : start + _ROWS] = (_bits(vectors, slice(start, start + _ROWS)) * weights).sum(axis=1, dtype=np.uint64)
    once = collapse(hash_N)
    first_U = first_of(once.of_N, len(once.values_UW))
    # Of vectors with one hash those that differ from the first stay by themselves.
    copies = np.flatnonzero(first_U[once.of_N] != np.arange(len(vectors)))
    true = np.ones(len(copies), bool)
    for start in range(0, len(copies), _ROWS):
        some = copies[start : start + _ROWS]
        true[start : start + _ROWS] = (_bits(vectors, some) == _bits(vectors, first_U[once.of_N[some]])).all(axis=1)
    of_N, others = once.of_N.copy(), copies[~true]
    of_N[others] = len(first_U) + np.arange(len(others))
    if len(copies) == len(others):
        return vectors, np.arange(len(vectors))
    return Picked(vectors, np.concatenate([first_U, others])), of_N


def _bits(vectors: np.ndarray | Lines, which: slice | np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors[which], np.float16).view(np.uint16).astype(np.uint64)


# What is nearest to each.


@dataclass
class Nearest:
    """Of all that is met the nearest, then the smallest number of its set, then the smallest place: in whatever order it comes.

    distance_N  (N,) float32, infinite where nothing was met    of_N  (N,) int32, the set    place_N  (N,) int64, the place in it
    """

    num: int
    distance_N: np.ndarray = field(init=False)
    of_N: np.ndarray = field(init=False)
    place_N: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.distance_N = np.full(self.num, np.inf, np.float32)
        self.of_N = np.full(self.num, -1, np.int32)
        self.place_N = np.full(self.num, -1, np.int64)

    def add(self, at_M: np.ndarray, of: np.ndarray | int, place_M: np.ndarray, distance_M: np.ndarray) -> None:
        """Take what was met: by whom, in which set, at which place, how far."""
        of_M = np.broadcast_to(np.asarray(of, np.int32), len(at_M))
        order = np.lexsort((place_M, of_M, distance_M, at_M))
        at, of_M, place, distance = at_M[order], of_M[order], place_M[order], distance_M[order].astype(np.float32)
        first = np.ones(len(at), bool)
        first[1:] = at[1:] != at[:-1]
        at, of_M, place, distance = at[first], of_M[first], place[first], distance[first]
        nearer = distance < self.distance_N[at]
        same = distance == self.distance_N[at]
        nearer |= same & (of_M < self.of_N[at])
        nearer |= same & (of_M == self.of_N[at]) & (place < self.place_N[at])
        self.distance_N[at[nearer]], self.of_N[at[nearer]], self.place_N[at[nearer]] = (
            distance[nearer],
            of_M[nearer],
            place[nearer],
        )

    @property
    def met(self) -> np.ndarray:
        """The places of those that met something, (M,) int64."""
        return np.flatnonzero(self.of_N >= 0)


def first_of(of_N: np.ndarray, num: int) -> np.ndarray:
    """Return the first place of each value, (U,) int64, by the value of each place."""
    found = np.empty(num, np.int64)
    found[of_N[::-1]] = np.arange(len(of_N))[::-1]
    return found
