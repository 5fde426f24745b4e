"""What moves between driver and workers: tasks carry names, reports carry counts; and what an executor is."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Job:
    """What all tasks of one call share: the run folder and generation, and what may differ from call to call.

    digest  of the generation's file: a folder that was deleted and made anew is another one
    plan    the plan as JSON, with its sources where they lie now
    keys    of the source and of every step, in order
    share   how many machines work on it
    """

    run: str
    generation: int
    digest: str
    plan: str
    keys: tuple[str, ...]
    allow: tuple[str, ...]
    share: int = 1


@dataclass(frozen=True)
class Task:
    """One piece of work; everything else is in the run folder.

    job          what it shares with all others
    kind         `segment`: a partition through a segment; `pass`: one unit of one pass of a step
    step         index of the segment, or of the step (the sink is the step after the last)
    unit         partition number, bucket, or shard
    key          names what it commits
    inputs       record keys it builds on, by partition number
    careful      an attempt at it ended badly: stages work in a disposable child, and the row that ends it is found
    deadline_s   so many seconds after a worker took it, it is cancelled
    """

    job: Job
    kind: Literal["segment", "pass"]
    step: int
    unit: int
    key: str
    pass_index: int = 0
    inputs: dict[int, str] = field(default_factory=dict)
    verdicts: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    holds_model: bool = False
    careful: bool = False
    deadline_s: float = 3600.0
    bytes: int = 0
    label: str = ""

    @property
    def name(self) -> str:
        """What tells it from all other tasks of the run folder."""
        return f"{self.key}/{self.pass_index}/{self.unit}"


@dataclass(frozen=True)
class TaskReport:
    """What a finished task says: its key, its record, how long it took (as a whole and by step), where."""

    key: str
    record: dict[str, Any]
    seconds: float
    worker: str
    step_seconds: dict[int, float] = field(default_factory=dict)


class Executor(Protocol):
    """Where tasks run. Serial, processes and Ray give the same bytes."""

    @property
    def slots(self) -> int:
        """How many tasks may be in flight."""
        ...

    @property
    def machines(self) -> int:
        """How many machines they run on: what the outside world allows the run is divided by that."""
        ...

    def submit(self, task: Task) -> "Future[TaskReport]":
        """Start a task; its future is `running()` from when a worker has it."""
        ...

    def cancel(self, task: Task) -> None:
        """Stop a task, ending its worker if it must; its future fails with a PartitionError."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
