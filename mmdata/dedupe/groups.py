"""From pairs of rows that are alike to verdicts: which of them stay, and which row each of the others is a copy of.

Decided here: likeness does not chain. Rows are ranked; in that order each row that is still there becomes a keeper and drops
those of its neighbours that are left. So every dropped row is a neighbour of its keeper, and every keeper was alive when it
judged: where a is near b and b near c but a is far from c, and a is the best, b goes and c stays, the keeper of a
new group. Two keepers are never neighbours, so the same again changes nothing. A dropped row names the best-ranked keeper
beside it. The order in which rows and pairs come never matters: ranks end with (sample_id, position, partition, row).

A group is a keeper and the rows that name it. A connected component, rows joined by any chain of pairs, may hold several.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mmdata.dedupe.pairs import Pairs
from mmdata.schema import PARTITION, ROW, VERDICT_FIELDS

if TYPE_CHECKING:
    import polars as pl

LENGTH = "caption_length"  # characters of `text`, where a table holds these in its place
_LOWEST = re.compile(r"lowest\((.+)\)")
_TAIL = ("sample_id", "position", PARTITION, ROW)
_ROUNDS = 64


def rule_columns(rules: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that rules of keeping read."""
    needed = {"area": ("width", "height"), LENGTH: ("text",), "earliest": ()}
    found = [name for rule in rules for name in needed.get(rule, (_column(rule),))]
    return tuple(dict.fromkeys(found))


def score_columns(rules: Sequence[str]) -> tuple[str, ...]:
    """Return those of the columns of rules that must hold numbers."""
    return tuple(name for name in rule_columns(rules) if name != "text")


def ranks(rows: pa.Table, rules: Sequence[str]) -> np.ndarray:
    """Return the place of each row in the order of keeping, (N,) int64: 0 is kept before all others.

    rules   in order; the first that tells two rows apart decides:
            `area`            larger `width` x `height` first
            `caption_length`  more characters of `text` first
            `earliest`        by the source's order
            COLUMN            higher first;  `lowest(COLUMN)` lower first
            null and NaN come last. Then by (sample_id, position, partition, row)
    """
    import polars as pl  # a worker that only downloads does not need it

    counted = LENGTH in rows.column_names
    needed = [LENGTH if counted and name == "text" else name for name in rule_columns(rules)]
    frame = pl.DataFrame(pl.from_arrow(rows.select(list(dict.fromkeys((*needed, *_TAIL))))))
    keys: list[pl.Expr] = []
    down: list[bool] = []
    for rule in rules:
        if rule == "earliest":
            keys, down = [*keys, pl.col(PARTITION), pl.col(ROW)], [*down, False, False]
        else:
            keys, down = (
                [*keys, pl.col(LENGTH) if counted and rule == LENGTH else _key(rule)],
                [*down, not _LOWEST.fullmatch(rule)],
            )
    order = frame.select(place=pl.arg_sort_by(*keys, *_TAIL, descending=[*down, *(False for _ in _TAIL)], nulls_last=True))
    found = np.empty(rows.num_rows, np.int64)
    found[order["place"].to_numpy()] = np.arange(rows.num_rows)
    return found


def _column(rule: str) -> str:
    match = _LOWEST.fullmatch(rule)
    return match[1] if match else rule


def _key(rule: str) -> "pl.Expr":
    import polars as pl

    if rule == "area":
        return pl.col("width").cast(pl.Int64) * pl.col("height").cast(pl.Int64)
    if rule == LENGTH:
        return pl.col("text").str.len_chars()
    return pl.col(_column(rule)).fill_nan(None)


def keepers(pairs: Pairs, rank_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the keeper of each row, its own place where it stays, (N,) int64, and the distance to it, (N,) float32.

    rank_N   (N,) int64, all different; lower is kept before higher
    """
    num = len(rank_N)
    stays = _stay(rank_N[pairs.left_P], rank_N[pairs.right_P], num)[rank_N]
    keeper, distance = np.arange(num), np.zeros(num, np.float32)
    one = np.concatenate([pairs.left_P, pairs.right_P])
    other = np.concatenate([pairs.right_P, pairs.left_P])
    apart = np.concatenate([pairs.distance_P, pairs.distance_P])
    judged = stays[one] & ~stays[other]
    one, other, apart = one[judged], other[judged], apart[judged]
    worst_first = np.argsort(-rank_N[one], kind="stable")  # of several keepers the best is written last
    keeper[other[worst_first]] = one[worst_first]
    distance[other[worst_first]] = apart[worst_first]
    return keeper, distance


def _stay(one: np.ndarray, other: np.ndarray, num: int) -> np.ndarray:
    """Return which of `num` ranks stay, (N,) bool, by pairs of ranks: taken in order, each that is left drops its neighbours.

    Many at a time: a rank that has no better neighbour left stays whatever becomes of the others.
    """
    better, worse = np.minimum(one, other), np.maximum(one, other)
    gone = np.zeros(num, bool)
    settled = np.zeros(num, bool)
    for _ in range(_ROUNDS):
        if not len(better):
            return ~gone
        beaten = np.zeros(num, bool)
        beaten[worse] = True
        settled |= ~beaten
        gone[worse[settled[better]]] = True
        left = ~(gone[better] | gone[worse])
        better, worse = better[left], worse[left]
    # A long chain, ranked from end to end, settles one of its rows a round: what is left of it goes one by one.
    for place in np.lexsort((worse, better)):
        if not gone[better[place]]:
            gone[worse[place]] = True
    return ~gone


def dropped(rows: pa.Table, keeper_N: np.ndarray, value_N: np.ndarray | pa.Array, reason: str) -> pa.Table:
    """Return the verdicts on rows that are not their own keeper, sorted by (`_partition`, `_row`)."""
    out = np.flatnonzero(keeper_N != np.arange(len(keeper_N)))
    numbers = [rows.column(name).to_numpy()[out] for name in (ROW, PARTITION)]
    out = out[np.lexsort(numbers)]
    kept = rows.select(["sample_id", "position"]).take(pa.array(keeper_N[out]))
    schema = pa.schema([pa.field(PARTITION, pa.int64()), *VERDICT_FIELDS])
    columns = [
        rows.column(PARTITION).take(pa.array(out)), rows.column(ROW).take(pa.array(out)),
        pa.array([reason] * len(out), pa.string()), *kept.columns, pa.array(value_N).take(pa.array(out)),
    ]  # fmt: skip
    return pa.table(columns, schema.names).cast(schema)
