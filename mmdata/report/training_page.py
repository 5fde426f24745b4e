"""A training run as one HTML page: curves, what was evaluated, how fast it is, who of the experts works, and what it generates.

Decided here: which keys of the log belong into one chart follows from their names, and what has no place of its own is shown
at the end, so that a new key is seen without a change here. Pictures are decoded in the jail, as on any page.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from mmdata.errors import RecordError
from mmdata.media import Jail
from mmdata.report import training_text as told
from mmdata.report.axes import steps_axis, values_axis
from mmdata.report.inspect_page import THUMB, cut, thumbnail
from mmdata.report.page import Card, Line, Section, cards_html, lines_html, row_html, table_html, wide_html, write_page
from mmdata.report.spread import shown
from mmdata.report.training import Curve, SampleGrid, Training

Charts = dict[str, dict[str, Curve]]  # by title, by the name of a line

COUNTED = ("step", "tokens", "samples")  # what only grows is no curve
SPEED = ("tokens_per_s", "samples_per_s", "mfu", "loader_wait", "padding")
NORMS = ("grad_norm", "lr")
MOST_LINES, MOST_OTHERS = 10, 30
_BUCKET = re.compile(r"t\d+")
_UNITS = {
    "tokens_per_s": "tokens a second", "samples_per_s": "samples a second", "mfu": "share of the device's peak (MFU)",
    "loader_wait": "waiting for the loader", "padding": "padding, share of tokens", "grad_norm": "norm of the gradient",
    "lr": "learning rate",
}  # fmt: skip


def write_training(path: Path, found: Training) -> None:
    """Write the page of a training run."""
    name = found.config.get("name")
    sections = [
        Section("Run", "".join(f"<p dir=auto>{escape(line)}</p>" for line in told.head(found))),
        Section("Evaluation", evaluation_html(found)),
        Section("Losses", losses_html(found)),
        Section("Speed", _named(found, SPEED)),
        Section("Norms", _named(found, [key for key in found.curves if _is_norm(key)])),
        Section("Work of the experts", loads_html(found)),
        Section("Also logged", _charts({key: {key: found.curves[key]} for key in _others(found)[:MOST_OTHERS]})),
        *_samples(found.grids),
    ]
    write_page(path, f"training {name}" if isinstance(name, str) else "training", [each for each in sections if each.html])


def losses_html(found: Training) -> str:
    """Return the losses: a family with its held-out value, and the parts it is made of."""
    charts: Charts = defaultdict(dict)
    for key, curve in found.curves.items():
        loss, _, name = key.partition("/")
        if loss != "loss" or not name:
            continue
        family, _, part = name.partition("/")
        if not part:
            held_out = {f"held out {family}": found.curves[key] for key in _held_out(family) if key in found.curves}
            charts[family] = {family: curve, **held_out}
        else:
            title = f"{family} by time or mask ratio" if _BUCKET.fullmatch(part) else f"{family} by source"
            charts[title][part] = curve
    return _charts(charts)


def evaluation_html(found: Training) -> str:
    """Return the table of the last evaluation, and a curve of each number over the run, those from 0 to 1 in one chart."""
    head, rows = told.evaluation(found)
    if not rows:
        return ""
    families = {key.split("/")[1] for key in found.curves if key.startswith("loss/") and key.count("/") == 1}
    names = [name for name in found.evaluations() if f"val/{name}" not in {k for each in families for k in _held_out(each)}]
    shares = {name: found.curves[f"val/{name}"] for name in names if _is_share(found.curves[f"val/{name}"])}
    charts = {"shares": shares} | {name: {name: found.curves[f"val/{name}"]} for name in names if name not in shares}
    return wide_html(table_html(head, rows)) + _charts({title: lines for title, lines in charts.items() if lines})


def _held_out(family: str) -> tuple[str, str]:
    return f"val/{family}", f"val/loss/{family}"


def _is_share(curve: Curve) -> bool:
    return all(0 <= value <= 1 for _, value in curve.points)


def _is_norm(key: str) -> bool:
    return key in NORMS or "norm" in key.rpartition("/")[2]


def _others(found: Training) -> list[str]:
    placed = (*COUNTED, *SPEED)
    return [
        key for key in found.curves
        if key not in placed and not _is_norm(key) and key.partition("/")[0] not in ("loss", "val", "load")
    ]  # fmt: skip


def _named(found: Training, keys: list[str] | tuple[str, ...]) -> str:
    return _charts({_UNITS.get(key, key): {key: found.curves[key]} for key in keys if key in found.curves})


def loads_html(found: Training) -> str:
    """Return the share of each expert by modality; of many, the busiest and the idlest at each step, and how even all are."""
    groups: dict[str, dict[str, Curve]] = defaultdict(dict)
    for key, curve in found.curves.items():
        if key.startswith("load/"):
            group, _, expert = key.removeprefix("load/").rpartition("/")
            groups[group or "all"][expert] = curve
    charts = {f"{group}: share of {len(lines)} experts": _ends(lines) for group, lines in groups.items()}
    even = {group: _over(lines, _evenness) for group, lines in groups.items() if len(lines) > 1}
    return _charts(charts | ({"evenness of the shares, 1 = all alike": even} if even else {}))


def _ends(lines: dict[str, Curve]) -> dict[str, Curve]:
    return lines if len(lines) <= MOST_LINES else {"busiest": _over(lines, max), "idlest": _over(lines, min)}


def _over(lines: Mapping[str, Curve], of: Callable[[list[float]], float]) -> Curve:
    """Return a curve of a number of all lines at each step that they share."""
    by_step: dict[float, list[float]] = defaultdict(list)
    for curve in lines.values():
        for step, value in curve.points:
            by_step[step].append(value)
    made = Curve()
    for step in sorted(by_step):
        made.add(step, of(by_step[step]))
    return made


def _evenness(shares: list[float]) -> float:
    total = sum(shares)
    if total <= 0 or len(shares) < 2:
        return 1.0
    return -sum(share / total * math.log(share / total) for share in shares if share > 0) / math.log(len(shares))


def _charts(charts: Charts) -> str:
    return row_html([_chart(title, part) for title, lines in charts.items() for part in _parts(lines)])


def _parts(lines: dict[str, Curve]) -> Iterator[dict[str, Curve]]:
    names = list(lines)
    for start in range(0, len(names), MOST_LINES):
        yield {name: lines[name] for name in names[start : start + MOST_LINES]}


def _chart(title: str, lines: dict[str, Curve]) -> str:
    points = [point for curve in lines.values() for point in curve.points]
    across, up = steps_axis([step for step, _ in points]), values_axis([value for _, value in points])
    drawn = [
        Line(
            f"{name} {shown(curve.last[1])}",
            [(across.place(step), up.place(value)) for step, value in curve.points],
            dots=len(curve.points) <= 40,
        )
        for name, curve in lines.items()
    ]
    return lines_html(f"{title}{', log scale' if up.ratios else ''}", drawn, across.ticks(), (), up.ticks())


def _samples(grids: list[SampleGrid]) -> list[Section]:
    if not grids:
        return []
    with Jail() as jail:
        return [Section(f"Generated at step {grid.step:,}", cards_html(_cards(grid, jail))) for grid in grids]


def _cards(grid: SampleGrid, jail: Jail) -> list[Card]:
    found = []
    for path, caption in grid.pictures:
        try:
            found.append(Card(_enlarged(jail.decode(path.read_bytes())), cut(caption)))
        except (RecordError, OSError):  # a run that is still at it may be writing this one
            found.append(Card(None, cut(caption), "not decoded"))
    return found


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Return a picture that fills its card; small ones by whole factors, so that pixels stay pixels."""
    factor = THUMB // max(image.shape[:2])
    if factor < 2:
        return thumbnail(image)
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST))
