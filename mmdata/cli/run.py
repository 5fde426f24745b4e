"""`mmdata run`."""

from typing import Annotated

import typer

from mmdata.cli.options import Allow, PlanFile, RunDir, say, tell


def command(  # noqa: PLR0913, PLR0917 - each is a flag
    plan: PlanFile,
    run_dir: RunDir,
    allow: Allow = None,
    dry_run: Annotated[bool, typer.Option(help="Print what is kept and what would be computed; do nothing")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N rows of the source")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage, without writing a corpus", metavar="STAGE")] = None,
    executor: Annotated[str, typer.Option(help="serial, processes or ray")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Workers; default: one a core")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; implies --executor ray")] = None,
) -> None:
    """Run PLAN. The same command again resumes it."""
    from mmdata.engine import Runner
    from mmdata.executors import open_executor
    from mmdata.plan import load_plan
    from mmdata.report.table import forecast_text, funnel_text

    loaded = load_plan(plan)
    runner = Runner(loaded if until is None else loaded.until(until), run_dir, tuple(allow or ()), limit)
    forecast = runner.forecast()
    tell(forecast_text(forecast))
    if dry_run:
        return
    pool = open_executor("ray" if address else executor, workers, address)
    try:
        result = runner.execute(pool)
    finally:
        pool.close()
    say(funnel_text(result))
