"""Where tasks run: serial, processes, Ray. All give the same bytes."""

from typing import Literal

from mmdata.engine.task import Executor
from mmdata.executors.local import ProcessExecutor, SerialExecutor

__all__ = ["ExecutorName", "ProcessExecutor", "SerialExecutor", "open_executor"]

ExecutorName = Literal["serial", "processes", "ray"]


def open_executor(name: ExecutorName, workers: int | None = None, address: str | None = None) -> Executor:
    """Return an executor by name; `workers` defaults to the number of cores, `address` is a Ray cluster's."""
    if name == "serial":
        return SerialExecutor()
    if name == "processes":
        return ProcessExecutor(workers)
    from mmdata.executors.ray import RayExecutor

    return RayExecutor(workers, address)
