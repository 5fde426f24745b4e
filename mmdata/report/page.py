"""The run's page: one HTML file with nothing outside it. Every text from the data is escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em} h2{font-size:1.15em;margin-top:2em} table{border-collapse:collapse} td,th{padding:.15em .8em;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:inline-block;height:.8em;background:#c96;vertical-align:middle}
.kept .bar{background:#4a8} .cards{display:flex;flex-wrap:wrap;gap:.8em} .card{width:150px;font-size:12px;color:#555}
.card img{width:150px;height:150px;object-fit:contain;background:#f4f4f4;display:block} img.sheet{max-width:100%}
.card{overflow-wrap:anywhere} .spread{width:350px;font-size:12px;color:#555} .spread rect{fill:#c96} td{overflow-wrap:anywhere}
.lines{width:350px;font-size:12px} .lines polyline{fill:none;stroke-width:1.5}
.key{display:inline-block;margin-right:1em;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin-bottom:1em} .wide td,.wide th{white-space:nowrap}
.wide td+td,.wide th+th{text-align:right;font-variant-numeric:tabular-nums}
h1,h2,p{overflow-wrap:anywhere} .card .none{height:150px;background:#f4f4f4;text-align:center;line-height:150px;color:#999}
"""
# Nothing is loaded and nothing runs, whatever a text from the data would get past the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


SHARES = tuple((share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
_COLORS = ("#c63", "#247", "#4a8", "#a4a", "#b90", "#59c", "#933", "#686", "#c7a", "#555")
_DASHES = ("", "6 3", "2 3", "8 2 2 2")


@dataclass(frozen=True)
class Card:
    """A picture with a line of text; without one it says what there is instead."""

    image: np.ndarray | None
    text: str
    instead: str = ""


@dataclass(frozen=True)
class Dot:
    """A point of a plot of two shares, 0 to 1 each: its name, how far across, how far up."""

    name: str
    across: float
    up: float


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, and its points, (x, y) from 0 to 1 each; with `dots`, or where there is but one, marked."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading and HTML that is already safe."""

    title: str
    html: str


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page."""
    body = "".join(f"<h2>{escape(section.title)}</h2>{section.html}" for section in sections)
    policy = f'<meta http-equiv=Content-Security-Policy content="{_POLICY}"><meta name=viewport content="width=device-width">'
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{policy}<title>{escape(title)}</title><style>{_STYLE}</style>"
    # A text out of JSON may hold half a character, which UTF-8 cannot write.
    path.write_bytes(f"{head}<h1>{escape(title)}</h1>{body}</html>\n".encode(errors="replace"))


def funnel_html(funnel: dict[str, object], by_stage: Sequence[tuple[str, str, int]]) -> str:
    """Return the funnel as a table with bars."""
    rows_in, made, kept = (int(str(funnel[key])) for key in ("rows_in", "made_by_splits", "kept"))
    total = max(rows_in + made, 1)
    rows = [("rows in", "", rows_in, "kept"), ("made by splits", "", made, "kept")]
    rows += [(stage, reason, num, "") for stage, reason, num in by_stage]
    rows.append(("kept", "", kept, "kept"))
    return "<table>" + "".join(
        f"<tr class='{kind}'><td>{escape(stage)}<td>{escape(reason)}<td class=n>{num:,}"
        f"<td><span class=bar style='width:{300 * num / total:.0f}px'></span> {num / total:.1%}"
        for stage, reason, num, kind in rows
    ) + "</table>"  # fmt: skip


def cards_html(cards: Sequence[Card]) -> str:
    """Return pictures in a row, each with its text."""
    return row_html([f"<div class=card dir=auto>{_picture(card)}{escape(card.text)}</div>" for card in cards])


def _picture(card: Card) -> str:
    if card.image is None:
        return f"<div class=none>{escape(card.instead)}</div>"
    return f"<img alt='' src='{data_url(card.image)}'>"


def row_html(parts: Sequence[str]) -> str:
    """Return HTML that is already safe side by side; nothing for nothing."""
    return f"<div class=cards>{''.join(parts)}</div>" if parts else ""


def table_html(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of escaped cells."""
    top = "".join(f"<th>{escape(name)}" for name in head)
    return (
        f"<table><tr>{top}" + "".join("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in row) for row in rows) + "</table>"
    )


def image_html(path: Path) -> str:
    """Return a PNG file in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img class=sheet alt='' src='data:image/png;base64,{data}'>"


def histogram_html(label: str, counts: Sequence[int], ends: tuple[str, str], notes: Sequence[str], foot: str) -> str:
    """Return a histogram as an inline SVG.

    ends   what stands below the first and the last bar
    notes  what each bar says when it is pointed at
    foot   a line of text beneath
    """
    width, height, top = 350, 110, max(counts, default=0)
    bar = width / max(len(counts), 1)
    bars = ""
    for place, (num, note) in enumerate(zip(counts, notes, strict=True)):
        tall = max(1.0, (height - 34) * num / top) if num else 0.0
        bars += (
            f"<rect x={place * bar:.1f} y={height - 16 - tall:.1f} width={max(bar - 1, 1):.1f} height={tall:.1f}>"
            f"<title>{escape(note)}</title></rect>"
        )
    base, left, right = height - 3, escape(ends[0]), escape(ends[1])
    return (
        f"<div class=spread><svg width={width} height={height} role=img><text x=0 y=12 font-size=13>{escape(label)}</text>{bars}"
        f"<path stroke='#999' fill=none d='M0 {base - 12.5} H{width}'/><text x=0 y={base} font-size=11>{left}</text>"
        f"<text x={width} y={base} font-size=11 text-anchor=end>{right}</text></svg><br>{escape(foot)}</div>"
    )


def lines_html(
    label: str,
    lines: Sequence[Line],
    ticks: Sequence[tuple[float, str]],
    marks: Sequence[float] = (),
    rises: Sequence[tuple[float, str]] = SHARES,
) -> str:
    """Return lines as an inline SVG, with what each is beneath.

    ticks  places of words below the chart, and the words     marks  places of lines that stand upright
    rises  places of level lines, and what is written beside them
    """
    width, height, left, top, base = 350, 230, 46, 22, 208
    across, tall = width - left - 8, base - top
    shapes = ""
    for place in marks:
        shapes += f"<path stroke='#bbb' stroke-dasharray='2 2' d='M{left + across * place:.1f} {top} V{base}'/>"
    for place, word in ticks:
        anchor = "start" if place < 0.1 else "end" if place > 0.9 else "middle"
        shapes += f"<text x={left + across * place:.1f} y={base + 14} font-size=11 text-anchor={anchor}>{escape(word)}</text>"
    for share, word in rises:
        y = base - tall * share
        shapes += f"<path stroke='#e4e4e4' d='M{left} {y:.1f} H{width - 8}'/>"
        shapes += f"<text x={left - 3} y={y + 4:.1f} font-size=11 text-anchor=end>{escape(word)}</text>"
    keys = ""
    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        stroke = f"stroke='{color}' stroke-dasharray='{_DASHES[number // len(_COLORS) % len(_DASHES)]}'"
        places = [(f"{left + across * x:.1f}", f"{base - tall * y:.1f}") for x, y in line.points]
        points = " ".join(map(",".join, places))
        shapes += f"<polyline {stroke} points='{points}'><title>{escape(line.name)}</title></polyline>"
        if line.dots or len(places) == 1:
            shapes += "".join(f"<circle cx={x} cy={y} r=2.5 fill='{color}'/>" for x, y in places)
        key = f"<svg width=22 height=8><path stroke-width=2 {stroke} d='M0 4 H22'/></svg>"
        keys += f"<span class=key dir=auto>{key} {escape(line.name)}</span>"
    return (
        f"<div class=lines><svg width={width} height={height} role=img><text x=0 y=12 font-size=13>{escape(label)}</text>"
        f"{shapes}</svg><br>{keys}</div>"
    )


def dots_html(across: str, up: str, dots: Sequence[Dot]) -> str:
    """Return points of two shares, 0 to 1 each, as an inline SVG, with what each is beneath."""
    width, height, left, top, base = 350, 330, 46, 22, 300
    wide, tall = width - left - 18, base - top
    shapes = f"<text x={left} y=14 font-size=12>{escape(up)}</text>"
    shapes += f"<text x={width - 8} y={base + 28} font-size=12 text-anchor=end>{escape(across)}</text>"
    for share, word in SHARES:
        x, y = left + wide * share, base - tall * share
        shapes += f"<path stroke='#e4e4e4' fill=none d='M{left} {y:.1f} h{wide} M{x:.1f} {top} v{tall}'/>"
        shapes += f"<text x={left - 3} y={y + 4:.1f} font-size=11 text-anchor=end>{escape(word)}</text>"
        shapes += f"<text x={x:.1f} y={base + 14} font-size=11 text-anchor=middle>{escape(word)}</text>"
    keys = ""
    for number, dot in enumerate(dots):
        color = _COLORS[number % len(_COLORS)]
        # Later dots are smaller, so that equal ones are all seen.
        radius = 3 + (len(dots) - number) * 5 / max(len(dots), 1)
        x, y = left + wide * dot.across, base - tall * dot.up
        shapes += f"<circle cx={x:.1f} cy={y:.1f} r={radius:.1f} fill=none stroke='{color}' stroke-width=2 />"
        keys += f"<span class=key style='color:{color}'>&#9675; {escape(dot.name)} ({dot.across:.2f}, {dot.up:.2f})</span> "
    return f"<svg class=lines width={width} height={height} role=img>{shapes}</svg><p>{keys}</p>"


def wide_html(html: str) -> str:
    """Return a table, HTML that is already safe, that scrolls by itself where it is wider than the page; numbers stand right."""
    return f"<div class=wide>{html}</div>"


def data_url(image: np.ndarray) -> str:
    """Return an image, (H, W, 3) uint8, as a data URL of a small JPEG."""
    picture = Image.fromarray(image)
    picture.thumbnail((150, 150))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
