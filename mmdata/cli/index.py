"""`mmdata index`."""

from typing import Annotated

import typer

from mmdata.cli.options import say, tell


def command(
    folder: Annotated[str, typer.Argument(help="Folder of .tar files in the WebDataset way, local or in a store")],
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read every byte for SHA-256 and xxh3, not only headers")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Threads  [default: as the folder needs]", min=1)] = None,
) -> None:
    """Make a folder of foreign tars a corpus: indexes and corpus.json beside them; the tars stay as they are."""
    from mmdata.shards import index_folder

    done = index_folder(
        folder, checksums=checksums, workers=workers, progress=lambda now, total: tell(f"{now:,} of {total:,} tars read")
    )
    for caution in done.cautions:
        tell(f"note: {caution}")
    if not done.checksums:
        tell("note: without checksums damage is found only where it breaks a header; `--checksums` reads every byte, once")
    splits = ", ".join(f"{split} {count:,}" for split, count in done.splits.items())
    word = "indexed" if done.made else "was indexed already"
    say(f"{word}: {done.shards:,} tars, {done.samples:,} samples ({splits}), {done.blocks:,} blocks")
