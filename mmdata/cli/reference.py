"""`mmdata reference`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(  # noqa: PLR0913, PLR0917 - each is a flag
    source: Annotated[str, typer.Argument(help="Eval set: a folder of images, parquet, or WebDataset tars", metavar="SOURCE")],
    out: Annotated[str, typer.Argument(help="Folder of the reference", metavar="OUT")],
    columns: Annotated[str, typer.Option(help="What is kept, with commas between")] = "phash,pdq,pixels,sha256,folded(text)",
    name: Annotated[str | None, typer.Option(help="What it is called; default: as the folder")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the eval set")] = "unknown",
    text: Annotated[str | None, typer.Option(help="Column of a parquet that holds the captions")] = None,
    model: Annotated[str | None, typer.Option(help="Model of open_clip for `clip_score_image_embedding` and `_text_`")] = None,
    weights: Annotated[str | None, typer.Option(help="Its weights: a tag or a file")] = None,
    executor: Annotated[str, typer.Option(help="serial, processes or ray")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Workers; default: one a core")] = None,
) -> None:
    """Make of an eval set what `decontaminate` and `against` compare rows with. The same command again resumes it."""
    from mmdata.executors import open_executor
    from mmdata.report.build_reference import EvalSet, build_reference

    title = "".join(char if char.isalnum() or char in "-_" else "-" for char in name or Path(source).stem)
    given = EvalSet(source, title, licence, text, model, weights)
    pool = open_executor(executor, workers)
    try:
        made = build_reference(given, out, tuple(part.strip() for part in columns.split(",")), pool)
    finally:
        pool.close()
    say(f"{out}: {made.facts.rows:,} rows of {made.name}: {', '.join(made.facts.columns)}")
