"""How far a run is: on a terminal a live line, elsewhere a line every 10 s; `status.json` for all who are not there.

The scheduler says what happens; nothing here decides what it does next, and nothing here stops it. The shape of
`status.json` is `mmdata.engine.facts.Facts`. With OTEL_EXPORTER_OTLP_ENDPOINT set, finished tasks are spans as well.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from mmdata.clock import Clock
from mmdata.engine.facts import FORMAT, STATUS, Facts, State, counted, duration, error_line, size, time_left
from mmdata.engine.tally import Tally
from mmdata.engine.task import Task, TaskReport
from mmdata.errors import ConfigError, RunError, printable
from mmdata.storage import Store

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from mmdata.engine.telemetry import Telemetry

LINE_S = 10.0
LIVE_S = 0.5
STATUS_S = 2.0
ERRORS_SHOWN = 20
ERROR_WIDTH = 60  # of the live line
OTEL_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


@dataclass
class Progress:
    """What a run has done, is doing and has still to do.

    stages      labels of the plan's steps in order: `source`, each stage's name, then the sink's if there is one
    total       tasks of the run; it may be raised while it runs, when a pass finds out how many it needs
    partitions  of the run; without it nothing can be said of what is left
    provider    takes the spans; by default one is made if the environment asks for it
    """

    store: Store
    name: str
    stages: list[str]
    total: int
    stream: TextIO | None = None
    clock: Clock = field(default_factory=Clock)
    partitions: int | None = None
    provider: "TracerProvider | None" = None

    def __post_init__(self) -> None:
        self._out = self.stream or sys.stderr
        self._live = self._out.isatty()
        self._tally = Tally(self.stages, self.partitions)
        self._started = self.clock.monotonic()
        self._next_line = self._started + (0.0 if self._live else LINE_S)
        self._next_facts = self._next_status = self._started
        self._telemetry = self._open_telemetry()
        self._facts = self._gather("running")

    def launched(self, task: Task) -> None:
        """Note that a task has been handed to a worker."""
        self._tally.launch(task, self.clock.monotonic())

    def done(self, task: Task, record: dict[str, Any], report: TaskReport | None) -> None:
        """Note a finished task; without a report it was found finished."""
        dropped = self._tally.finish(task, record, report, self.clock.monotonic())
        if self._telemetry is not None and report is not None:
            self._telemetry.task(task, report, [stage.name for stage in self._tally.stages], dropped)

    def failed(self, task: Task, message: str, again: bool = True) -> None:
        """Note a failed attempt at a task; unless it is to be made again, its partition is given up."""
        flight = self._tally.fail(task, message, given_up=not again)
        if self._telemetry is not None:
            now = self.clock.monotonic()
            self._telemetry.failed(task, now - (flight.since if flight else now), message, again=again)

    def show(self) -> None:
        """Print and save the state if it is time to."""
        now = self.clock.monotonic()
        if now < self._next_facts:
            return
        self._next_facts = now + LIVE_S
        self._facts = self._gather("running")
        if now >= self._next_line:
            self._next_line = now + (LIVE_S if self._live else LINE_S)
            self._print_line()
        if now >= self._next_status:
            self._next_status = now + STATUS_S
            with suppress(OSError):  # a store that does not answer now may do so in two seconds
                self._save()

    def end(self, state: State, why: str = "") -> None:
        """Print and save how it ended, and what failed on the way."""
        self._tally.flying.clear()
        self._facts = self._gather(state, why)
        self._print_line(last=True)
        for error in self._facts["errors"]:
            self._write(f"  {error_line(error)}\n")
        with suppress(OSError, RunError):  # the run has ended for a better reason
            self._save()
        if self._telemetry is not None:
            self._write(self._telemetry.end(state, why))
            self._telemetry = None

    def facts(self) -> Facts:
        """Return the state at the last look; other threads may ask."""
        return self._facts

    def _gather(self, state: State, why: str = "") -> Facts:
        now = self.clock.monotonic()
        tally = self._tally
        stages = tally.stage_facts(now, self.total, ended=state.startswith("done"))
        known = [stage for stage in stages if stage["busy_left_s"]]
        busy = sum(stage["busy_s"] for stage in stages)
        busy_left = sum(stage["busy_left_s"] or 0.0 for stage in known)
        worst = max(known, key=lambda stage: stage["busy_left_s"] or 0.0, default=None)
        seconds = now - self._started
        return {
            "format": FORMAT, "run": self.name, "state": state, "why": why, "updated_wall": self.clock.wall(),
            "seconds": round(seconds, 1),
            # Workers go on sharing the work as they did so far.
            "seconds_left": round(seconds * busy_left / busy, 1) if known and busy and state == "running" else None,
            "seconds_left_at_least": any(stage["busy_left_s"] is None for stage in stages),
            "share": round(tally.done / max(self.total, 1), 4),
            "tasks": {
                "total": self.total, "done": tally.done, "reused": tally.reused, "failed": tally.failed,
                "given_up": tally.given_up, "in_flight": len(tally.flying),
            },
            "bytes_in_flight": sum(flight.task.bytes for flight in tally.flying.values()),
            "bottleneck": worst["stage"] if worst is not None and state == "running" else None,
            "outcomes": {reason: num for reason, num in tally.outcomes.most_common() if num},
            "errors": tally.errors.facts(ERRORS_SHOWN), "stages": stages,
        }  # fmt: skip

    def _print_line(self, *, last: bool = False) -> None:
        text = summary(self._facts)
        if not self._live:
            self._write(f"{text}\n")
            return
        # A line that wraps could not be taken back.
        text = text if last else text[: _columns(self._out) - 1]
        self._out.write("\r\033[K")
        self._write(f"{text}\n" if last else text)

    def _write(self, text: str) -> None:
        self._out.write(printable(text))
        self._out.flush()

    def _save(self) -> None:
        self.store.put(STATUS, (json.dumps(self._facts, indent=1, ensure_ascii=False) + "\n").encode())

    def _open_telemetry(self) -> "Telemetry | None":
        if self.provider is None and not _spans_wanted():
            return None
        try:
            from mmdata.engine.telemetry import Telemetry
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the environment asks for OpenTelemetry spans, but `{error.name}` is not installed",
                hint="pip install 'mmdata[telemetry]', or set OTEL_SDK_DISABLED=true",
            ) from error
        return Telemetry(self.name, self.clock, self.provider)


def summary(facts: Facts) -> str:
    """Return the state as one line."""
    left = time_left(facts)
    tasks = facts["tasks"]
    parts = [
        f"{facts['run']}: {facts['share']:4.0%} of {tasks['total']:,} tasks, {duration(facts['seconds'])}{left and ', '}{left}"
    ]
    if tasks["in_flight"]:
        parts.append(f"{tasks['in_flight']} in flight ({size(facts['bytes_in_flight'])})")
    slowest = max(facts["stages"], key=lambda stage: (stage["busy_s"], stage["computed"]))
    stage = next((stage for stage in facts["stages"] if stage["stage"] == facts["bottleneck"]), slowest)
    if stage["rows_per_s"] is not None:
        parts.append(f"{'bottleneck' if facts['bottleneck'] else 'slowest'} {stage['stage']}, {stage['rows_per_s']:,.0f} rows/s")
    if facts["errors"] and facts["state"] == "running":  # at the end they are listed
        worst = error_line(facts["errors"][0])
        parts.append(f"errors: {worst if len(worst) <= ERROR_WIDTH else worst[:ERROR_WIDTH] + '...'}")
    if facts["outcomes"]:
        parts.append(f"dropped: {counted(facts['outcomes'], 3)}")
    return " · ".join(parts)


def _spans_wanted() -> bool:
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(os.environ.get(name) for name in OTEL_VARIABLES)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # a terminal without a size says 0
    except OSError:
        return 80
