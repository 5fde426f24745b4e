"""How values are spread: quantiles and a histogram, computed once for the terminal, the page and JSON.

Decided here: a quantile is a value that occurs (the nearest one below), never one in between. Sizes and lengths have bins of
equal ratio, for they differ by orders; few different whole numbers have a bin each.
"""

from dataclasses import asdict, dataclass

import numpy as np

QUANTILES = {"min": 0.0, "p1": 0.01, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
BINS = 32
WIDE = 20  # from this ratio of largest to smallest on, bins have equal ratios
_BARS = "·▁▂▃▄▅▆▇█"
_COLUMNS = 16

Number = int | float


@dataclass(frozen=True)
class Spread:
    """How the values of one thing are spread.

    unit       what a value counts
    count      values that are known; with none there are no quantiles and no bins
    unknown    values that are not
    quantiles  by the names of QUANTILES
    edges      of the bins: one more than `counts`; a bin holds its lower edge, the last one both
    """

    name: str
    unit: str
    count: int
    unknown: int
    quantiles: dict[str, Number]
    edges: list[Number]
    counts: list[int]

    def as_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return asdict(self)

    def line(self) -> str:
        """Return the histogram as a few characters."""
        parts = np.array_split(np.array(self.counts), min(_COLUMNS, len(self.counts))) if self.counts else []
        sums = [int(part.sum()) for part in parts]
        most = max(sums, default=0)
        # A bin with anything in it is seen, however small.
        return "".join(_BARS[0 if num == 0 else max(1, round(num / most * (len(_BARS) - 1)))] for num in sums)


def spread(name: str, unit: str, values: np.ndarray, unknown: int = 0, *, ratios: bool = True) -> Spread:
    """Return how values are spread.

    values  (N,) numbers, none of them NaN or infinite
    ratios  bins may have equal ratios; otherwise they have equal widths
    """
    num = len(values)
    if not num:
        return Spread(name, unit, 0, unknown, {}, [], [])
    ordered = np.sort(values)
    quantiles = {key: ordered[int(share * (num - 1))].item() for key, share in QUANTILES.items()}
    edges = _edges(ordered, ratios)
    starts = np.searchsorted(ordered, edges[:-1].astype(ordered.dtype), side="left")  # of one type: nothing large is converted
    counts = np.diff(np.append(starts, num))
    return Spread(name, unit, num, unknown, quantiles, edges.tolist(), counts.tolist())


def shown(value: Number) -> str:
    """Return a number for people."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _edges(ordered: np.ndarray, ratios: bool) -> np.ndarray:
    whole = np.issubdtype(ordered.dtype, np.integer)
    low, high = ordered[0].item(), ordered[-1].item()
    if low == high:
        return np.array([low, high])
    if whole and high - low < BINS:
        return np.arange(low, high + 2)
    if ratios and low >= 0 and high >= WIDE * max(low, 1 if whole else 0):
        return _equal_ratios(ordered, low, high, whole)
    edges = np.linspace(low, high, BINS + 1)
    return np.unique(edges.astype(np.int64)) if whole else edges.astype(ordered.dtype)


def _equal_ratios(ordered: np.ndarray, low: Number, high: Number, whole: bool) -> np.ndarray:
    least = low if low > 0 else ordered[np.searchsorted(ordered, 0, side="right")].item()  # zero has a bin of its own
    edges = np.geomspace(least, high, BINS + 1)
    edges[0], edges[-1] = least, high
    edges = np.unique(np.round(edges).astype(np.int64)) if whole else edges.astype(ordered.dtype)
    return edges if low > 0 else np.concatenate([np.zeros(1, edges.dtype), edges])
