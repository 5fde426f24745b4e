"""Where tasks run: serial, processes, Ray. All give the same bytes, and all survive what a row does to its worker."""

from mmdata.engine.task import Executor
from mmdata.errors import ConfigError, did_you_mean
from mmdata.executors.local import InlineExecutor, ProcessExecutor, SerialExecutor

__all__ = ["EXECUTORS", "InlineExecutor", "ProcessExecutor", "SerialExecutor", "open_executor"]

EXECUTORS = ("serial", "processes", "ray", "inline")


def open_executor(name: str, workers: int | None = None, address: str | None = None) -> Executor:
    """Return an executor by name; `workers` defaults to the number of cores, `address` is a Ray cluster's.

    serial     one task after the other, in one worker process     processes  in `workers` of them
    ray        on a Ray cluster                                    inline     in this process, for a debugger
    """
    if name not in EXECUTORS:
        raise ConfigError(f"no executor is called `{name}`", hint=did_you_mean(name, EXECUTORS))
    if name == "serial":
        return SerialExecutor()
    if name == "inline":
        return InlineExecutor()
    if name == "processes":
        return ProcessExecutor(workers)
    from mmdata.executors.ray import RayExecutor

    return RayExecutor(workers, address)
