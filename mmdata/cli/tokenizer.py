"""`mmdata tokenizer`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say

app = typer.Typer(help="Image tokenizers for the trainer.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Image tokenizers for the trainer."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A tokenizer's config, as YAML", metavar="CONFIG")],
    out: Annotated[Path, typer.Option(help="Folder of the tokenizer: weights, report.json and samples.png", metavar="FOLDER")],
) -> None:
    """Train an image tokenizer on a corpus. The same command again goes on where it was stopped."""
    from mmdata.trainer.vision import load_tokenizer_config, train_image_tokenizer

    result = train_image_tokenizer(load_tokenizer_config(config), out)
    say(f"{result.figures.as_text()}\n{'digest':<16} {result.digest}\n{'folder':<16} {result.folder}")
