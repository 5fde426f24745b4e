"""`mmdata reshard`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import say, tell


def command(
    corpus: Annotated[str, typer.Argument(help="Folder of a corpus")],
    subset: Annotated[
        Path, typer.Argument(help="Ids to keep, a .npy of `u8,u8`; repeats are copies", exists=True, dir_okay=False)
    ],
    out: Annotated[str, typer.Argument(help="Folder to write to")],
    samples: Annotated[int, typer.Option(help="Samples in a shard, at most", min=1)] = 10_000,
    max_mib: Annotated[int, typer.Option(help="MiB in a shard, at most", min=1)] = 1024,
    uid: Annotated[
        bool, typer.Option("--uid", help="Match the `uid` in each sample's json, as DataComp's shards have it")
    ] = False,
) -> None:
    """Write the samples of CORPUS that SUBSET names to OUT, in CORPUS's order: DataComp's subsets, repeats included."""
    from mmdata.shards import reshard_corpus

    done = reshard_corpus(
        corpus, subset, out, samples=samples, max_mib=max_mib, uid=uid,
        progress=lambda what, now, total: tell(f"{now:,} of {total:,} {what}"),
    )  # fmt: skip
    say(f"{done.samples:,} samples in {done.shards:,} shards: {done.url}")
    say(f"{done.distinct - done.missing:,} of {done.distinct:,} ids found, {done.missing:,} not in the corpus")
