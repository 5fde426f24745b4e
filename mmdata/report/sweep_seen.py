"""The samples just above and just below a threshold: what a person looks at before choosing it.

Decided here: nearest values first; of rows with one value, a scattered choice, the same each time.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdata.report.columns import sparse_column
from mmdata.report.sweep_rows import ROWS, ColumnRows, Spill
from mmdata.report.thresholds import Number
from mmdata.schema import PAYLOAD_COLUMN

_READ = ("sample_id", "text", "media", PAYLOAD_COLUMN)


@dataclass(frozen=True)
class Seen:
    """A row near a threshold; `fate` is `kept`, the reason that it was judged out for, or empty while that is not known."""

    value: Number
    fate: str
    groups: tuple[str, ...]
    sample_id: str
    text: str | None
    media: str | None
    payload: dict[str, Any] | None


@dataclass(frozen=True)
class Boundary:
    """A threshold, the rows nearest to it that it keeps, and those that it drops: nearest first."""

    threshold: Number
    kept: list[Seen]
    dropped: list[Seen]


class _Nearest:
    """The records of one side of a threshold that lie nearest to it."""

    def __init__(self, threshold: Number, keeps: bool, above: bool, num: int) -> None:
        self.threshold, self.keeps, self.above, self.num = threshold, keeps, above, num
        self.found: list[tuple[float, int, int]] = []  # distance, a scattered number, place

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """Look at records: their values, and their places in the spill."""
        side = values >= self.threshold if self.above else values <= self.threshold
        side = side if self.keeps else side & (values != self.threshold)
        values, places = values[side], places[side]
        far = np.abs(values - self.threshold).astype(np.float64)
        if len(far) > self.num:
            near = far <= np.partition(far, self.num - 1)[self.num - 1]
            far, places = far[near], places[near]
        scattered = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        best = np.lexsort((scattered, far))[: self.num]
        here = zip(far[best].tolist(), scattered[best].tolist(), places[best].tolist(), strict=True)
        self.found = heapq.nsmallest(self.num, [*self.found, *here])


def look(rows: ColumnRows, spill: Spill, thresholds: Sequence[Number], at_most: bool, num: int) -> list[Boundary]:
    """Return the `num` rows nearest to each threshold on each side, strictest threshold first."""
    pairs = [
        (_Nearest(each, True, not at_most, num), _Nearest(each, False, at_most, num))
        for each in sorted(thresholds, reverse=not at_most)
    ]
    start = 0
    for piece in spill.pieces():
        places = np.flatnonzero(piece["flags"] & ROWS)
        values = piece["value"][places]
        for pair in pairs:
            for side in pair:
                side.add(values, places + start)
        start += len(piece)
    seen = _seen(rows, spill, [place for pair in pairs for side in pair for _, _, place in side.found])
    return [
        Boundary(kept.threshold, *([seen[place] for _, _, place in side.found] for side in (kept, dropped)))
        for kept, dropped in pairs
    ]


def _seen(rows: ColumnRows, spill: Spill, places: Sequence[int]) -> dict[int, Seen]:
    """Read the rows at places of the spill, partition by partition."""
    found: dict[int, Seen] = {}
    wanted, start = np.unique(np.array(places, np.int64)), 0
    for number, end in spill.ends:
        here = wanted[(wanted >= start) & (wanted < end)]
        if len(here):
            found |= dict(zip(here.tolist(), _of_part(rows, number, here - start), strict=True))
        start = end
    return found


def _of_part(rows: ColumnRows, number: int, places: np.ndarray) -> list[Seen]:
    part, fates, view = rows.part(number), rows.fates(number), rows.view(number)
    chosen = part.rows[places]
    told = {
        name: sparse_column(view, rows.homes[name], name, chosen, rows.space).to_pylist()
        for name in _READ if name in rows.homes
    }  # fmt: skip
    names = [{code: name for name, code in groups.codes.items()} for groups in rows.by]
    found = []
    for at, (place, row) in enumerate(zip(places.tolist(), chosen.tolist(), strict=True)):
        groups = tuple(named[int(codes[place])] for named, codes in zip(names, part.groups, strict=True))
        fate = "kept" if part.kept is not None and part.kept[place] else fates.get(row, "")
        own = {name: values[at] for name, values in told.items()}
        found.append(
            Seen(part.values[place].item(), fate, groups, own["sample_id"], own["text"], own["media"], own.get(PAYLOAD_COLUMN))
        )
    return found
