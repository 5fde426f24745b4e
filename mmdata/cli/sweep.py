"""`mmdata sweep`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmdata.cli.options import say, tell
from mmdata.errors import ConfigError

if TYPE_CHECKING:
    from mmdata.report.sweep import Sweep


def command(  # noqa: PLR0913, PLR0917 - each is a flag
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    column: Annotated[list[str], typer.Option(help="Column of numbers; may be given more than once")],
    by: Annotated[
        list[str] | None, typer.Option(help="Column to group by; may be given more than once  [default: source, language]")
    ] = None,
    at: Annotated[list[float] | None, typer.Option(help="A threshold to look at; may be given more than once")] = None,
    at_most: Annotated[bool, typer.Option("--at-most", help="A threshold keeps what is at or below it, not above")] = False,
    keep_fraction: Annotated[
        float | None,
        typer.Option(help="Print only the threshold that keeps this part of all rows, or a little more", metavar="F"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with curves, and pictures at the thresholds, to this file", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON")] = False,
) -> None:
    """Print what every threshold of a column would keep of RUN, by source and language; only columns are read."""
    if keep_fraction is not None:
        if html is not None or as_json:
            raise ConfigError("--keep-fraction prints a threshold, no JSON and no page", hint="leave it out, or the others")
        if not 0 < keep_fraction <= 1:
            raise ConfigError(f"--keep-fraction {keep_fraction:g}: not a part of all rows", hint="give a number such as 0.3")
    from mmdata.report.sweep import FRACTIONS, SEEN, Question, sweep

    found = []
    for name in dict.fromkeys(column):
        fractions = FRACTIONS if keep_fraction is None else (keep_fraction,)
        question = Question(name, None if by is None else tuple(by), tuple(at or ()), fractions, at_most)
        found.append(sweep(run, question, _said(name), seen=SEEN if html is not None else 0))
    if keep_fraction is not None:
        _thresholds(found)
    elif as_json:
        say(json.dumps([each.as_json() for each in found], indent=1, ensure_ascii=False, allow_nan=False))
    else:
        from mmdata.report.sweep_text import sweep_text

        say("\n\n".join(map(sweep_text, found)))
    if html is not None:
        from mmdata.report.sweep_page import write_sweep

        write_sweep(html, found)
        tell(f"wrote {html}")


def _said(column: str) -> Callable[[int, int], None]:
    return lambda done, total: tell(f"{column}: {done:,} of {total:,} partitions read")


def _thresholds(found: "list[Sweep]") -> None:
    """Print a threshold a column, with nothing beside it; what it keeps goes elsewhere."""
    from mmdata.report.sweep_text import near_line, number

    for each in found:
        near = next((near for near in each.near if near.of == "all"), None)
        if near is None:
            raise ConfigError(f"no row of {each.run} has a value of `{each.column}`", hint="run the stage that writes it first")
        tell(f"{each.column}: {near_line(near, each)}")
        say(number(near.more.threshold))
