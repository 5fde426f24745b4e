"""Rows that are near each other, judged: the best of those that look alike stays.

Decided here: what is near something else is an item: a hash, a vector, a text. A thing has items: a row has one, or a list of
them (views of its picture, frames of its video), and a sample has those of its rows (a document its pictures). Two things with
one item each are alike where these are. Of those with more, it counts how many of the items of both together have their
like on the other side. Rows of one and the same hash make no pairs, so a million equal pictures cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.dedupe.groups import dropped, keepers, ranks
from mmdata.dedupe.hamming import collapse, near_values
from mmdata.dedupe.pairs import Pairs, expanded, in_order
from mmdata.errors import PartitionError

_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
REASON = "near_duplicate"


def hashes_in(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of a column, (H, W) uint64, and the row of each, (H,) int64, ascending; nulls have none."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
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


def _of_hex(array: pa.Array) -> np.ndarray:
    """Return hashes in hex, all of one length, as words, (N, W) uint64."""
    sizes = pc.unique(pc.binary_length(array)).to_pylist()
    if not sizes:
        return np.zeros((0, 1), np.uint64)
    digits = np.frombuffer(pc.binary_join(pa.ListArray.from_arrays([0, len(array)], array), "")[0].as_buffer(), np.uint8)
    values = _HEX[digits]
    if len(sizes) > 1 or sizes[0] % 16 or (values > 15).any():
        raise PartitionError("not all hashes are hex digits of one length, 16 a word", hint="compare columns of `fingerprint`")
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
        order = np.argsort(-self.rank_N)
        found = np.empty(int(self.of_N.max(initial=-1)) + 1, np.int64)
        found[self.of_N[order]] = order  # the best is written last
        return found

    def keepers(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Return the row that each thing's keeper is known by, (T,) int64, and the distance to it, (T,) float32."""
        best = self.best()
        keeper, distance = keepers(pairs, _dense(self.rank_N[best]))
        return best[keeper], distance


def judge_values(rows: pa.Table, of_N: np.ndarray, pairs: Pairs, rank_N: np.ndarray) -> pa.Table:
    """Judge rows by pairs of the values that they share, `of_N` (N,) int64: of each value at most one row stays."""
    keeper, distance = Things(of_N, rank_N).keepers(pairs)
    return dropped(rows, keeper[of_N], distance[of_N], REASON)


def judge_things(rows: pa.Table, things: Things, pairs: Pairs) -> pa.Table:
    """Judge rows by pairs of things: all rows of a thing stay or go together."""
    keeper, distance = things.keepers(pairs)
    goes = keeper != things.best()
    keeper_N = np.where(goes[things.of_N], keeper[things.of_N], np.arange(rows.num_rows))
    return dropped(rows, keeper_N, distance[things.of_N], REASON)


def judge_hashes(rows: pa.Table, column: str, pairs: Pairs, things: Things, share: float | None = None) -> pa.Table:
    """Judge rows by the pairs of the different hashes in a column, places among those that `collapse` gives of all of them."""
    hashes, owner = hashes_in(rows.column(column))
    of = collapse(hashes).of_N
    if len(owner) == rows.num_rows == len(things.best()) and share is None:
        return judge_values(rows, of, pairs, things.rank_N)
    return judge_things(rows, things, things_alike(expanded(pairs, of), things.of_N[owner], share))


def alike_verdicts(rows: pa.Table, column: str, radius: int, rules: Sequence[str] = ()) -> pa.Table:
    """Judge all rows of a table: of rows whose hashes differ in at most `radius` bits the best-ranked stays.

    rows     `_partition`, `_row`, `sample_id`, `position`, what the rules read, and the hashes:
             uint64, hex digits (16 a word), or lists of them
    returns  verdicts of the dropped rows, sorted by (`_partition`, `_row`); `value` is the distance to the keeper in bits
    """
    pairs = near_values(collapse(hashes_in(rows.column(column))[0]).values_UW, radius)
    return judge_hashes(rows, column, pairs, Things(np.arange(rows.num_rows), ranks(rows, rules)))


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
