"""`mmdata gc`."""

from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    keep: Annotated[int, typer.Option(min=1, help="Keep N finished generations: the one asked for last, then the newest")] = 1,
    unfinished: Annotated[bool, typer.Option(help="Also free what was begun and never finished")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be freed")] = False,
) -> None:
    """Free what no kept generation of RUN refers to."""
    from mmdata.engine.gc import collect

    freed = collect(run, keep, unfinished=unfinished, dry_run=dry_run)
    verb = "would free" if dry_run else "freed"
    kept = ", ".join(map(str, freed.kept)) or "none"
    gone = ", ".join(map(str, freed.gone)) or "none"
    say(f"{verb} {len(freed.objects):,} objects, {freed.bytes / 1e6:,.1f} MB; generations kept: {kept}; gone: {gone}")
