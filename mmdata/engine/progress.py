"""How far a run is: on a terminal a live line, elsewhere a line every 10 s; `status.json` for machines.

These are facts that vary: they enter no column file, shard or digest.
"""

import json
import sys
import time
from collections import Counter
from typing import Any, TextIO

from mmdata.storage import Store

LINE_S = 10.0
LIVE_S = 0.5
STATUS_S = 2.0


class Progress:
    """Counts finished tasks and rows, and says rate, share done, time left, and what fails most."""

    def __init__(self, store: Store, name: str, total_tasks: int, stream: TextIO | None = None) -> None:
        self.store, self.name, self.total = store, name, total_tasks
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.done = self.reused = self.rows = 0
        self.drops: Counter[str] = Counter()
        self.started = time.monotonic()
        self._last_line = self.started if not self.live else 0.0
        self._last_status = 0.0
        self.label = ""

    def task(self, label: str, rows: int, dropped: dict[str, int], *, reused: bool) -> None:
        """Note a finished task."""
        self.label = label
        self.done += 1
        self.reused += reused
        self.rows += rows
        self.drops = Counter(dropped) if not reused else self.drops
        self.show()

    def end(self, state: str) -> None:
        """Print and save the last state: `done` or `stopped`."""
        self.show(last=True, state=state)

    def show(self, *, last: bool = False, state: str = "running") -> None:
        """Print and save the state if it is time to."""
        now = time.monotonic()
        if last or now - self._last_line >= (LIVE_S if self.live else LINE_S):
            self._last_line = now
            end = "\n" if last or not self.live else ""
            start = "\r\033[K" if self.live else ""
            self.stream.write(f"{start}{self.line()}{end}")
            self.stream.flush()
        if last or now - self._last_status >= STATUS_S:
            self._last_status = now
            self.store.put("status.json", json.dumps(self.facts(state), indent=1).encode())

    def facts(self, state: str) -> dict[str, Any]:
        """Return the state as JSON has it; seconds and rows a second."""
        seconds = time.monotonic() - self.started
        computed = self.done - self.reused
        left = (self.total - self.done) * seconds / computed if computed else None
        return {
            "state": state, "run": self.name, "stage": self.label, "tasks_done": self.done, "tasks_total": self.total,
            "tasks_reused": self.reused, "share": round(self.done / max(self.total, 1), 4), "row_steps": self.rows,
            "rows_per_s": round(self.rows / seconds, 1) if seconds else 0.0, "seconds": round(seconds, 1),
            "seconds_left": None if left is None else round(left, 1), "top_drops": dict(self.drops.most_common(3)),
        }  # fmt: skip

    def line(self) -> str:
        """Return the state as one line."""
        facts = self.facts("")
        left = "" if facts["seconds_left"] is None else f", {facts['seconds_left']:.0f} s left"
        drops = ", ".join(f"{reason} {num}" for reason, num in facts["top_drops"].items())
        return (
            f"{self.name}: {facts['share']:4.0%} of {self.total} tasks, {facts['rows_per_s']:,.0f} rows/s, "
            f"{facts['seconds']:.0f} s{left} · {self.label}" + (f" · drops: {drops}" if drops else "")
        )
