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
    max_failed: Annotated[int | None, typer.Option(min=0, help="Partitions that may be given up; else the plan's budget")] = None,
    max_dropped: Annotated[float | None, typer.Option(min=0, max=1, help="Share of rows that may be dropped; likewise")] = None,
    metrics: Annotated[str | None, typer.Option(help="Serve Prometheus metrics there", metavar="HOST:PORT")] = None,
) -> None:
    """Run PLAN. The same command again resumes it."""
    from mmdata.engine import Runner
    from mmdata.executors import open_executor
    from mmdata.plan import load_plan
    from mmdata.report.table import forecast_text, funnel_text

    loaded = load_plan(plan)
    changes = {"failed_partitions": max_failed, "dropped_share": max_dropped}
    budget = loaded.budget.model_copy(update={name: value for name, value in changes.items() if value is not None})
    runner = Runner(loaded if until is None else loaded.until(until), run_dir, tuple(allow or ()), limit, budget, metrics=metrics)
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
    if result.failed:
        tell(f"{len(result.failed)} partitions were given up; the same command tries them again. The first:")
        tell("  " + next(iter(result.failed.values())))
        raise typer.Exit(3)
