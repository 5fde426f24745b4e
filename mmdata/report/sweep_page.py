"""What every threshold would keep, as one HTML page: curves, tables, and the samples on both sides of chosen thresholds.

Decided here: pictures are read from the run and decoded in the jail, as on a corpus's page; a row that has none shows its
text. A curve's axis is the grid of thresholds, so columns whose values differ by orders have equal ratios.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from mmdata.engine.runstore import RunStore
from mmdata.errors import MmdataError
from mmdata.media import Jail
from mmdata.report import sweep_text as told
from mmdata.report.inspect_page import cut, thumbnail
from mmdata.report.page import Card, Line, Section, cards_html, lines_html, row_html, table_html, wide_html, write_page
from mmdata.report.sweep import Sweep
from mmdata.report.sweep_counts import Counts, Curve, Group
from mmdata.report.sweep_seen import Boundary, Seen
from mmdata.shards.payloads import fetch_payload
from mmdata.storage import Store

TICKS = 5  # thresholds named below a chart, about


def write_sweep(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Write the page of the columns of a run."""
    store = RunStore(sweeps[0].run).store
    with Jail() as jail:
        sections = [section for found in sweeps for section in _sections(found, store, jail)]
    write_page(path, f"thresholds of {sweeps[0].plan}", sections)


def _sections(found: Sweep, store: Store, jail: Jail) -> list[Section]:
    lines = "".join(f"<p dir=auto>{escape(line)}</p>" for line in told.head(found))
    if found.total is None:
        return [Section(found.column, lines)]
    near = "".join(f"<p>{escape(told.near_line(near, found))}</p>" for near in found.near)
    title = "at or below" if found.at_most else "at or above"
    sections = [Section(found.column, lines + _charts(found, _of_total(found)) + near)]
    for column, groups in found.by.items():
        charts = _charts(found, _of_groups(groups))
        sections.append(Section(f"{found.column} by {column}", charts + _table(told.group_table(found, groups))))
    sections += [
        Section(f"{found.column} {title} {told.number(each.threshold)}", _boundary(each, store, jail))
        for each in found.boundaries
    ]
    return [*sections, Section(f"{found.column}: what thresholds keep", _table(told.table(found, found.grid)))]


def _of_total(found: Sweep) -> dict[str, list[tuple[str, Curve]]]:
    assert found.total is not None
    charts = {"all": _named(found.total.all)}
    return charts if found.total.kept is None else charts | {"kept": _named(found.total.kept)}


def _of_groups(groups: Sequence[Group]) -> dict[str, list[tuple[str, Curve]]]:
    charts = {"all": [(group.name, group.all.rows) for group in groups]}
    kept = [(group.name, group.kept.rows) for group in groups if group.kept is not None]
    return charts | {"kept": kept} if kept else charts


def _named(counts: Counts) -> list[tuple[str, Curve]]:
    curves = {"rows": counts.rows, "samples": counts.samples, "whole samples": counts.whole_samples}
    return [(name, curve) for name, curve in curves.items() if curve is not None]


def _charts(found: Sweep, charts: dict[str, list[tuple[str, Curve]]]) -> str:
    """Return a chart of all rows, and one of those kept: kept against threshold, a line each."""
    places = np.interp(found.thresholds, found.grid, np.linspace(0, 1, len(found.grid))).tolist()
    at = dict(zip(found.thresholds, places, strict=True))
    ticks = [(at[each], told.brief(each)) for each in found.listed[:: max(1, len(found.listed) // TICKS)]]
    made = []
    for of, curves in charts.items():
        lines = [
            Line(f"{name} ({curve.total:,})", [(x, num / curve.total) for x, num in zip(places, curve.kept, strict=True)])
            for name, curve in curves if curve.total
        ]  # fmt: skip
        made.append(lines_html(f"share of {of} that a threshold keeps", lines, ticks, [at[each] for each in found.chosen]))
    return row_html(made)


def _boundary(each: Boundary, store: Store, jail: Jail) -> str:
    sides = (("just kept, nearest first", each.kept), ("just dropped, nearest first", each.dropped))
    return "".join(f"<p>{word}</p>{cards_html([_card(seen, store, jail) for seen in side]) or '<p>none'}" for word, side in sides)


def _card(seen: Seen, store: Store, jail: Jail) -> Card:
    facts = [told.number(seen.value), *([seen.fate] if seen.fate else []), *seen.groups]
    text = cut(f"{' · '.join(facts)} · {'(no text)' if seen.text is None else seen.text}")
    if seen.payload is None or seen.media != "image":
        return Card(None, text, seen.media if seen.media and seen.payload is not None else "no picture")
    try:
        return Card(thumbnail(jail.decode(fetch_payload(store, seen.payload))), text)
    except (MmdataError, OSError) as error:
        return Card(None, f"{text} · not shown: {cut(str(error))}", "not shown")


def _table(lines: told.Table) -> str:
    return wide_html(table_html(*lines))
