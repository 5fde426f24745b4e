"""What every threshold would keep, as words and tables, for the terminal and for the page."""

from collections.abc import Iterator, Sequence

from mmdata.report.sweep import Cut, Near, Sweep
from mmdata.report.sweep_counts import Counts, Curve, Group
from mmdata.report.thresholds import Number

Table = tuple[list[str], list[list[str]]]  # head, rows; the first cell of a row is a word or a threshold, the others numbers


def sweep_text(found: Sweep) -> str:
    """Return a sweep for people."""
    parts = ["\n".join(head(found))]
    if found.total is not None:
        parts.append(_aligned(table(found, found.listed)))
        parts.append("\n".join(near_line(near, found) for near in found.near))
        parts += [f"by {column}\n{_aligned(group_table(found, groups))}" for column, groups in found.by.items()]
    return "\n\n".join(parts)


def head(found: Sweep) -> list[str]:
    """Return lines that say of which rows the rest tells."""
    unit = f" ({found.unit})" if found.unit else ""
    lines = [f"{found.column}{unit}: plan {found.plan}, generation {found.generation}"]
    if not found.finished:
        lines.append(
            "the generation is not finished: these are the rows scored so far, and what it keeps of them is not known yet"
        )
    if found.given_up:
        lines.append(f"{found.given_up} of {found.partitions} partitions were given up: of their rows nothing is told here")
    without = "" if not found.without else f", {found.without:,} do not: they went before it was computed"
    lines.append(f"rows: {found.held:,} have the column{without}")
    if found.total is None:
        return [*lines, f"no row has a value of `{found.column}`" + (" yet" if not found.finished else "")]
    side = "at or below" if found.at_most else "at or above"
    counts = found.total
    kept = "" if counts.kept is None else f"; {counts.kept.rows.total:,} of these were kept"
    lines.append(f"all: the {counts.all.rows.total:,} rows with a value, whatever became of them{kept}")
    if found.missing or found.infinite:
        lines.append(f"not counted: {found.missing:,} rows without a value (null or NaN), {found.infinite:,} infinite")
    lines.append(f"a threshold keeps what is {side} it")
    if counts.all.samples is None:
        lines.append("a sample is a row: no row with a value belongs to a document")
    else:
        lines.append("samples: those of which a row is kept; whole: those of which every row with a value is kept")
    return lines


def table(found: Sweep, thresholds: Sequence[Number]) -> Table:
    """Return what thresholds keep of everything."""
    assert found.total is not None
    names, columns = ["at most" if found.at_most else "at least"], []
    for name, counts in (("all", found.total.all), ("kept", found.total.kept)):
        for word, curve in _curves(counts):
            names += [f"{name} {word}", ""]
            columns.append(curve)
    places = {threshold: place for place, threshold in enumerate(found.thresholds)}
    rows = []
    for threshold in thresholds:
        cells = [cell for curve in columns for cell in _kept(curve, places[threshold])]
        rows.append([number(threshold), *cells])
    return names, rows


def near_line(near: Near, found: Sweep) -> str:
    """Return what the thresholds nearest to a part of the rows keep."""
    sign = "<=" if found.at_most else ">="
    more = f"{near.fraction:.10g} of {near.of} rows: {_kept_by(sign, near.more)}"
    ties = f", {near.ties:,} of them with just this value" if near.ties > 1 else ""
    if near.fewer is None:
        return f"{more}{ties}; a stricter one keeps none"
    return f"{more}{ties}; {_kept_by(sign, near.fewer)}"


def group_table(found: Sweep, groups: Sequence[Group]) -> Table:
    """Return what the chosen thresholds keep of each group."""
    names, places = ["", "of", "rows"], [found.thresholds.index(threshold) for threshold in found.chosen]
    names += [brief(threshold) for threshold in found.chosen]
    rows = []
    for group in groups:
        for of, counts in (("all", group.all), ("kept", group.kept)):
            if counts is not None:
                cells = [_share(counts.rows, place) for place in places]
                rows.append([group.name if of == "all" else "", of, f"{counts.rows.total:,}", *cells])
    return names, rows


def number(value: Number) -> str:
    """Return a threshold whole: written into a plan it keeps just what was counted."""
    return str(value) if isinstance(value, int) else repr(value)


def brief(value: Number) -> str:
    """Return a threshold in few digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _kept_by(sign: str, cut: Cut) -> str:
    return f"{sign} {number(cut.threshold)} keeps {cut.rows:,} ({cut.share:.2%})"


def _curves(counts: Counts | None) -> Iterator[tuple[str, Curve]]:
    if counts is not None:
        for word, curve in (("rows", counts.rows), ("samples", counts.samples), ("whole", counts.whole_samples)):
            if curve is not None:
                yield word, curve


def _kept(curve: Curve, place: int) -> tuple[str, str]:
    return f"{curve.kept[place]:,}", _share(curve, place)


def _share(curve: Curve, place: int) -> str:
    return f"{curve.kept[place] / curve.total:.1%}" if curve.total else ""


def _aligned(lines: Table) -> str:
    rows = [lines[0], *lines[1]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join("  ".join(_padded(row, widths)).rstrip() for row in rows)


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield words to the left, numbers to the right."""
    yield row[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
