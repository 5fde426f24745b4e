"""An atlas as text and as a page: a table of all cells, a plot of understanding against generation, claims beside what is seen.

It reads the `atlas.json` that `mmdata atlas` wrote: means over seeds, with intervals.
"""

import json
from pathlib import Path
from typing import Any

from mmdata.report.inspect_text import grid
from mmdata.report.page import Dot, Section, dots_html, table_html, wide_html, write_page
from mmdata.report.spread import shown

SPLITS = {"seen": "pairs that were trained on", "val": "pairs that were held out"}
UNDERSTANDING, GENERATION = "caption_exact", "image_nearest"
HEAD = (
    "objective", "weights", "seeds", "steps", "captions seen", "images seen", "captions held out", "images held out",
    "1e12 operations", "samples/s", "memory, MiB", "parameters",
)  # fmt: skip
CLAIMED = ("paper says", "source", "figure", "difference", "95 % interval", "here")


def atlas_text(path: Path) -> str:
    """Return the table and the claims of an `atlas.json` as text."""
    found = _read(path)
    tables = [grid(HEAD, table_rows(found)), *(grid(CLAIMED, claim_rows(found, split)) for split in SPLITS)]
    return "\n\n".join(table for table in tables if table)


def write_atlas(page: Path, path: Path) -> None:
    """Write the page of an `atlas.json`."""
    found = _read(path)
    sections = [Section("All cells", wide_html(table_html(HEAD, table_rows(found))))]
    for split, words in SPLITS.items():
        sections.append(
            Section(f"Understanding against generation, {words}", dots_html("images", "captions", _dots(found, split)))
        )
        claims = wide_html(table_html(CLAIMED, claim_rows(found, split)))
        sections.append(Section(f"What papers claim, {words}", claims))
    write_page(page, f"atlas: {found['name']}", sections)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def table_rows(found: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return the table: both directions, on pairs that were trained on and on pairs that were not, and what it took."""
    return [
        (
            cell["objective"], cell["share"], cell["seeds"], cell["steps"],
            *(_told(cell, f"{split}/{name}") for split in SPLITS for name in (UNDERSTANDING, GENERATION)),
            f"{cell['flops'] / 1e12:.2f}", f"{cell['samples_per_s']:.0f}", f"{cell['memory_mib']:,.0f}",
            f"{cell['parameters']:,}",
        )
        for cell in found["cells"]
    ]  # fmt: skip


def _told(cell: dict[str, Any], name: str) -> str:
    if name not in cell["figures"]:
        return "-"
    value, low, high = cell["figures"][name]
    return f"{value:.3f} ({max(low, 0):.2f} to {min(high, 1):.2f})"


def claim_rows(found: dict[str, Any], split: str) -> list[tuple[object, ...]]:
    """Return what papers claim, beside what was seen on a split."""
    return [
        (
            claim["words"], claim["source"], claim["figure"], f"{claim['value']:+.3f}",
            "one seed" if claim["low"] is None else f"{shown(claim['low'])} to {shown(claim['high'])}", claim["verdict"],
        )
        for claim in found["claims"].get(split, [])
    ]  # fmt: skip


def _dots(found: dict[str, Any], split: str) -> list[Dot]:
    names = [f"{split}/{name}" for name in (GENERATION, UNDERSTANDING)]
    return [
        Dot(f"{cell['objective']}, {cell['share']}", *(cell["figures"][name][0] for name in names))
        for cell in found["cells"]
        if all(name in cell["figures"] for name in names)
    ]
