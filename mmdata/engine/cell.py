"""A disposable child in which a stage answers batches: whatever a row does to it is told, and costs nothing else."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from mmdata.engine.confine import limited_memory
from mmdata.engine.worker_cache import context_of
from mmdata.errors import MmdataError, PartitionError
from mmdata.stages.verbs import Batch, Filter, Map, Resources, Split, Stage
from mmdata.storage import open_store

OPEN_S = 600.0
_PR_SET_PDEATHSIG = 1
_MAIN = "from mmdata.engine.cell import main; main()"


@dataclass(frozen=True)
class Failure:
    """How a call ended, if not well."""

    outcome: str
    detail: str


class Cell:
    """A child process that opens one stage and answers batches until one of them ends it."""

    def __init__(self, stage: Stage, url: str, allow: tuple[str, ...], share: int = 1) -> None:
        self.stage, self.url, self.allow, self.share = stage, url, allow, share
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def call(self, batch: Batch, scratch: str | None) -> Any:  # noqa: ANN401 - what the stage gives, or a Failure
        """Return what the stage gives for a batch, or how the child ended."""
        resources = self.stage.resources
        pipe = self._pipe or self._start()
        try:
            pipe.send((batch, scratch))
            seconds = resources.deadline_s(batch.table.num_rows)
            if not pipe.poll(OPEN_S):  # the stage is open
                raise PartitionError(f"`{self.stage.name}` did not open within {OPEN_S:g} s")
            if (ready := pipe.recv()) is not None:
                raise PartitionError(f"`{self.stage.name}` cannot be opened: {ready}")
            if not pipe.poll(seconds):
                self.close()
                return Failure("decoder_timeout", f"not done within {seconds:g} s")
            answer = pipe.recv()
        except (EOFError, OSError):
            return self._death()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Failure) and answer.outcome == "decoder_oom":
            self.close()  # what it left behind is unknown
        return answer

    def close(self) -> None:
        """End the child."""
        if self._child is not None and self._pipe is not None:
            self._pipe.close()
            self._child.kill()
            self._child.wait()
        self._child = self._pipe = None

    def _start(self) -> Connection:
        mine, theirs = Pipe()
        command = [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(os.getpid())]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
        theirs.close()
        self._pipe = mine
        mine.send((self.stage, self.url, self.allow, self.share))
        return mine

    def _death(self) -> Failure:
        child = self._child
        assert child is not None
        try:
            code = child.wait(5.0)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if code == -signal.SIGKILL:  # nobody here kills it: the kernel does, when memory runs out
            return Failure("decoder_oom", "its process was killed, as the kernel does when memory runs out")
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        return Failure("decoder_crashed", f"its process ended with {name}")


def _serve(pipe: Connection) -> None:
    stage, url, allow, share = pipe.recv()
    with ExitStack() as exits:
        opened: dict[str | None, Callable[[Batch], Any]] = {}
        while True:
            try:
                batch, scratch = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                if scratch not in opened:
                    opened[scratch] = _open(stage, url if scratch is None else scratch, allow, exits, share)
            except Exception as error:  # noqa: BLE001 - whatever a stage raises is told to the worker
                pipe.send(f"{type(error).__name__}: {error}"[:500])
                continue
            pipe.send(None)
            pipe.send(_answer(opened[scratch], stage.resources, batch))


def _open(stage: Stage, url: str, allow: tuple[str, ...], exits: ExitStack, share: int) -> Callable[[Batch], Any]:
    assert isinstance(stage, Map | Filter | Split)
    work: Callable[[Batch], Any] = stage.open(context_of(stage, open_store(url), allow, exits, share))
    return work


def _answer(work: Callable[[Batch], Any], resources: Resources, batch: Batch) -> Any:  # noqa: ANN401 - as above
    try:
        with limited_memory(resources):
            return work(batch)
    except MemoryError:
        return Failure("decoder_oom", f"it asked for more than {resources.memory_mib} MiB")
    except (OSError, MmdataError) as error:
        return error  # the disk's trouble or the run's, not the row's
    except Exception as error:  # noqa: BLE001 - whatever a stage raises is the row's outcome
        return Failure("scorer_error", f"{type(error).__name__}: {error}"[:500])


def main() -> None:
    """Answer batches until the pipe closes."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[2]):
            return
    _serve(Connection(int(sys.argv[1])))
