"""`mmdata atlas`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say, tell


def command(
    config: Annotated[
        Path, typer.Argument(help="An atlas, as YAML: a training config as `base`, codes, seeds", metavar="CONFIG")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the runs, atlas.json and index.html")],
) -> None:
    """Train every objective with every way of sharing weights at equal compute, and compare both directions."""
    from mmdata.report.atlas import atlas_text, write_atlas
    from mmdata.trainer.atlas import load_atlas, run_atlas

    path = run_atlas(load_atlas(config), out, tell)
    write_atlas(out / "index.html", path)
    say(atlas_text(path))
    tell(f"wrote {out / 'index.html'}")
