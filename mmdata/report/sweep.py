"""What every threshold of a column would keep of a run, by group: read from columns alone, counted, nothing suggested.

Decided here: two answers stand side by side, one for all rows that have a value, whatever became of them, and one for those
that the generation kept. A threshold keeps what `keep` would: values at or above it, or with `at_most` at or below it; rows
without a value are counted apart. Memory does not grow with the run.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mmdata.errors import ConfigError
from mmdata.report.sweep_counts import OF, Group, count
from mmdata.report.sweep_rows import ROWS, ColumnRows, Spill
from mmdata.report.sweep_seen import Boundary, look
from mmdata.report.thresholds import Number, at_ranks, fitting, grid, next_stricter, wanted_rows
from mmdata.shards.counter import Counter, Progress

FRACTIONS = (0.5, 0.3, 0.2, 0.1)
SEEN = 7  # samples shown on each side of a threshold: a line of a wide page
_TRIM = 500  # one row in so many lies beyond the first threshold of the table, and one beyond the last


@dataclass(frozen=True)
class Question:
    """What is asked of a column.

    by         columns to group by; null = `source`, and `language` where there is one
    at         thresholds of the asker's own
    fractions  parts of the rows, each in (0, 1], whose thresholds are looked for
    at_most    a threshold keeps what is at or below it, not above
    """

    column: str
    by: tuple[str, ...] | None = None
    at: tuple[float, ...] = ()
    fractions: tuple[float, ...] = FRACTIONS
    at_most: bool = False

    def __post_init__(self) -> None:
        if wrong := [each for each in self.at if not math.isfinite(each)]:
            raise ConfigError(f"a threshold of {wrong[0]}: no number", hint="give a number such as 0.3")
        if wrong := [each for each in self.fractions if not 0 < each <= 1]:
            raise ConfigError(f"a fraction of {wrong[0]:g}: not a part of all rows", hint="give a number such as 0.3")


@dataclass(frozen=True)
class Cut:
    """A value as a threshold: the rows it keeps, and their share."""

    threshold: Number
    rows: int
    share: float


@dataclass(frozen=True)
class Near:
    """The two thresholds nearest to a part of the rows: `more` keeps at least that, `fewer` is the next (null: none is left).

    of    `all` rows that have a value, or those `kept`      total  how many these are
    ties  rows with exactly the value that `more` has: no threshold parts them
    """

    fraction: float
    of: str
    total: int
    more: Cut
    fewer: Cut | None
    ties: int


@dataclass
class Sweep:
    """What every threshold of a column keeps.

    finished       the generation has ended; else what is kept is not known, and rows may be missing
    partitions     of the generation; of `given_up` ones nothing is told
    held           rows that have the column: `missing` of them without a value, `infinite` of them beyond all thresholds
    without        rows of the generation that do not have it; null as long as that is not known
    thresholds     ascending: those of `grid`, those asked for, those of `near`
    grid, listed   round ones, and some of these for a short table
    total          of everything; null when no row has a value
    """

    run: str
    plan: str
    generation: int
    finished: bool
    column: str
    unit: str
    at_most: bool
    partitions: int
    given_up: int
    without: int | None
    held: int = 0
    missing: int = 0
    infinite: int = 0
    thresholds: list[Number] = field(default_factory=list)
    grid: list[Number] = field(default_factory=list)
    listed: list[Number] = field(default_factory=list)
    at: list[Number] = field(default_factory=list)
    near: list[Near] = field(default_factory=list)
    total: Group | None = None
    by: dict[str, list[Group]] = field(default_factory=dict)
    boundaries: list[Boundary] = field(default_factory=list)

    @property
    def chosen(self) -> list[Number]:
        """The thresholds asked for, else those of the fractions of all rows, ascending."""
        return sorted(set(self.at or [near.more.threshold for near in self.near if near.of == "all"]))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, without the boundaries."""
        facts = asdict(self)
        del facts["boundaries"]
        return facts


def sweep(url: str, question: Question, progress: Progress | None = None, *, seen: int = 0) -> Sweep:
    """Count what every threshold of a column would keep of a run.

    progress  called every 5 s with the partitions read and those there are
    seen      so many samples are named on each side of each chosen threshold

    Raises ConfigError where there is no such run, column or group.
    """
    rows = ColumnRows(url, question.column, question.by)
    with Spill(rows.whole, len(rows.by)) as spill:
        found = _read(rows, spill, question.at_most, progress)
        totals = {of: spill.totals[ROWS << shift] for of, shift in OF.items()}
        if totals["all"]:
            cuts = _thresholds(found, spill, question, totals)
            found.total, found.by = count(found.thresholds, spill, rows.by, found.at_most, found.finished)
            found.near = [_near(found, *cut) for cut in cuts]
            found.boundaries = look(rows, spill, found.chosen, found.at_most, seen) if seen else []
    return found


def _read(rows: ColumnRows, spill: Spill, at_most: bool, progress: Progress | None) -> Sweep:
    """Read the run into the spill; return what there is to say without thresholds."""
    metadata = rows.plan.fields[rows.column].metadata or {}
    unit = ": ".join(metadata[key].decode() for key in (b"unit", b"meaning") if metadata.get(key))
    found = Sweep(
        rows.run.url, rows.plan.name, rows.generation.number, rows.finished, rows.column, unit, at_most,
        len(rows.heads), rows.given_up, without=0 if rows.finished else None,
    )  # fmt: skip
    counter = Counter(len(rows.heads), progress)
    for number, part in rows.parts():
        spill.add(number, part, at_most)
        found.held += part.held
        found.missing += part.missing
        found.infinite += part.infinite
        if found.without is not None and part.without is not None:
            found.without += part.without
        counter.add()
    return found


_Found = tuple[str, float, Number, Number | None]  # of what, fraction, threshold, the next stricter one


def _thresholds(found: Sweep, spill: Spill, question: Question, totals: dict[str, int]) -> list[_Found]:
    """Choose the thresholds to count for; return which of them belong to fractions."""
    last = totals["all"] - 1
    low, high = at_ranks(spill.values(ROWS), [last // _TRIM, last - last // _TRIM])
    found.grid, found.listed = grid(low, high)
    found.at = sorted({fitting(threshold, spill.kind, question.at_most) for threshold in question.at})
    cuts = [cut for of, total in totals.items() if total for cut in _cuts(spill, of, total, question)]
    found.thresholds = sorted({*found.grid, *found.at, *(value for cut in cuts for value in cut[2:] if value is not None)})
    return cuts


def _cuts(spill: Spill, of: str, total: int, question: Question) -> Iterator[_Found]:
    """Yield for each fraction the strictest threshold that keeps at least so much, and the next one."""
    wanted = [wanted_rows(fraction, total) for fraction in question.fractions]
    scan = spill.values(ROWS << OF[of])
    values = at_ranks(scan, [num - 1 if question.at_most else total - num for num in wanted])
    for fraction, value, beyond in zip(question.fractions, values, next_stricter(scan, values, question.at_most), strict=True):
        yield of, fraction, value, beyond


def _near(found: Sweep, of: str, fraction: float, value: Number, beyond: Number | None) -> Near:
    assert found.total is not None
    counts = found.total.all if of == "all" else found.total.kept
    assert counts is not None
    total, kept = counts.rows.total, dict(zip(found.thresholds, counts.rows.kept, strict=True))
    more, fewer = (None if cut is None else Cut(cut, kept[cut], kept[cut] / total) for cut in (value, beyond))
    assert more is not None
    return Near(fraction, of, total, more, fewer, more.rows - (fewer.rows if fewer else 0))
