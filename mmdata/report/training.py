"""What a training run has written, finished or still running: its log, its config, its samples.

Decided here: a line that cannot be read is counted and skipped, and the last one may be half written. What is held does not grow
with the run: neighbouring points of a curve are averaged once there are too many. A log that goes back to an earlier step (a
run that was resumed) counts from there on.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdata.errors import ConfigError

METRICS, CONFIG, STATUS, SAMPLES, CAPTIONS = "metrics.jsonl", "config.json", "status.json", "samples", "captions.json"
POINTS = 200  # of a curve, and up to twice as many
SAMPLE_STEPS = 4
PICTURES = 16
PICTURE_BYTES = 8 << 20
_STEP = re.compile(r"step-(\d+)")
_PARTS = ("low", "high", "num")  # of an estimate, behind its name


@dataclass
class Curve:
    """The points of a key, (step, value) each a mean of `width` neighbours; its last value, and the step of it."""

    width: int = 1
    last: tuple[float, float] = (0.0, 0.0)
    _sums: list[tuple[float, float, int]] = field(default_factory=list)  # of steps and of values, and how many

    def add(self, step: float, value: float) -> None:
        """Take the next point; one of an earlier step takes the place of all from there on."""
        while self._sums and self._sums[-1][0] / self._sums[-1][2] >= step:
            self._sums.pop()
        if self._sums and self._sums[-1][2] < self.width:
            steps, values, num = self._sums.pop()
            self._sums.append((steps + step, values + value, num + 1))
        else:
            self._sums.append((step, value, 1))
        self.last = (step, value)
        if len(self._sums) > 2 * POINTS:
            pairs = zip(self._sums[::2], [*self._sums[1::2], (0.0, 0.0, 0)], strict=False)
            self._sums = [(a + d, b + e, c + f) for (a, b, c), (d, e, f) in pairs]
            self.width *= 2

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve, by step."""
        return [(steps / num, values / num) for steps, values, num in self._sums]


@dataclass(frozen=True)
class SampleGrid:
    """What was generated at a step: files of pictures, and their captions."""

    step: int
    pictures: list[tuple[Path, str]]


@dataclass(frozen=True)
class Training:
    """A training run, by its folder.

    config, status   as they lie there; empty where they do not
    curves           by key of the log, in the order in which they first came
    unread           lines that are no JSON object with a step, other than a last one that is being written
    """

    home: str
    config: dict[str, Any]
    status: dict[str, Any]
    curves: dict[str, Curve]
    lines: int
    unread: int
    grids: list[SampleGrid]

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(max((curve.last[0] for curve in self.curves.values()), default=0))

    def evaluations(self) -> list[str]:
        """Return the names of what was evaluated, without `val/`."""
        names = [key.removeprefix("val/") for key in self.curves if key.startswith("val/")]
        return [name for name in names if name.rpartition("/")[2] not in _PARTS or name.rpartition("/")[0] not in names]

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the last interval of an evaluation, if it has one."""
        value, low, high = (self.curves.get(f"val/{name}{part}") for part in ("", "/low", "/high"))
        if value is None or low is None or high is None or not value.last[0] == low.last[0] == high.last[0]:
            return None
        return low.last[1], high.last[1]


def read_training(home: Path) -> Training:
    """Read the folder of a training run. Raises ConfigError where no log is."""
    path = home / METRICS
    if not path.is_file():
        raise ConfigError(f"{home}: no training run has logged here", hint="give the --out of `mmdata train`")
    curves: dict[str, Curve] = {}
    lines = unread = 0
    for record in _records(path):
        lines += record is not None
        unread += record is None
        for key, value in (record or {}).items():
            if key != "step" and _is_number(value):
                curves.setdefault(key, Curve()).add(float((record or {})["step"]), float(value))
    return Training(str(home), _object(home / CONFIG), _object(home / STATUS), curves, lines, unread, _grids(home / SAMPLES))


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield each line's object, null for one that cannot be read; nothing for a last line without an end."""
    with path.open("rb") as file:
        for line in file:
            record = _parsed(line)
            usable = isinstance(record, dict) and _is_number(record.get("step"))
            if usable:
                yield record
            elif line.endswith(b"\n") and line.strip():
                yield None


def _parsed(line: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = _parsed(path.read_bytes())
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}


def _grids(folder: Path) -> list[SampleGrid]:
    """Return the samples of the last step and of some earlier ones, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _STEP.fullmatch(path.name))]
    found.sort(reverse=True)
    grids = [_grid(step, path) for step, path in _spread(found)]
    return [grid for grid in grids if grid.pictures]


def _spread(steps: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    if len(steps) <= SAMPLE_STEPS:
        return steps
    return [steps[round(place * (len(steps) - 1) / (SAMPLE_STEPS - 1))] for place in range(SAMPLE_STEPS)]


def _grid(step: int, folder: Path) -> SampleGrid:
    captions = _object(folder / CAPTIONS)
    files = [path for path in sorted(folder.glob("*.png")) if path.is_file() and path.stat().st_size <= PICTURE_BYTES]
    return SampleGrid(step, [(path, str(captions.get(path.name, ""))) for path in files[:PICTURES]])
