"""Rows whose hashes are within a Hamming radius, judged: the best of those that look alike stays.

Decided here: equal hashes are one. Each different hash stands for the best-ranked of its rows, so a million equal pictures
make no pairs, and what is held is the hashes and the pairs of different ones. A row with several hashes (views of its
picture) is near another where any of theirs are.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.dedupe.groups import dropped, keepers, ranks
from mmdata.dedupe.hamming import collapse, near_hashes, near_values
from mmdata.dedupe.pairs import Pairs, in_order
from mmdata.errors import PartitionError

_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def hashes_in(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of a column without nulls, (H, W) uint64, and the row of each, (H,) int64, ascending."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    owner = np.arange(len(array))
    if pa.types.is_list(array.type):
        owner = np.repeat(owner, array.value_lengths().to_numpy())
        array = array.flatten()
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


def alike_verdicts(table: pa.Table, column: str, radius: int, rules: Sequence[str]) -> pa.Table:
    """Judge all rows of a table: of rows whose hashes differ in at most `radius` bits the best-ranked stays.

    table    `_partition`, `_row`, `sample_id`, `position`, what the rules read, and the hashes, none of them null:
             uint64, hex digits (16 a word), or lists of them
    returns  verdicts of the dropped rows, sorted by (`_partition`, `_row`); `value` is the distance to the keeper in bits
    """
    if not table.num_rows:
        return dropped(table, np.zeros(0, np.int64), np.zeros(0, np.float32), "near_duplicate")
    rank = ranks(table, rules)
    hashes, owner = hashes_in(table.column(column))
    if len(owner) != table.num_rows or pa.types.is_list(table.column(column).type):
        keeper, distance = keepers(_by_owner(near_hashes(hashes, radius), owner), rank)
        return dropped(table, keeper, distance, "near_duplicate")
    once = collapse(hashes)
    order = np.argsort(-rank)  # the best is written last
    best_U = np.empty(len(once.values_UW), np.int64)
    best_U[once.of_N[order]] = order
    keeper_U, distance_U = keepers(near_values(once.values_UW, radius), _dense(rank[best_U]))
    return dropped(table, best_U[keeper_U][once.of_N], distance_U[once.of_N], "near_duplicate")


def _dense(rank: np.ndarray) -> np.ndarray:
    """Return ranks, all different, as 0..N-1 in the same order."""
    found = np.empty(len(rank), np.int64)
    found[np.argsort(rank)] = np.arange(len(rank))
    return found


def _by_owner(pairs: Pairs, owner: np.ndarray) -> Pairs:
    return in_order(owner[pairs.left_P], owner[pairs.right_P], pairs.distance_P)
