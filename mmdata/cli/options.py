"""Options that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmdata.errors import printable

PlanFile = Annotated[Path, typer.Argument(help="A plan, as YAML", metavar="PLAN")]
RunDir = Annotated[str, typer.Option("--run-dir", help="Folder of the run: manifest, ledger and data", metavar="D")]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="Let ADDRESS:PORT be dialled although it is not public; NAME=ADDRESS:PORT dials NAME there"),
]


def say(text: str) -> None:
    """Print data."""
    sys.stdout.write(printable(text) + "\n")


def tell(text: str) -> None:
    """Print what is not data."""
    sys.stderr.write(printable(text) + "\n")
