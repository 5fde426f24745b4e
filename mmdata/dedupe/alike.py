"""Rows that are near each other, judged: the best of those that look alike stays.

Decided here: what is near something else is an item: a hash, a vector, a text. A thing has items: a row has one, or a list of
them (views of its picture, frames of its video), and a sample has those of its rows (a document its pictures). Two things with
one item each are alike where these are. Of those with more, it counts how many of the items of both together have their
like on the other side. Things of the same items are one until the best of them is chosen: a million equal pictures cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.dedupe.groups import dropped, keepers, ranks
from mmdata.dedupe.hamming import MAX_PAIRS, collapse, near_values
from mmdata.dedupe.pairs import Pairs, expanded, in_order, num_expanded
from mmdata.errors import RunError
from mmdata.storage.digest import mix64

_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)
REASON = "near_duplicate"


def hashes_in(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of a column, (H, W) uint64, and the row of each, (H,) int64, ascending; nulls have none."""
    found, first = [_hashes_of(chunk) for chunk in column.chunks], 0
    owners = [np.zeros(0, np.int64)]
    for chunk, (_, owner) in zip(column.chunks, found, strict=True):
        owners.append(owner + first)
        first += len(chunk)
    values = [words for words, _ in found if len(words)]
    if len({words.shape[1] for words in values}) > 1:
        raise _uneven()
    return np.concatenate(values) if values else np.zeros((0, 1), np.uint64), np.concatenate(owners)


def _hashes_of(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return those of one piece: all of them in hex may be more than one array of texts can hold."""
    if pa.types.is_list(array.type):
        owner = pc.list_parent_indices(array)
        array = array.flatten()
    else:
        owner = pa.array(np.arange(len(array)))
    there = array.is_valid()
    array, owner = array.filter(there), owner.filter(there).to_numpy().astype(np.int64)
    if pa.types.is_string(array.type):
        return _of_hex(array), owner
    return array.cast(pa.uint64()).to_numpy().reshape(-1, 1), owner


def _uneven() -> RunError:
    return RunError("not all hashes are hex digits of one length, 16 a word", hint="compare columns of `fingerprint`")


def _of_hex(array: pa.Array) -> np.ndarray:
    """Return hashes in hex, all of one length, as words, (N, W) uint64."""
    sizes = pc.unique(pc.binary_length(array)).to_pylist()
    if not sizes:
        return np.zeros((0, 1), np.uint64)
    if len(sizes) > 1 or not sizes[0] or sizes[0] % 16:
        raise _uneven()
    digits = np.frombuffer(pc.binary_join(pa.ListArray.from_arrays([0, len(array)], array), "")[0].as_buffer(), np.uint8)
    values = _HEX[digits]
    if (values > 15).any():
        raise _uneven()
    return (values[::2] << 4 | values[1::2]).view(">u8").astype(np.uint64).reshape(len(array), -1)


@dataclass(frozen=True)
class Things:
    """What is judged as one.

    of_N   (N,) int64, the thing of each row, 0..T-1      rank_N  (N,) int64, ranks of rows, see `groups.ranks`
    """

    of_N: np.ndarray
    rank_N: np.ndarray

    def best(self) -> np.ndarray:
        """Return the place of the best-ranked row of each thing, (T,) int64."""
        return _best_of(self.of_N, self.rank_N)


@dataclass(frozen=True)
class Items:
    """What is compared. Items of one value are at distance 0, and pairs are told of values.

    value_I   (I,) int64, the value of each item, 0..V-1      thing_I  (I,) int64, the thing of each item
    """

    value_I: np.ndarray
    thing_I: np.ndarray


def judge(rows: pa.Table, things: Things, items: Items, pairs: Pairs, share: float | None = None) -> pa.Table:
    """Judge things by pairs of the values of their items: all rows of a thing stay or go together, those without items stay.

    share    see `things_alike`
    returns  verdicts of the dropped rows, sorted by (`_partition`, `_row`); `value` is the distance to the keeper
    """
    best = things.best()
    rank_T = _dense(things.rank_N[best])
    if len(np.unique(items.thing_I)) < len(items.thing_I):
        items, pairs = _by_sets(items, pairs, share)
    keeper_T, distance_T = _by_values(rank_T, items, pairs)
    goes = keeper_T != np.arange(len(best))
    keeper_N = np.where(goes[things.of_N], best[keeper_T[things.of_N]], np.arange(rows.num_rows))
    return dropped(rows, keeper_N, distance_T[things.of_N], REASON)


def _by_sets(items: Items, pairs: Pairs, share: float | None) -> tuple[Items, Pairs]:
    """Return things as items of their own, whose value is their set of values, and the pairs of different sets.

    Raises RunError where too many sets have a value in common.
    """
    order = np.lexsort((items.value_I, items.thing_I))
    value, thing = items.value_I[order], items.thing_I[order]
    fresh = np.append(True, (value[1:] != value[:-1]) | (thing[1:] != thing[:-1]))
    value, thing = value[fresh], thing[fresh]
    first = np.flatnonzero(np.append(True, thing[1:] != thing[:-1]))
    # Two sums of 64 bits tell sets apart: for two to be taken for one, 10^18 others would have to be there.
    salted = [mix64(value.astype(np.uint64) * np.uint64(2) + np.uint64(salt)) for salt in (0, 1)]
    sets = collapse(np.stack([np.add.reduceat(salt, first) for salt in salted], axis=1))
    one = np.zeros(len(sets.values_UW), np.int64)
    one[sets.of_N[::-1]] = np.arange(len(first))[::-1]  # the first thing of each set stands for it
    length = np.diff(np.append(first, len(value)))
    which = np.repeat(np.arange(len(first)), length)
    chosen = np.isin(which, one)
    value_J, set_J = value[chosen], sets.of_N[which[chosen]]
    known, of_J = np.unique(value_J, return_inverse=True)
    told = _renamed(pairs, known)
    if num_expanded(told, of_J) > MAX_PAIRS:
        raise RunError(
            f"more than {MAX_PAIRS:,} pairs of pictures are alike, for many rows or samples have one in common",
            hint="drop equal pictures first, `dedupe: {by: pixels}`, or compare more strictly",
        )
    return Items(sets.of_N, thing[first]), things_alike(expanded(told, of_J), set_J, share)


def _renamed(pairs: Pairs, known: np.ndarray) -> Pairs:
    """Return the pairs of those values that are known, by their places among these."""
    both = np.isin(pairs.left_P, known) & np.isin(pairs.right_P, known)
    left, right = (np.searchsorted(known, side[both]) for side in (pairs.left_P, pairs.right_P))
    return Pairs(left, right, pairs.distance_P[both])


def _by_values(rank_T: np.ndarray, items: Items, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return the keeper of each thing and the distance to it, where things have one item at most: of each value one may stay."""
    keeper_T, distance_T = np.arange(len(rank_T)), np.zeros(len(rank_T), np.float32)
    if not len(items.value_I):
        return keeper_T, distance_T
    best_V = items.thing_I[_best_of(items.value_I, rank_T[items.thing_I])]
    keeper_V, distance_V = keepers(pairs, _dense(rank_T[best_V]))
    keeper_T[items.thing_I] = best_V[keeper_V[items.value_I]]
    distance_T[items.thing_I] = distance_V[items.value_I]
    return keeper_T, distance_T


def _best_of(group: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return the place of the best-ranked member of each group, all of which have one."""
    order = np.argsort(-rank, kind="stable")
    found = np.empty(int(group.max(initial=-1)) + 1, np.int64)
    found[group[order]] = order  # the best is written last
    return found


def hash_items(rows: pa.Table, column: str, things: Things) -> Items:
    """Return the hashes of a column as items; their values are places among those that `collapse` gives of all of them."""
    hashes, owner = hashes_in(rows.column(column))
    return Items(collapse(hashes).of_N, things.of_N[owner])


def alike_verdicts(rows: pa.Table, column: str, radius: int, rules: Sequence[str] = ()) -> pa.Table:
    """Judge all rows of a table: of rows whose hashes differ in at most `radius` bits the best-ranked stays.

    rows     `_partition`, `_row`, `sample_id`, `position`, what the rules read, and the hashes:
             uint64, hex digits (16 a word), or lists of them
    returns  verdicts of the dropped rows, sorted by (`_partition`, `_row`); `value` is the distance to the keeper in bits
    """
    pairs = near_values(collapse(hashes_in(rows.column(column))[0]).values_UW, radius)
    things = Things(np.arange(rows.num_rows), ranks(rows, rules))
    return judge(rows, things, hash_items(rows, column, things), pairs)


def things_alike(pairs: Pairs, thing_I: np.ndarray, share: float | None) -> Pairs:
    """Return the pairs of things from those of their items.

    thing_I   (I,) int64, the thing of each item
    share     of the items of both together, the like ones counted once, at least so many have their like on the other side;
              the distance is one minus this share. None: one is enough, and the distance is the least of the items'
    """
    one, other = thing_I[pairs.left_P], thing_I[pairs.right_P]
    if share is None:
        return in_order(one, other, pairs.distance_P)
    num_T = np.bincount(thing_I)
    swap = one > other
    low, high = np.where(swap, other, one), np.where(swap, one, other)
    item, beside = np.where(swap, pairs.right_P, pairs.left_P), np.where(swap, pairs.left_P, pairs.right_P)
    across = low != high
    key = (low * len(num_T) + high)[across]
    both, place = np.unique(key, return_inverse=True)
    matched = np.minimum(*(_num_different(place, side[across], len(both)) for side in (item, beside)))
    left, right = both // max(len(num_T), 1), both % max(len(num_T), 1)
    alike = matched / (num_T[left] + num_T[right] - matched)
    near = alike >= share
    return in_order(left[near], right[near], (1 - alike[near]).astype(np.float32))


def _num_different(group: np.ndarray, item: np.ndarray, num: int) -> np.ndarray:
    """Return how many different items each of `num` groups has."""
    order = np.lexsort((item, group))
    group, item = group[order], item[order]
    fresh = np.ones(len(group), bool)
    fresh[1:] = (group[1:] != group[:-1]) | (item[1:] != item[:-1])
    return np.bincount(group[fresh], minlength=num)


def _dense(rank: np.ndarray) -> np.ndarray:
    """Return ranks, all different, as 0..N-1 in the same order."""
    found = np.empty(len(rank), np.int64)
    found[np.argsort(rank)] = np.arange(len(rank))
    return found
