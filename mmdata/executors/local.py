"""Executors of one machine: in the driver itself, and in worker processes.

Workers start by spawn and end with their parent. A worker that dies, or stands still, costs the attempt it was at; another
takes its place.
"""

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from mmdata.engine.task import Task, TaskReport
from mmdata.engine.worker import close_caches, run_task
from mmdata.errors import MmdataError, PartitionError

STOPPED_S = 10
_PR_SET_PDEATHSIG = 1
_SPAWN = multiprocessing.get_context("spawn")


class InlineExecutor:
    """Runs each task in the driver when it is submitted: for a debugger.

    What ends a process or never returns does so to the driver; the other executors survive that.
    """

    slots = 1
    machines = 1

    def submit(self, task: Task) -> Future[TaskReport]:
        """Run the task now."""
        future: Future[TaskReport] = Future()
        try:
            future.set_result(run_task(task, confine=False))
        except MmdataError as error:
            future.set_exception(error)
        return future

    def cancel(self, task: Task) -> None:
        """Nothing runs between calls, so there is nothing to stop."""

    def close(self) -> None:
        """End what tasks left open for those that might follow: models, a decoder child."""
        close_caches()


@dataclass
class _Worker:
    """A worker process with the thread that feeds it."""

    process: BaseProcess | None = None
    pipe: Connection | None = None
    task: Task | None = None
    cancelled: Task | None = None
    thread: threading.Thread = field(init=False)


class ProcessExecutor:
    """Runs tasks in worker processes, one task at a time each."""

    machines = 1

    def __init__(self, workers: int | None = None) -> None:
        self.slots = workers or os.cpu_count() or 1
        self._queue: queue.SimpleQueue[tuple[Task, Future[TaskReport]] | None] = queue.SimpleQueue()
        self._closed = False
        self._workers = [_Worker() for _ in range(self.slots)]
        for number, worker in enumerate(self._workers):
            worker.thread = threading.Thread(target=self._feed, args=(worker,), name=f"feed-{number}", daemon=True)
            worker.thread.start()

    def submit(self, task: Task) -> Future[TaskReport]:
        """Queue the task for the next free worker."""
        future: Future[TaskReport] = Future()
        self._queue.put((task, future))
        return future

    def cancel(self, task: Task) -> None:
        """Kill the worker that has the task."""
        for worker in self._workers:
            if (mine := worker.task) is not None and mine.name == task.name:
                worker.cancelled = mine
                _kill(worker.process)

    def close(self) -> None:
        """End all workers; what they were doing is lost, not half done."""
        self._closed = True
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            if worker.task is not None:
                _kill(worker.process)
            worker.thread.join(STOPPED_S)  # a worker in a call to a disk that does not answer cannot even be killed

    def _feed(self, worker: _Worker) -> None:
        while (item := self._queue.get()) is not None:
            task, future = item
            worker.task = task
            future.set_running_or_notify_cancel()
            try:
                future.set_result(self._ask(worker, task))
            except MmdataError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001 - a feeder that dies would leave the run waiting for ever
                self._end(worker)
                future.set_exception(PartitionError(f"{task.label}: {type(error).__name__}: {error}"))
            finally:
                worker.task = worker.cancelled = None
        self._end(worker)

    def _ask(self, worker: _Worker, task: Task) -> TaskReport:
        if worker.process is None:
            self._start(worker)
        assert worker.pipe is not None and worker.process is not None  # noqa: PT018 - just started
        try:
            if self._closed or worker.cancelled is task:  # while its worker started
                raise PartitionError(f"{task.label}: it was cancelled before it began")
            worker.pipe.send(task)
            still = 0
            while not worker.pipe.poll(1.0):
                still = still + 1 if _stopped(worker.process.pid) else 0
                if still >= STOPPED_S:
                    raise PartitionError(f"{task.label}: its worker was stopped and stood still for {STOPPED_S} s")
            answer = worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise PartitionError(f"{task.label}: {self._death(worker)}") from error
        finally:
            if sys.exc_info()[0] is not None:
                self._end(worker)
        if isinstance(answer, MmdataError):
            raise answer
        report: TaskReport = answer
        return report

    def _death(self, worker: _Worker) -> str:
        assert worker.process is not None
        worker.process.join(1.0)
        code = worker.process.exitcode
        if worker.cancelled is worker.task:
            return "it was cancelled with its worker"
        if code is not None and code < 0:
            return f"its worker was ended by {signal.Signals(-code).name}"
        return f"its worker ended with code {code}, as it does when a call takes too long"

    def _start(self, worker: _Worker) -> None:
        mine, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        worker.process, worker.pipe = process, mine

    def _end(self, worker: _Worker) -> None:
        if worker.process is not None and worker.pipe is not None:
            worker.pipe.close()
            worker.process.join(0.5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        worker.process = worker.pipe = None


class SerialExecutor(ProcessExecutor):
    """Runs one task after the other in one worker process: the plainest way that survives whatever a row does."""

    def __init__(self) -> None:
        super().__init__(1)


def _kill(process: BaseProcess | None) -> None:
    with contextlib.suppress(ValueError):  # its feeder has just seen it end
        if process is not None:
            process.kill()


def _stopped(pid: int | None) -> bool:
    """Say whether a process was stopped by a signal, where the kernel tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _serve(pipe: Connection, parent: int) -> None:
    """Do tasks until the pipe closes. Ctrl-C is the driver's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the driver died before the line above
            return
    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: TaskReport | MmdataError = run_task(task)
        except MmdataError as error:
            answer = error
        pipe.send(answer)
