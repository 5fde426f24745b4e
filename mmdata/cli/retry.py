"""`mmdata retry`."""

from typing import Annotated

import typer

from mmdata.cli.options import Allow, say, tell


def command(  # noqa: PLR0913, PLR0917 - each is a flag
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Outcomes to ask about again, by comma; `timeout` stands for all of its kind  [default: what may pass by itself]"
        ),
    ] = None,
    allow: Allow = None,
    dry_run: Annotated[bool, typer.Option(help="Print how many rows would be asked about; do nothing")] = False,
    executor: Annotated[str, typer.Option(help="serial, processes or ray")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Workers; default: one a core")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; implies --executor ray")] = None,
) -> None:
    """Fetch again what failed in RUN and may not fail now, and nothing else; then judge and write anew what that changes."""
    from mmdata.engine.retry import retry_runner
    from mmdata.executors import open_executor
    from mmdata.report.table import forecast_text, funnel_text

    runner = retry_runner(run, None if classes is None else classes.split(","), tuple(allow or ()))
    forecast = runner.forecast()
    tell(forecast_text(forecast))
    fresh = forecast.generation > runner.run.last_number()
    if fresh and all(step.computed.most == 0 for step in forecast.steps):
        tell("no row ended in one of these outcomes: there is nothing to ask again")
        return
    if dry_run:
        return
    pool = open_executor("ray" if address else executor, workers, address)
    try:
        say(funnel_text(runner.execute(pool)))
    finally:
        pool.close()
