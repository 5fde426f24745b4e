"""`mmdata duplicates`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    groups: Annotated[int, typer.Option(help="How many groups, the largest first", min=1)] = 50,
    copies: Annotated[int, typer.Option(help="How many copies of each", min=1)] = 12,
    html: Annotated[Path | None, typer.Option(help="Also write a page of contact sheets there", dir_okay=False)] = None,
) -> None:
    """Print which rows were dropped as copies of which, with the method and the distance."""
    from mmdata.report.duplicates import duplicate_groups, groups_text, write_groups

    found = duplicate_groups(run, groups, copies)
    say(groups_text(found, copies))
    if html is not None:
        write_groups(html, run, found)
