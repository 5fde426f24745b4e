"""`mmdata sample`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder", metavar="CHECKPOINT")],
    caption: Annotated[list[str] | None, typer.Option(help="Generate an image from this caption")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Generate a caption for this image file")] = None,
    out: Annotated[Path, typer.Option(help="Folder for generated images")] = Path("samples"),
    seed: Annotated[int, typer.Option(help="Seed of the noise")] = 0,
) -> None:
    """Generate images from captions, and captions from images."""
    from mmdata.errors import ConfigError
    from mmdata.trainer import sample_captions, sample_images

    if not caption and not image:
        raise ConfigError("nothing to sample from", hint="give --caption TEXT or --image FILE, as often as you like")
    for path in sample_images(checkpoint, caption or [], out, seed):
        say(str(path))
    for text in sample_captions(checkpoint, image or []):
        say(text)
