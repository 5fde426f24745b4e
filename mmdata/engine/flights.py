"""What is in flight: as many tasks as the executor has slots for, bounded by estimated bytes, each with a deadline.

A deadline counts from when a worker has the task: one that waits for room on a busy cluster is not late.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from heapq import heappop, heappush

from mmdata.clock import Clock
from mmdata.engine.progress import Progress
from mmdata.engine.task import Executor, Task, TaskReport
from mmdata.errors import PartitionError

BYTES_A_SLOT = 2 << 30  # local scratch that a worker's task may count on; a cluster has as many times that as slots
CANCEL_S = 60.0  # an executor that does not answer a cancel within this has lost the task
_POLL_S = 0.5


@dataclass
class _Flight:
    """A task that an executor has, since when a worker has it, and whether it was told to stop."""

    task: Task
    since: float | None = None
    cancelled: bool = False


class Flights:
    """The tasks that wait for a worker, and those that have one."""

    def __init__(self, executor: Executor, ready: Iterator[Task], progress: Progress | None, clock: Clock) -> None:
        self.executor, self.ready, self.progress, self.clock = executor, ready, progress, clock
        self.queue: list[tuple[int, int, int, Task]] = []
        self.flying: dict[Future[TaskReport], _Flight] = {}
        self.tries: Counter[str] = Counter()
        self._pushed = 0

    def push(self, task: Task) -> None:
        """Let a task wait; later segments go first, so that partitions get done."""
        self._pushed += 1
        heappush(self.queue, (-task.step, task.unit, self._pushed, task))

    def launch(self) -> bool:
        """Give the executor what it has room for; return False when nothing is left to do."""
        in_flight = sum(flight.task.bytes for flight in self.flying.values())
        most = BYTES_A_SLOT * self.executor.slots
        while len(self.flying) < self.executor.slots:
            if not self.queue and (task := next(self.ready, None)) is not None:
                self.push(task)
            if not self.queue:
                break
            task = self.queue[0][-1]
            if self.flying and in_flight + task.bytes > most:
                break
            heappop(self.queue)
            in_flight += task.bytes
            if self.progress is not None:
                self.progress.launched(task)
            self.flying[self.executor.submit(task)] = _Flight(task)
        return bool(self.flying)

    def landed(self) -> list[tuple[Task, "TaskReport | Exception"]]:
        """Wait a moment; return the tasks that ended, and how. Those past their deadline are told to stop."""
        done, _ = wait(self.flying, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        ended: list[tuple[Task, TaskReport | Exception]] = []
        for future in done:
            flight = self.flying.pop(future)
            error = future.exception()
            if flight.cancelled and isinstance(error, PartitionError):
                error = _late(flight.task)
            if error is not None and not isinstance(error, Exception):
                raise error
            ended.append((flight.task, future.result() if error is None else error))
        return ended + self._overdue()

    def _overdue(self) -> list[tuple[Task, "TaskReport | Exception"]]:
        lost: list[tuple[Task, TaskReport | Exception]] = []
        now = self.clock.monotonic()
        for future, flight in list(self.flying.items()):
            if flight.since is None and future.running():
                flight.since = now
            over = -1.0 if flight.since is None else now - flight.since - flight.task.deadline_s
            if over > 0 and not flight.cancelled:
                flight.cancelled = True
                self.executor.cancel(flight.task)
            if over > CANCEL_S:
                del self.flying[future]
                lost.append((flight.task, _late(flight.task)))
        return lost

    def end(self) -> None:
        """Stop what is still in flight: the run ends early."""
        for flight in self.flying.values():
            self.executor.cancel(flight.task)


def _late(task: Task) -> PartitionError:
    return PartitionError(f"{task.label}: not done within {task.deadline_s:g} s")
