"""What is in a corpus, as text for a terminal."""

from collections.abc import Sequence

from mmdata.report.inspect import Inspection
from mmdata.report.spread import QUANTILES, Spread, shown

Rows = Sequence[Sequence[object]]


def inspection_text(found: Inspection) -> str:
    """Return what is in a corpus as tables. The histograms in the last column are of the whole range, small to large."""
    parts = [
        head(found),
        grid(("split", "samples", "blocks", "bytes"), split_rows(found)),
        grid(("kind", "samples", "blocks", "bytes"), kind_rows(found)),
        grid(("format", "files", "bytes"), format_rows(found)),
        grid(("spread", *QUANTILES, ""), [_spread_row(each) for each in found.spreads]),
    ]
    chosen = found.chosen
    if chosen.scores:
        parts.append(f"in the JSON of {chosen.samples:,} samples chosen at random:")
        parts.append(grid(("number", *QUANTILES, ""), [_spread_row(each) for each in chosen.scores]))
    parts.append(grid(("source", "of those samples", "licence"), source_rows(found)))
    parts.append(grid(("funnel", "rows"), funnel_rows(found)))
    parts.append("\n".join(cautions(found)))
    return "\n\n".join(part for part in parts if part)


def head(found: Inspection) -> str:
    """Return one line: whose corpus it is and how large."""
    media = "media encoded by us" if found.trusted else "media as they were found"
    size = f"{found.samples:,} samples, {found.blocks:,} blocks, {found.shards:,} shards, {found.bytes / 1e6:,.1f} MB"
    return f"{found.url}\nplan {found.plan}, generation {found.generation}, {found.digest[:16]}: {size}, {media}"


def split_rows(found: Inspection) -> Rows:
    """Return the splits with their counts."""
    return [(part.name, part.samples, part.blocks, part.bytes) for part in found.splits]


def kind_rows(found: Inspection) -> Rows:
    """Return the kinds of samples that there are."""
    return [(part.name, part.samples, part.blocks, part.bytes) for part in found.kinds if part.samples]


def format_rows(found: Inspection) -> Rows:
    """Return the formats of media that there are."""
    return [(part.name, part.blocks, part.bytes) for part in found.formats]


def source_rows(found: Inspection) -> Rows:
    """Return the sources: their share of the samples that were read, and their licence."""
    names = list(dict.fromkeys([*found.chosen.sources, *found.licences]))
    num = max(found.chosen.samples, 1)
    shares = [f"{found.chosen.sources[name] / num:.1%}" if name in found.chosen.sources else "" for name in names]
    return [(name, share, found.licences.get(name, "")) for name, share in zip(names, shares, strict=True)]


def funnel_rows(found: Inspection) -> Rows:
    """Return where the rows went that the corpus was made of."""
    rows: list[tuple[str, object]] = []
    for name, value in found.funnel.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {reason}", num) for reason, num in value.items()]
        else:
            rows.append((name.replace("_", " "), value))
    return rows


def cautions(found: Inspection) -> list[str]:
    """Return what a reader should know, one line each."""
    lines = [f"caution: {caution}" for caution in found.cautions]
    unknown = max((each.unknown for each in found.spreads), default=0)
    if unknown:
        lines.append(f"images or videos whose size is not in the index: {unknown:,} (a stage that measures writes it)")
    if found.untold:
        lines.append(f"pairs without a text: {found.untold:,}")
    if found.chosen.unreadable:
        tried = found.chosen.samples + found.chosen.unreadable
        lines.append(
            f"samples that could not be read: {found.chosen.unreadable:,} of {tried:,} (`mmdata verify` finds all damage)"
        )
        lines.append(f"  {found.chosen.problem}")
    return lines


def grid(names: Sequence[str], rows: Rows) -> str:
    """Return columns of text, numbers to the right; empty when there is no row."""
    if not rows:
        return ""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [not isinstance(value, str) for value in rows[0]]
    return "\n".join(
        "  ".join(_placed(*cell) for cell in zip(row, widths, right, strict=True)).rstrip() for row in [names, *cells]
    )


def _spread_row(each: Spread) -> tuple[object, ...]:
    return (f"{each.name}, {each.unit}", *(each.quantiles.get(name) for name in QUANTILES), each.line())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return shown(value) if isinstance(value, int | float) else " ".join(str(value).split())


def _placed(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
