"""`mmdata status`."""

from typing import Annotated

import typer

from mmdata.cli.options import say


def command(run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")]) -> None:
    """Print how far RUN is, as its last report said, and what its generations came to."""
    from mmdata.report.table import status_text

    say(status_text(run))
