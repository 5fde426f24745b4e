"""`mmdata export`."""

from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    form: Annotated[str, typer.Argument(help="What to write: img2dataset", metavar="FORMAT")],
    run_dir: Annotated[str, typer.Argument(help="Folder of a run that has ended", metavar="RUN")],
    out: Annotated[str, typer.Argument(help="Folder to write to", metavar="OUT")],
    output_format: Annotated[str, typer.Option(help="webdataset, files or parquet")] = "webdataset",
) -> None:
    """Write what RUN downloaded to OUT: `img2dataset` is its flat folder, additions and retries merged."""
    from mmdata.errors import ConfigError, did_you_mean
    from mmdata.report.export import Request, export_img2dataset
    from mmdata.shards.img2dataset import FORMATS, Layout

    if form != "img2dataset":
        raise ConfigError(f"no export is called `{form}`", hint="known: img2dataset")
    if output_format not in FORMATS:
        raise ConfigError(f"no output format is called `{output_format}`", hint=did_you_mean(output_format, FORMATS))
    done = export_img2dataset(run_dir, out, Request(Layout.model_validate({"output_format": output_format})))
    say(done.as_text())
