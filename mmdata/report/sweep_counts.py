"""What thresholds keep, counted: rows and samples, of everything and of each group, all of them and those kept.

Decided here: a group is shown by name if it is one of the 30 with most rows; all others are one group more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmdata.report.sweep_rows import ALL, BEST, KEPT, ROWS, WORST, Groups, Spill
from mmdata.report.thresholds import Number, kept_by

OF = {"all": ALL, "kept": KEPT}
SHOWN_GROUPS = 30
OTHERS = "(others)"
_FLAGS = 64  # as many as six bits say


@dataclass(frozen=True)
class Curve:
    """Things with a value, and how many of them each threshold of the sweep keeps."""

    total: int
    kept: list[int]


@dataclass(frozen=True)
class Counts:
    """What the thresholds keep of some rows.

    samples        samples of which a row is kept: a pair is its row, a document its best row
    whole_samples  samples of which every row with a value is kept

    The latter two are null where the run has no documents: samples are rows then.
    """

    rows: Curve
    samples: Curve | None
    whole_samples: Curve | None


@dataclass(frozen=True)
class Group:
    """The counts of a group, or of everything: of all rows that have a value, and of those kept (null: not known yet)."""

    name: str
    all: Counts
    kept: Counts | None


class Counter:
    """How many records of each group, with each flags, lie between which thresholds.

    slots  by code of a group: its place; codes of groups that are not shown have one place together
    """

    def __init__(self, thresholds: np.ndarray, at_most: bool, slots: np.ndarray) -> None:
        self.at_most, self.slots, self.num = at_most, slots, int(slots.max(initial=0)) + 1
        self.cells = np.zeros((self.num, len(thresholds) + 1, _FLAGS), np.int64)

    def add(self, places: np.ndarray, flags: np.ndarray, codes: np.ndarray) -> None:
        """Count records: where they lie among the thresholds, their flags, the codes of their groups."""
        which = (self.slots[codes] * self.cells.shape[1] + places) * _FLAGS + flags
        self.cells += np.bincount(which, minlength=self.cells.size).reshape(self.cells.shape)

    def curves(self, flag: int) -> list[Curve]:
        """Return what the thresholds keep of the records that have a flag, for each place."""
        cells = self.cells[:, :, np.arange(_FLAGS) & flag > 0].sum(-1)
        kept = np.cumsum(cells, axis=1)[:, :-1] if self.at_most else np.cumsum(cells[:, ::-1], axis=1)[:, ::-1][:, 1:]
        return [Curve(int(total), row.tolist()) for total, row in zip(cells.sum(1), kept, strict=True)]


def count(
    thresholds: Sequence[Number], spill: Spill, by: Sequence[Groups], at_most: bool, finished: bool
) -> tuple[Group, dict[str, list[Group]]]:
    """Return what the thresholds, ascending, keep of everything, and of the groups of each column: most rows first."""
    edges = np.array(thresholds, spill.kind)
    shown = [_slots(spill.rows_of[place], len(groups.codes)) for place, groups in enumerate(by)]
    named = [[""], *(_names(groups, slots) for groups, slots in zip(by, shown, strict=True))]
    counters = [Counter(edges, at_most, slots) for slots in (np.zeros(1, np.int64), *shown)]
    for piece in spill.pieces():
        places, flags = kept_by(edges, piece["value"], at_most), piece["flags"].astype(np.int64)
        counters[0].add(places, flags, np.zeros(len(piece), np.int64))
        for place, counter in enumerate(counters[1:]):
            counter.add(places, flags, piece["groups"][:, place])
    total, *others = [_groups(counter, names, spill.documents, finished) for counter, names in zip(counters, named, strict=True)]
    return total[0], {groups.column: each for groups, each in zip(by, others, strict=True)}


def _groups(counter: Counter, names: Sequence[str], documents: bool, finished: bool) -> list[Group]:
    of_all = _counts(counter, documents, ALL)
    of_kept = _counts(counter, documents, KEPT) if finished else [None] * len(names)
    return [Group(*each) for each in zip(names, of_all, of_kept, strict=True)]


def _slots(rows: np.ndarray, num: int) -> np.ndarray:
    """Return the place of each code, those with most rows first."""
    order = np.argsort(-np.resize(rows, num), kind="stable")
    slots = np.empty(num, np.int64)
    slots[order] = np.minimum(np.arange(num), SHOWN_GROUPS)
    return slots


def _names(groups: Groups, slots: np.ndarray) -> list[str]:
    found = [OTHERS] * (int(slots.max(initial=0)) + 1)
    for name, code in groups.codes.items():
        if slots[code] < SHOWN_GROUPS:
            found[slots[code]] = name
    return found


def _counts(counter: Counter, documents: bool, shift: int) -> list[Counts]:
    """Return the counts of each place, of all rows or of those kept."""
    rows, best, worst = (counter.curves(flag << shift) for flag in (ROWS, BEST, WORST))
    if not documents:
        return [Counts(curve, None, None) for curve in rows]
    return [Counts(*curves) for curves in zip(rows, best, worst, strict=True)]
