"""`mmdata train-report`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say, tell


def command(
    out: Annotated[Path, typer.Argument(help="Folder of a training run: the --out of `mmdata train`", metavar="OUT")],
    html: Annotated[Path | None, typer.Option(help="Write a page with curves and samples to this file", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON")] = False,
) -> None:
    """Print what a training run has come to: losses, evaluation with intervals, speed. It may still be running."""
    import json

    from mmdata.report.training import read_training
    from mmdata.report.training_text import as_json as facts_of
    from mmdata.report.training_text import training_text

    found = read_training(out)
    say(json.dumps(facts_of(found), indent=1, ensure_ascii=False) if as_json else training_text(found))
    if html is not None:
        from mmdata.report.training_page import write_training

        write_training(html, found)
        tell(f"wrote {html}")
