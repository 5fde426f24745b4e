"""Where tasks run: serial, processes, Ray. All give the same bytes."""

from mmdata.engine.task import Executor
from mmdata.errors import ConfigError, did_you_mean
from mmdata.executors.local import ProcessExecutor, SerialExecutor

__all__ = ["EXECUTORS", "ProcessExecutor", "SerialExecutor", "open_executor"]

EXECUTORS = ("serial", "processes", "ray")


def open_executor(name: str, workers: int | None = None, address: str | None = None) -> Executor:
    """Return an executor by name; `workers` defaults to the number of cores, `address` is a Ray cluster's."""
    if name not in EXECUTORS:
        raise ConfigError(f"no executor is called `{name}`", hint=did_you_mean(name, EXECUTORS))
    if name == "serial":
        return SerialExecutor()
    if name == "processes":
        return ProcessExecutor(workers)
    from mmdata.executors.ray import RayExecutor

    return RayExecutor(workers, address)
