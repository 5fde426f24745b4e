"""`mmdata export`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import corpus_of, say, tell

IMG2DATASET, MODEL = "img2dataset", "model"


def command(
    form: Annotated[str, typer.Argument(help="img2dataset, energon, mds, litdata, parquet or model", metavar="FORMAT")],
    path: Annotated[str, typer.Argument(help="Folder of a run that has ended, of a corpus, or of a training", metavar="PATH")],
    out: Annotated[str, typer.Argument(help="Folder to write to", metavar="OUT")],
    output_format: Annotated[str | None, typer.Option(help="Of img2dataset: webdataset, files or parquet")] = None,
) -> None:
    """Write PATH to OUT for other programs.

    `img2dataset` writes what a run downloaded, its flat folder, additions and retries merged. `model` writes the weights of a
    checkpoint, or of the newest of a training, as safetensors beside their config. The other formats write a corpus.
    """
    if form == IMG2DATASET:
        _download(path, out, output_format or "webdataset")
    elif form == MODEL:
        _model(path, out, output_format)
    else:
        _corpus(form, path, out, output_format)


def _download(run_dir: str, out: str, output_format: str) -> None:
    from mmdata.errors import ConfigError, did_you_mean
    from mmdata.report.export import Request, export_img2dataset
    from mmdata.shards.img2dataset import FORMATS, Layout

    if output_format not in FORMATS:
        raise ConfigError(f"no output format is called `{output_format}`", hint=did_you_mean(output_format, FORMATS))
    say(export_img2dataset(run_dir, out, Request(Layout.model_validate({"output_format": output_format}))).as_text())


def _model(path: str, out: str, output_format: str | None) -> None:
    from mmdata.errors import ConfigError
    from mmdata.trainer import export_model

    if output_format is not None:
        raise ConfigError(f"--output-format is not for `{MODEL}`", hint="leave it out")
    say(str(export_model(Path(path), Path(out))))


def _corpus(form: str, folder: str, out: str, output_format: str | None) -> None:
    from mmdata.errors import ConfigError, did_you_mean
    from mmdata.shards.export import FORMATS, export_corpus

    if form not in FORMATS:
        raise ConfigError(f"no export is called `{form}`", hint=did_you_mean(form, (IMG2DATASET, MODEL, *FORMATS)))
    if output_format is not None:
        raise ConfigError(f"--output-format is not for `{form}`", hint=f"leave it out, or export `{IMG2DATASET}`")
    done = export_corpus(form, corpus_of(folder), out, lambda num, total: tell(f"{num:,} of {total:,} samples written"))
    files = f"{done.files:,} files, {done.bytes / 1e6:,.1f} MB in {done.seconds:.1f} s"
    say(f"{done.samples:,} samples written: {files}")
