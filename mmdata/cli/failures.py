"""`mmdata failures`."""

import json as json_lib
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    hosts: Annotated[int, typer.Option(min=0, help="Hosts shown of each class")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Print what failed in RUN by class and host, its share, and what can be done about it."""
    from mmdata.report.failures import failures, failures_text

    found = failures(run, hosts)
    say(json_lib.dumps(found, indent=1) if json else failures_text(found))
