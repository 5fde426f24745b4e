"""A run without an engine: the test says what happens, and reads what is said of it."""

import io
import json
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from mmdata.clock import ManualClock
from mmdata.engine.facts import Facts, StageFacts
from mmdata.engine.progress import Progress
from mmdata.engine.task import Job, Task, TaskReport
from mmdata.storage import open_store

JOB = Job("/nowhere", 1, "", "{}", (), ())
STAGES = ["source", "download", "keep", "dedupe", "keep", "sink shards"]
EPOCH_S = 1_700_000_000


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


class Run:
    """A run of four partitions without an engine: the test says what happens."""

    def __init__(self, folder: Path, *, stream: io.StringIO | None = None, provider: TracerProvider | None = None) -> None:
        self.clock, self.stream, self.folder = ManualClock(), stream or io.StringIO(), folder
        self.store = open_store(str(folder))
        self.store.create("run.json", json.dumps({"plan": "toy", "source": ["catalog:pairs"]}).encode())
        self.progress = Progress(
            self.store, "toy", STAGES, 30, stream=self.stream, clock=self.clock, partitions=4, provider=provider
        )

    def segment(self, unit: int, number: int = 0) -> Task:
        """Return a task: segment 0 is download and the first keep, segment 1 dedupe's verdicts and the second keep."""
        label = ("download + keep", "dedupe + keep")[number]
        return Task(JOB, "segment", number, unit, f"s{number}u{unit}", bytes=1 << 20, label=label)

    def scatter(self, unit: int, step: int = 2, index: int = 0) -> Task:
        """Return a unit of a pass of dedupe (step 2) or of the sink (step 4)."""
        label = "dedupe" if step == 2 else "sink shards"
        inputs = {unit: f"s0u{unit}"} if index == 0 else {}
        return Task(JOB, "pass", step, unit, f"p{step}", pass_index=index, inputs=inputs, label=label)

    def work(self, task: Task, record: dict[str, Any], seconds: dict[int, float]) -> None:
        """Let a task take so many seconds by step, and finish."""
        self.progress.launched(task)
        self.clock.sleep(sum(seconds.values()))
        self.progress.done(task, record, TaskReport(task.key, record, sum(seconds.values()), "node:7", seconds))

    def first(self, unit: int, dropped: dict[str, int] | None = None) -> None:
        """Finish a partition's first segment: 10 rows in 1 s + 4 s + 0 s."""
        self.work(self.segment(unit), first_record(dropped), {-1: 1.0, 0: 4.0, 1: 0.0})

    def facts(self) -> Facts:
        """Look now."""
        self.clock.sleep(0.5)
        self.progress.show()
        return self.progress.facts()

    def stage(self, name: str) -> StageFacts:
        """Look at a stage now."""
        return next(stage for stage in self.facts()["stages"] if stage["stage"] == name)

    def saved(self) -> Facts:
        """Return status.json."""
        found: Facts = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
        return found


def first_record(dropped: dict[str, int] | None = None, computed: int = 10) -> dict[str, Any]:
    dropped = {"http_4xx": 2} if dropped is None else dropped
    steps = [
        {"stage": "download", "index": 0, "computed": computed, "needed": 10},
        {"stage": "keep", "index": 1, "computed": 8, "needed": 8},
    ]
    return {"rows_in": 10, "kept": 10 - sum(dropped.values()), "dropped": dropped, "steps": steps}


def second_record(dropped: dict[str, int]) -> dict[str, Any]:
    steps = [{"stage": "keep", "index": 3, "computed": 7, "needed": 7}]
    return {"rows_in": 10, "kept": 10 - sum(dropped.values()), "dropped": dropped, "steps": steps}
