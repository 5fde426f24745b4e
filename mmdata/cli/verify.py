"""`mmdata verify`."""

from typing import Annotated

import typer

from mmdata.cli.options import CorpusFolder, corpus_of, say, tell


def command(
    folder: CorpusFolder,
    workers: Annotated[int | None, typer.Option(help="Threads that read and hash  [default: one a core]", min=1)] = None,
) -> None:
    """Compare every byte of a corpus with its manifest; exit with 1 when it is damaged, or has no checksums."""
    from mmdata.shards import verify

    verdict = verify(corpus_of(folder), workers=workers, progress=lambda done, total: tell(f"{_mb(done)} of {_mb(total)} read"))
    for problem in verdict.problems:
        say(str(problem))
    for name in verdict.unlisted:
        say(f"{name}: not in the manifest, so nothing reads it (remove it if nobody needs it)")
    if verdict.unchecked:
        say(
            f"{len(verdict.unchecked)} of {verdict.shards} shards have no checksums: only their sizes and the index were compared"
        )
        say("  to have them: remove corpus.json and index/, and run `mmdata index FOLDER --checksums`, which reads every byte")
    state = "whole" if verdict.whole else _state(len(verdict.problems))
    read = f"{verdict.shards} shards, {verdict.samples:,} samples, {_mb(verdict.bytes)} in {verdict.seconds:.1f} s"
    say(f"{state}: {read}, {_mb(verdict.bytes / max(verdict.seconds, 1e-9))}/s")
    if not verdict.whole:
        raise typer.Exit(1)


def _state(problems: int) -> str:
    return f"damaged ({problems} problems)" if problems else "not checked"


def _mb(num: float) -> str:
    return f"{num / 1e6:,.1f} MB"
