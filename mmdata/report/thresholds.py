"""Thresholds of a column, from values that are read in pieces and never held together.

Decided here: values at a rank are exact, found digit by digit (65,536 at a time) in the bits of the numbers, which sort as
the numbers do. Thresholds for a table are round numbers between the outermost values; of values that differ by orders they
are equal ratios apart. What a threshold keeps is counted, never worked out from a histogram.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from mmdata.report.spread import WIDE

Number = int | float
Scan = Callable[[], Iterator[np.ndarray]]

MAX_THRESHOLDS = 200
MAX_POWERS = 5  # of ten, below the largest value
EACH = 40  # so few whole numbers are a threshold each
_DIGIT = 16
_TOP = np.uint64(1 << 63)


def at_ranks(scan: Scan, ranks: Sequence[int]) -> list[Number]:
    """Return the values at ranks counted from 0 at the least value.

    scan   yields all values in pieces, (n,) float64 without NaN or (n,) int64, and yields the same each time it is called
    """
    found, kind = [(0, rank) for rank in ranks], np.dtype(np.float64)
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = {prefix: np.zeros(1 << _DIGIT, np.int64) for prefix, _ in found}
        for values in scan():
            kind, keys = values.dtype, _keys(values)
            for prefix in counts:
                inside = keys if shift + _DIGIT == 64 else keys[keys >> np.uint64(shift + _DIGIT) == prefix]
                digits = (inside >> np.uint64(shift)).astype(np.int64) & ((1 << _DIGIT) - 1)
                counts[prefix] += np.bincount(digits, minlength=1 << _DIGIT)
        found = [_descend(prefix, rank, counts[prefix]) for prefix, rank in found]
    return [_value(key, kind) for key, _ in found]


def next_stricter(scan: Scan, thresholds: Sequence[Number], at_most: bool) -> list[Number | None]:
    """Return for each threshold the nearest value that is stricter: above it, or with `at_most` below; null for none."""
    found: list[Number | None] = [None] * len(thresholds)
    nearest = max if at_most else min
    for values in scan():
        for place, threshold in enumerate(thresholds):
            beyond = values[values < threshold] if at_most else values[values > threshold]
            if len(beyond):
                here = (beyond.max() if at_most else beyond.min()).item()
                before = found[place]
                found[place] = here if before is None else nearest(before, here)
    return found


def wanted_rows(fraction: float, total: int) -> int:
    """Return how many rows a fraction is, at least 1: rounded up, of the fraction as it is written."""
    return max(1, math.ceil(Fraction(str(fraction)) * total))


def grid(low: Number, high: Number) -> tuple[list[Number], list[Number]]:
    """Return round thresholds from about the one value to about the other, 200 at most, and every tenth or fifth of them.

    Whole numbers give whole thresholds; few of them are each one.
    """
    whole = isinstance(low, int) and isinstance(high, int)
    if low == high:
        return [low], [low]
    if whole and high - low < EACH:
        each: list[Number] = list(range(int(low), int(high) + 1))
        return each, each
    if low >= 0 and high >= WIDE * max(low, 1 if whole else 0) > 0:
        return _ratios(low, high, whole)
    return _steps(low, high, whole)


def _steps(low: Number, high: Number, whole: bool) -> tuple[list[Number], list[Number]]:
    number: type[int | float] = int if whole else float
    size = Decimal(high) - Decimal(low)
    least = max(size / (MAX_THRESHOLDS - 2), Decimal(1 if whole else 0))
    step = next(each for part in (1, 2, 5, 10) if (each := Decimal(part).scaleb(least.adjusted())) >= least)
    places = range(math.floor(Decimal(low) / step), math.ceil(Decimal(high) / step) + 1)
    # Numbers that differ in their last bits alone fall together.
    every: dict[Number, None] = dict.fromkeys(number(step * place) for place in places)
    tenth = 10 if len(places) > MAX_THRESHOLDS // 2 else 5
    listed: dict[Number, None] = dict.fromkeys(number(step * place) for place in places if place % tenth == 0)
    return list(every), list(listed)


def _ratios(low: Number, high: Number, whole: bool) -> tuple[list[Number], list[Number]]:
    """Return 1, 2, 5, 10 ... as every tenth, and nine between each two."""
    last = Decimal(high).adjusted()
    first = max(last - MAX_POWERS, Decimal(low).adjusted() if low else last - MAX_POWERS, 0 if whole else last - MAX_POWERS)
    tenths = [
        (place == 0, (start + Decimal(stop - start) * place / 10).scaleb(power))
        for power in range(first, last + 1) for start, stop in ((1, 2), (2, 5), (5, 10)) for place in range(10)
    ]  # fmt: skip
    tenths = [(True, Decimal(0)), *tenths] if not low else tenths
    number: Callable[[Decimal], Number] = math.ceil if whole else float
    listed = {number(each) for is_listed, each in tenths if is_listed}
    every = sorted({number(each) for _, each in tenths if each <= Decimal(high)})
    every = every[max(0, sum(each <= low for each in every) - 1) :]  # the last that keeps all, then those that do not
    return every, [each for each in every if each in listed]


def fitting(threshold: Number, kind: np.dtype, at_most: bool) -> Number:
    """Return the threshold that keeps the same of a column of a type: of whole numbers a whole one."""
    if kind.kind == "f":
        return float(threshold)
    return math.floor(threshold) if at_most else math.ceil(threshold)


def kept_by(thresholds: np.ndarray, values: np.ndarray, at_most: bool) -> np.ndarray:
    """Return the place among ascending thresholds that says which of them keep a value.

    (n,) int64: the first `place` thresholds keep it; with `at_most` all from `place` on.
    """
    return np.searchsorted(thresholds, values, side="left" if at_most else "right")


def _keys(values: np.ndarray) -> np.ndarray:
    """Return numbers as uint64 that sort as they do."""
    if values.dtype.kind != "f":
        return values.astype(np.int64).view(np.uint64) ^ _TOP
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)  # + 0.0: there is one zero
    return np.where(bits & _TOP, ~bits, bits | _TOP)


def _value(key: int, kind: np.dtype) -> Number:
    bits = np.array([key], np.uint64)
    if kind.kind != "f":
        return int((bits ^ _TOP).view(np.int64)[0])
    return float(np.where(bits & _TOP, bits ^ _TOP, ~bits).view(np.float64)[0])


def _descend(prefix: int, rank: int, counts: np.ndarray) -> tuple[int, int]:
    """Return the prefix with the digit that holds the rank, and the rank among those with that prefix."""
    ends = np.cumsum(counts)
    digit = int(np.searchsorted(ends, rank, side="right"))
    return prefix << _DIGIT | digit, rank - (int(ends[digit - 1]) if digit else 0)
