"""What holds a stage's call inside a worker: a memory limit of the kernel's, and a timer that needs no Python to fire.

A call that asks for too much memory gets MemoryError (or its library aborts); one that does not end takes its process
with it, even while it holds the interpreter's lock. Both are then looked into by `engine.careful`.
"""

import faulthandler
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from mmdata.stages.verbs import Resources


@contextmanager
def confined(resources: Resources, rows: int) -> Iterator[None]:
    """Hold a call over `rows` rows to what its stage may use; when it takes too long the process ends with code 1."""
    with limited_memory(resources):
        faulthandler.dump_traceback_later(resources.deadline_s(rows), exit=True, file=_nowhere())
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def limited_memory(resources: Resources) -> Iterator[None]:
    """Limit private memory to what is in use now and `memory_mib`. GPU drivers reserve far more than they use: no limit."""
    if not sys.platform.startswith("linux") or resources.gpus:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_in_use() + (resources.memory_mib << 20)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_in_use() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


@cache
def _nowhere() -> BinaryIO:
    return open(os.devnull, "wb")  # noqa: PTH123 - the timer needs a file as long as the process lives
