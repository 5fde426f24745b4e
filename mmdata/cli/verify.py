"""`mmdata verify`."""

from typing import Annotated

import typer

from mmdata.cli.options import say, tell


def command(
    folder: Annotated[str, typer.Argument(help="Folder of a corpus, or of a run: then its newest corpus", metavar="CORPUS")],
    workers: Annotated[int | None, typer.Option(help="Threads that read and hash  [default: one a core]", min=1)] = None,
) -> None:
    """Compare every byte of a corpus with its manifest; exit with 1 when it is damaged, or has no checksums."""
    from mmdata.shards import verify

    verdict = verify(_corpus(folder), workers=workers, progress=lambda done, total: tell(f"{_mb(done)} of {_mb(total)} read"))
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


def _corpus(folder: str) -> str:
    from mmdata.errors import ConfigError
    from mmdata.storage import open_store

    if open_store(folder).exists("corpus.json"):
        return folder
    from mmdata.engine import RunStore

    run = RunStore(folder)
    if run.owner() is None:
        raise ConfigError(f"{folder}: neither a corpus nor a run folder", hint="give a folder with corpus.json or run.json in it")
    made = (run.manifest(number)["corpus"] for number in reversed(run.finished()))
    newest = next((corpus for corpus in made if corpus is not None), None)
    if newest is None:
        raise ConfigError(f"{folder}: no generation of this run has made a corpus yet", hint="finish the run")
    return f"{folder}/{newest}"


def _mb(num: float) -> str:
    return f"{num / 1e6:,.1f} MB"
