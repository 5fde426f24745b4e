"""What is in a corpus, as one HTML page with pictures.

Decided here: every picture is decoded in the jail, whatever the corpus says of its bytes, and what the page holds was encoded
from the pixels that came out. Captions are strangers' texts: cut, escaped, never markup.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from mmdata.errors import RecordError
from mmdata.media import Jail
from mmdata.report import inspect_text as told
from mmdata.report.inspect import Inspection, Picture
from mmdata.report.page import Card, Section, cards_html, histogram_html, row_html, table_html, write_page
from mmdata.report.spread import Spread, shown

THUMB = 150
MAX_CAPTION = 200
# Control characters, and those that turn the direction of what follows.
_UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]")


def write_inspection(path: Path, found: Inspection) -> None:
    """Write the page of a corpus."""
    parts = ("samples", "blocks", "bytes")
    counts = [
        _table(("split", *parts), told.split_rows(found)),
        _table(("kind", *parts), told.kind_rows(found)),
        _table(("format", "files", "bytes"), told.format_rows(found)),
    ]
    sections = [
        Section("What there is", _lines(told.head(found).splitlines()) + "<br>".join(counts)),
        Section("Cautions", _lines(told.cautions(found))),
        Section("Pictures", _pictures(found.chosen.pictures)),
        Section("Sizes and lengths", _spreads(found.spreads)),
        Section(f"Numbers in the JSON of {found.chosen.samples:,} samples, chosen at random", _spreads(found.chosen.scores)),
        Section("Sources", _table(("source", "of those samples", "licence"), told.source_rows(found))),
        Section("Funnel", _table(("", "rows"), told.funnel_rows(found))),
    ]
    write_page(path, f"corpus {found.plan}", [section for section in sections if section.html])


def _pictures(pictures: list[Picture]) -> str:
    cards, failed = [], []
    with Jail() as jail:
        for picture in pictures:
            try:
                cards.append(Card(thumbnail(jail.decode(picture.data)), cut(picture.text)))
            except RecordError as error:
                failed.append([f"not decoded: {error.message}", cut(picture.text)])
    return cards_html(cards) + _table(("", "text"), failed)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return a small copy, so that one picture at a time is held whole."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMB, THUMB))
    return np.asarray(picture)


def _spreads(spreads: list[Spread]) -> str:
    return row_html([_spread(each) for each in spreads])


def _spread(each: Spread) -> str:
    unknown = f", {each.unknown:,} unknown" if each.unknown else ""
    label = f"{each.name}, {each.unit}: {each.count:,}{unknown}"
    edges = [shown(edge) for edge in each.edges]
    notes = [f"{low} to {high}: {num:,}" for low, high, num in zip(edges, edges[1:], each.counts, strict=False)]
    foot = ", ".join(f"{name} {shown(value)}" for name, value in each.quantiles.items())
    ends = [shown(each.quantiles[name]) if each.count else "" for name in ("min", "max")]
    return histogram_html(label, each.counts, (ends[0], ends[1]), notes, foot)


def _table(names: Sequence[str], rows: told.Rows) -> str:
    cells = [[shown(cell) if isinstance(cell, int | float) else cell for cell in row] for row in rows]
    return table_html(names, cells) if rows else ""


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"<p dir=auto>{escape(line)}</p>" for line in lines)


def cut(text: str) -> str:
    """Return a stranger's text for a page: one line, not long, in the direction it has."""
    flat = " ".join(_UNSEEN.sub(" ", text).split())
    return flat if len(flat) <= MAX_CAPTION else flat[: MAX_CAPTION - 1] + "…"
