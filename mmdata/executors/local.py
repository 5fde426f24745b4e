"""Executors of one machine: in the driver itself, and in worker processes.

Workers start by spawn and end with their parent. A worker that dies costs the task it had; another takes its place.
"""

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from mmdata.engine.task import Task, TaskReport
from mmdata.engine.worker import run_task
from mmdata.errors import MmdataError, PartitionError

_PR_SET_PDEATHSIG = 1
_SPAWN = multiprocessing.get_context("spawn")


class SerialExecutor:
    """Runs each task in the driver when it is submitted: the plainest way, and the one to debug with."""

    slots = 1

    def submit(self, task: Task) -> Future[TaskReport]:
        """Run the task now."""
        future: Future[TaskReport] = Future()
        try:
            future.set_result(run_task(task))
        except MmdataError as error:
            future.set_exception(error)
        return future

    def cancel(self, task: Task) -> None:
        """Nothing runs between calls, so there is nothing to stop."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class _Worker:
    """A worker process with the thread that feeds it."""

    process: BaseProcess | None = None
    pipe: Connection | None = None
    task: Task | None = None
    thread: threading.Thread = field(init=False)


class ProcessExecutor:
    """Runs tasks in worker processes, one task at a time each."""

    def __init__(self, workers: int | None = None) -> None:
        self.slots = workers or os.cpu_count() or 1
        self._queue: queue.SimpleQueue[tuple[Task, Future[TaskReport]] | None] = queue.SimpleQueue()
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
            if worker.task == task and worker.process is not None:
                worker.process.kill()

    def close(self) -> None:
        """End all workers; what they were doing is lost, not half done."""
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            if worker.task is not None and worker.process is not None:
                worker.process.kill()
            worker.thread.join()

    def _feed(self, worker: _Worker) -> None:
        while (item := self._queue.get()) is not None:
            task, future = item
            worker.task = task
            try:
                future.set_result(self._ask(worker, task))
            except MmdataError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001 - a feeder that dies would leave the run waiting for ever
                self._end(worker)
                future.set_exception(PartitionError(f"{task.label}: {type(error).__name__}: {error}"))
            finally:
                worker.task = None
        self._end(worker)

    def _ask(self, worker: _Worker, task: Task) -> TaskReport:
        if worker.process is None:
            self._start(worker)
        assert worker.pipe is not None and worker.process is not None  # noqa: PT018 - just started
        try:
            worker.pipe.send(task)
            deadline = time.monotonic() + task.deadline_s
            while not worker.pipe.poll(min(1.0, max(deadline - time.monotonic(), 0))):
                if time.monotonic() >= deadline:
                    raise PartitionError(f"{task.label}: not done within {task.deadline_s:g} s")
            answer = worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise PartitionError(f"{task.label}: its worker died", hint="see whether memory ran out") from error
        finally:
            if sys.exc_info()[0] is not None:
                self._end(worker)
        if isinstance(answer, MmdataError):
            raise answer
        report: TaskReport = answer
        return report

    def _start(self, worker: _Worker) -> None:
        mine, theirs = _SPAWN.Pipe()
        worker.process = _SPAWN.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        worker.process.start()
        theirs.close()
        worker.pipe = mine

    def _end(self, worker: _Worker) -> None:
        if worker.process is not None and worker.pipe is not None:
            worker.pipe.close()
            worker.process.join(0.5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        worker.process = worker.pipe = None


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
