"""`mmdata explain`."""

from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    sample_id: Annotated[str, typer.Argument(help="The sample's id, or the start of it")],
) -> None:
    """Print every column, verdict and record of one sample."""
    from mmdata.report.explain import explain

    say(explain(run, sample_id))
