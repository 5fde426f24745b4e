"""`mmdata train`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    config: Annotated[Path, typer.Argument(help="A training config, as YAML", metavar="CONFIG")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics.jsonl")],
) -> None:
    """Train the bundled model. The same command again resumes from the last checkpoint."""
    from mmdata.trainer import load_config, train

    result = train(load_config(config), out)
    say(f"step {result.step}: {result.checkpoint}")
