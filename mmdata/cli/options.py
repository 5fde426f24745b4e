"""Options that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmdata.errors import printable

PlanFile = Annotated[Path, typer.Argument(help="A plan, as YAML", metavar="PLAN")]
RunDir = Annotated[str, typer.Option("--run-dir", help="Folder of the run: manifest, ledger and data", metavar="D")]
CorpusFolder = Annotated[str, typer.Argument(help="Folder of a corpus, or of a run: then its newest corpus", metavar="CORPUS")]
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


def corpus_of(folder: str) -> str:
    """Return the folder of a corpus, or of the newest corpus of a run."""
    from mmdata.errors import ConfigError
    from mmdata.storage import open_store

    if open_store(folder).exists("corpus.json"):
        return folder
    from mmdata.engine import RunStore

    run = RunStore(folder)
    if run.owner() is None:
        raise ConfigError(f"{folder}: neither a corpus nor a run folder", hint="give a folder with corpus.json or run.json in it")
    made = (run.manifest(number)["corpus"] for number in reversed(run.finished()))
    newest = next((corpus for corpus in made if corpus is not None), None)
    if newest is None:
        raise ConfigError(f"{folder}: no generation of this run has made a corpus yet", hint="finish the run")
    return f"{folder}/{newest}"
