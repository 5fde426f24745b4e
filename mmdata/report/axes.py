"""An axis of a chart: where a value stands on it, and which round numbers are written beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmdata.report.spread import shown

WIDE = 20  # from this ratio of largest to smallest on, equal ratios are equally far apart
_STEPS = (1, 2, 5, 10)
MOST = 6


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; with `ratios`, both are above 0 and equal ratios are equally far apart."""

    low: float
    high: float
    ratios: bool = False

    def place(self, value: float) -> float:
        """Return where a value stands, 0 at `low` and 1 at `high`; what lies outside stands at the end."""
        low, high, at = (math.log(each) for each in (self.low, self.high, value)) if self.ratios else (self.low, self.high, value)
        return min(max((at - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Return a few round numbers on it: where each stands, and how it is written."""
        return [(self.place(value), _written(value)) for value in self._round()]

    def _round(self) -> list[float]:
        if not self.ratios:
            step = _step((self.high - self.low) / (MOST - 1))
            return [number * step for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        digits = (1, 2, 5) if len(powers) <= 3 else (1,)
        found = [digit * 10.0**power for power in powers for digit in digits]
        inside = [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        return inside[:: max(1, math.ceil(len(inside) / MOST))]


def steps_axis(steps: Sequence[float]) -> Axis:
    """Return the axis of a run's steps, from 0 on."""
    return Axis(0.0, max([*steps, 1.0]))


def values_axis(values: Sequence[float]) -> Axis:
    """Return an axis that values fill: by ratios where they are all above 0 and differ by much, from 0 on where that is near."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low > WIDE:
        return Axis(low, high, ratios=True)
    if 0 <= low < 0.6 * high:
        low = 0.0
    if low == high:
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    step = _step((high - low) / (MOST - 1))
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _written(value: float) -> str:
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    return shown(int(value) if value == int(value) else value)


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))
