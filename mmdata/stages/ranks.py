"""The best of all partitions, exactly and in bounded memory: counts of keys by their leading bits, refined in rounds.

Decided here: a value's key is an integer in the values' order. A round counts, for every group, the rows by the next 16 bits
of their keys, of those rows that share the bits found so far with the last row that is wanted: a selection by radix. After at
most four rounds its whole key is known, and after four more, where equal keys are told apart, that of its sample's hash.

Axes: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.stages.passes import Round
from mmdata.storage import mix64

if TYPE_CHECKING:
    import polars as pl

DIGIT = 16
_DIGITS = 64 // DIGIT  # of a key; those of the hash follow
_LEVEL, _BITS = b"level", b"bits"  # metadata of a value and of a part: digits found so far, and bits that keys have
_TOP = np.uint64(1) << np.uint64(63)


@dataclass(frozen=True)
class Keys:
    """What rows are ranked by, highest first.

    key      (N,) uint64      tie  (N,) uint64, tells equal keys apart; null where they stay together
    counted  (N,) bool, False for rows that have no rank
    bits     how many of a key's upper bits say anything: 32 or 64
    """

    key: np.ndarray
    counted: np.ndarray
    tie: np.ndarray | None = None
    bits: int = 64


@dataclass(frozen=True)
class Ranks:
    """Chooses the best rows of every group.

    per     columns whose values make a group; a null is a value
    keys    of the rows of a partition
    wanted  by how many ranked rows a group has, how many of them are chosen
    ties    rows of equal keys are told apart by `tie`, else all of them are chosen if one is
    """

    per: tuple[str, ...]
    keys: Callable[[pa.Table], Keys]
    wanted: Callable[[int], int]
    ties: bool = False

    def rounds(self) -> tuple[Round, ...]:
        """Return the passes that find the last row that is chosen."""
        return (Round(self._count, self._add, self._close, self._done),) * (2 * _DIGITS if self.ties else _DIGITS)

    def chosen(self, rows: pa.Table, value: pa.Table) -> np.ndarray:
        """Return which rows are among the best of their groups; those without a rank are not."""
        keys = self.keys(rows)
        last = self._last(rows, value)
        best: np.ndarray = keys.key > last["_key"]
        equal = keys.key == last["_key"]
        best |= equal if keys.tie is None else equal & (keys.tie >= last["_tie"])
        return np.asarray(best & keys.counted & ~last["_none"])

    def _count(self, rows: pa.Table, before: pa.Table | None) -> pa.Table:
        import polars as pl

        keys = self.keys(rows)
        level, bits = _level(before), keys.bits
        here = keys.counted
        if before is not None:
            last = self._last(rows, before)
            here = here & ~last["_done"] & _agrees(keys, last, level)
        source = keys.key if level < _DIGITS else keys.tie
        assert source is not None
        digit = (source >> np.uint64(64 - DIGIT * (level % _DIGITS + 1))).astype(np.uint16)
        if not self.per:
            counts = np.bincount(digit[here], minlength=1)
            found = np.flatnonzero(counts)
            frame = pl.DataFrame({"_digit": found.astype(np.uint16), "_rows": counts[found].astype(np.int64)})
        else:
            frame = pl.DataFrame([*self._frame(rows).get_columns(), pl.Series("_digit", digit)]).filter(pl.Series(here))
            frame = frame.group_by([*self.per, "_digit"]).agg(_rows=pl.len().cast(pl.Int64))
        return self._packed(frame, bits)

    def _add(self, parts: list[pa.Table]) -> pa.Table:
        import polars as pl

        frames = [self._unpacked(part) for part in parts]
        total = pl.concat(frames).group_by([*self.per, "_digit"]).agg(pl.col("_rows").sum())
        return self._packed(total, max(_metadata(part, _BITS) for part in parts))

    def _close(self, total: pa.Table, before: pa.Table | None) -> pa.Table:
        """Find in which digit the last wanted row of each group lies; groups that are done stay as they are."""
        import polars as pl

        level, bits = _level(before), _metadata(total, _BITS)
        counts = self._unpacked(total)
        value = self._first(counts) if before is None else pl.DataFrame(pl.from_arrow(before))
        value = value.with_row_index("_group")
        join: dict[str, Any] = {"on": list(self.per), "nulls_equal": True} if self.per else {"how": "cross"}
        counts = counts.join(value.select("_group", *self.per, "_wanted", "_done"), **join).sort(
            "_group", -pl.col("_digit").cast(pl.Int32)
        )
        counts = counts.with_columns(_before=(pl.col("_rows").cum_sum() - pl.col("_rows")).over("_group"))
        last = counts.filter(~pl.col("_done") & (pl.col("_before") < pl.col("_wanted")))
        table = _refined(value, last.unique("_group", keep="last", maintain_order=True), level)
        level = _next(level + 1, bits)
        ended = level >= (2 * _DIGITS if self.ties else _DIGITS)
        table = table.with_columns(pl.col("_done") | ended).drop("_group")
        return _plain(table).replace_schema_metadata({_LEVEL: str(level), _BITS: str(bits)})

    def _first(self, counts: "pl.DataFrame") -> "pl.DataFrame":
        """Return one row a group: how many of its rows are wanted, and that nothing is known of the last of them."""
        import polars as pl

        if self.per:
            groups = counts.group_by(list(self.per)).agg(_total=pl.col("_rows").sum()).sort(list(self.per))
        else:
            groups = counts.select(_total=pl.col("_rows").sum()).filter(pl.col("_total") > 0)
        num = pl.Series("_wanted", [min(self.wanted(total), total) for total in groups["_total"]], pl.Int64)
        value = groups.drop("_total").with_columns(num)
        none = value["_wanted"] == 0
        keys = {name: pl.Series([0] * len(num), dtype=pl.UInt64) for name in ("_key", "_tie")}
        return value.with_columns(**keys, _done=none, _none=none)

    def _done(self, value: pa.Table) -> bool:
        return bool(pc.all(value.column("_done"), min_count=0).as_py())

    def _last(self, rows: pa.Table, value: pa.Table) -> dict[str, Any]:
        """Return what a value says of the last row that is chosen in each row's group, (N,) each, or one for all without groups.

        A group that the value does not know has nothing chosen.
        """
        found = {}
        for name in ("_key", "_tie", "_done", "_none"):
            column = value.column(name).to_numpy()
            found[name] = np.append(column, np.asarray([name in ("_done", "_none")]).astype(column.dtype))
        if not self.per:
            return {name: column[0] for name, column in found.items()}
        import polars as pl

        groups = pl.DataFrame(pl.from_arrow(value.select(self.per))).with_row_index("_place")
        joined = self._frame(rows).join(groups, on=list(self.per), how="left", nulls_equal=True, maintain_order="left")
        places = joined["_place"].fill_null(value.num_rows).to_numpy()
        return {name: column[places] for name, column in found.items()}

    def _frame(self, rows: pa.Table) -> "pl.DataFrame":
        import polars as pl

        return pl.DataFrame(pl.from_arrow(rows.select(self.per))) if self.per else pl.DataFrame()

    def _packed(self, frame: "pl.DataFrame", bits: int) -> pa.Table:
        """Return counts as they are written: in one order, with every name of a group once."""
        table = _plain(frame.sort([*self.per, "_digit"]))
        for place, name in enumerate(self.per):
            column = table.column(place)
            if pa.types.is_large_string(column.type):
                table = table.set_column(place, name, column.cast(pa.string()).combine_chunks().dictionary_encode())
        return table.replace_schema_metadata({_BITS: str(bits)})

    def _unpacked(self, part: pa.Table) -> "pl.DataFrame":
        import polars as pl

        frame = pl.DataFrame(pl.from_arrow(part))
        return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def _plain(frame: "pl.DataFrame") -> pa.Table:
    """Return a frame as a table of the types that all readers of Arrow know."""
    import polars as pl

    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _refined(value: "pl.DataFrame", last: "pl.DataFrame", level: int) -> "pl.DataFrame":
    """Put the digits that were found into the keys; a group of which all rows of the digit are wanted is done."""
    import polars as pl

    key, tie, left, done = (value[name].to_numpy().copy() for name in ("_key", "_tie", "_wanted", "_done"))
    at = last["_group"].to_numpy()
    digit = last["_digit"].to_numpy().astype(np.uint64) << np.uint64(64 - DIGIT * (level % _DIGITS + 1))
    (key if level < _DIGITS else tie)[at] |= digit
    left[at] -= last["_before"].to_numpy()
    done[at] = left[at] >= last["_rows"].to_numpy()
    columns = {"_key": key, "_tie": tie, "_wanted": left, "_done": done}
    return value.with_columns(**{name: pl.Series(column) for name, column in columns.items()})


def _agrees(keys: Keys, last: dict[str, np.ndarray], level: int) -> np.ndarray:
    """Say which rows share all digits found so far with the last one wanted."""
    if level <= _DIGITS:
        shift = np.uint64(64 - DIGIT * level)
        return np.asarray(keys.key >> shift == last["_key"] >> shift)
    assert keys.tie is not None
    shift = np.uint64(64 - DIGIT * (level - _DIGITS))
    return np.asarray((keys.key == last["_key"]) & (keys.tie >> shift == last["_tie"] >> shift))


def _level(value: pa.Table | None) -> int:
    return 0 if value is None else _metadata(value, _LEVEL)


def _next(level: int, bits: int) -> int:
    """Pass over the digits that say nothing."""
    return _DIGITS if bits // DIGIT <= level < _DIGITS else level


def _metadata(table: pa.Table, name: bytes) -> int:
    return int((table.schema.metadata or {})[name])


def score_keys(column: pa.ChunkedArray) -> Keys:
    """Return keys in the order of a column's numbers; null and NaN have no rank, and -0 is 0."""
    array = column.combine_chunks()
    values = pc.fill_null(array, pa.scalar(0, array.type)).to_numpy(zero_copy_only=False)
    counted = array.is_valid().to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f":
        values = values.astype(np.float64 if values.dtype.itemsize == 8 else np.float32) + 0.0
        return Keys(_float_keys(values), counted & ~np.isnan(values), bits=8 * values.dtype.itemsize)
    if values.dtype.itemsize < 8:
        least = 0 if values.dtype.kind == "u" else 1 << 31
        return Keys((values.astype(np.int64) + least).astype(np.uint64) << np.uint64(32), counted, bits=32)
    return Keys(values.astype(np.uint64) ^ (_TOP if values.dtype.kind == "i" else np.uint64(0)), counted)


def _float_keys(values: np.ndarray) -> np.ndarray:
    """Turn floats into integers of their order: all bits of a negative one flipped, else the sign's."""
    bits = 8 * values.dtype.itemsize
    signed: np.ndarray = values.view(np.int32 if bits == 32 else np.int64)
    flip = signed >> (bits - 1) | signed.dtype.type(-(1 << bits - 1))  # all ones for a negative number, else the sign alone
    unsigned = (signed ^ flip).view(np.uint32 if bits == 32 else np.uint64)
    return np.asarray(unsigned.astype(np.uint64) << np.uint64(64 - bits))


def sample_hashes(ids: pa.ChunkedArray, seed: int) -> np.ndarray:
    """Return a hash of each sample id that its seed alone decides, (N,) uint64: the same everywhere, for ever.

    The bytes of an id, eight at a time, and their number go through `mix64`.
    """
    array = ids.combine_chunks().cast(pa.string())
    lengths = pc.binary_length(array).fill_null(0).to_numpy()
    hashes = np.zeros(len(array), np.uint64)
    for length in np.unique(lengths):
        at = np.flatnonzero(lengths == length)
        same = array if len(at) == len(array) else array.take(pa.array(at))
        hashes[at] = _hashes_of(same.fill_null(""), int(length), seed)
    return hashes


def _hashes_of(array: pa.Array, length: int, seed: int) -> np.ndarray:
    """Hash texts of one length."""
    num, words = len(array), -(-length // 8)
    padded = np.zeros((num, words * 8), np.uint8)
    if length and num:
        _, offsets, data = array.buffers()
        first = int(np.frombuffer(offsets, np.int32)[array.offset])
        padded[:, :length] = np.frombuffer(data, np.uint8)[first : first + num * length].reshape(num, length)
    hashes = np.full(num, (seed ^ length * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF, np.uint64)
    for word in padded.view("<u8").T:
        hashes = mix64(hashes ^ word) + np.uint64(0x9E3779B97F4A7C15)
    return mix64(hashes)
