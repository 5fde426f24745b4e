"""`mmdata status`."""

from typing import Annotated

import typer

from mmdata.cli.options import say
from mmdata.errors import ConfigError, printable


def command(
    run: Annotated[str, typer.Argument(help="Folder of a run", metavar="RUN")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every 2 s until the run ends")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON")] = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print the progress in Prometheus' text format")] = False,
) -> None:
    """Print how far RUN is, as its last report said, and what its generations came to."""
    import json

    from mmdata.report.status import read_status, status_text

    if watch + as_json + prometheus > 1:
        raise ConfigError("--watch, --json and --prometheus exclude each other", hint="give one of them")
    if watch:
        _watch(run)
    elif as_json:
        say(json.dumps(read_status(run), indent=1, ensure_ascii=False))
    elif prometheus:
        from mmdata.engine.metrics import prometheus_text

        facts = read_status(run)["progress"]
        if facts is None:
            raise ConfigError(f"{run}: no progress is written there yet", hint="it appears when the first task has started")
        say(prometheus_text(facts).removesuffix("\n"))
    else:
        say(status_text(run))


def _watch(run: str) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from mmdata.clock import Clock
    from mmdata.report import status

    frames = status.watch(run, Clock())
    try:
        with Live(console=Console(), auto_refresh=False) as live:
            for text in frames:
                live.update(Text(printable(text), no_wrap=True, overflow="ellipsis"), refresh=True)
    except KeyboardInterrupt:  # the way out of a watch
        return
