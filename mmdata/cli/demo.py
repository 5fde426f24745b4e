"""`mmdata demo`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="Folder of the demo run")] = Path("runs/demo"),
    at_least: Annotated[float | None, typer.Option(help="Another CLIP threshold than the plan's", min=-1, max=1)] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Only serve the bundled images, until Ctrl-C")] = False,
    executor: Annotated[str, typer.Option(help="serial, processes or ray")] = "processes",
) -> None:
    """Run the main job on the bundled set: serve, download, score, filter, dedupe, shard, train, and show."""
    from mmdata.demo import run_demo, serve_forever

    if serve:
        serve_forever()
    else:
        run_demo(out, at_least, executor)
