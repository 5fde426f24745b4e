"""Tasks on Ray; the only file that imports it.

Segments that hold a model live in actors, since a task that ends gives its worker back and the weights in it. Without an
address a cluster of this machine alone is started: loopback, no dashboard. Every node of a real cluster must be able to
read the run folder, which is checked before the first task.
"""

import os
from concurrent.futures import Future
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmdata.engine.task import Task, TaskReport
from mmdata.engine.worker import run_task
from mmdata.errors import MmdataError, PartitionError, RunError
from mmdata.storage import digest_bytes, open_store

FLOOR = (2, 52)


def _answer(task: Task) -> TaskReport | MmdataError:
    """Return errors as values: they keep their type and text that way."""
    try:
        return run_task(task)
    except MmdataError as error:
        return error


def _probe(run: str) -> str | None:
    """Return the digest of the run's owner file as this node reads it."""
    store = open_store(run)
    return digest_bytes(store.read("run.json")) if store.exists("run.json") else None


class _Actor:
    """A worker that keeps its models between tasks."""

    def run(self, task: Task) -> TaskReport | MmdataError:
        return _answer(task)


class RayExecutor:
    """Runs tasks on a Ray cluster."""

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        if tuple(int(part) for part in ray.__version__.split(".")[:2]) < FLOOR:
            raise RunError(f"ray {ray.__version__} is below {FLOOR[0]}.{FLOOR[1]}", hint="older versions run code for anyone")
        self._own = not ray.is_initialized()
        if self._own:
            _start(workers, address)
        self.slots = workers or int(ray.cluster_resources().get("CPU", 1))
        self._task = ray.remote(max_retries=0)(_answer)
        self._actor = ray.remote(max_restarts=0, num_cpus=0)(_Actor)
        self._idle: dict[float, list[Any]] = {}
        self._running: dict[str, Any] = {}
        self._checked: set[str] = set()

    def submit(self, task: Task) -> Future[TaskReport]:
        """Send the task to a worker, or to an actor when it holds a model."""
        if task.job.run not in self._checked:
            self._check_nodes(task.job.run)
        if task.holds_model or task.gpus:
            idle = self._idle.setdefault(task.gpus, [])
            actor = idle.pop() if idle else self._actor.options(num_gpus=task.gpus).remote()
            ref = actor.run.remote(task)
            return self._future(task, ref, actor)
        return self._future(task, self._task.options(num_cpus=task.cpus).remote(task), None)

    def cancel(self, task: Task) -> None:
        """Stop the task by force."""
        if task.name in self._running:
            ray.cancel(self._running[task.name], force=not task.holds_model)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actors in self._idle.values():
            for actor in actors:
                ray.kill(actor)
        self._idle.clear()
        if self._own:
            ray.shutdown()

    def _future(self, task: Task, ref: Any, actor: Any) -> Future[TaskReport]:  # noqa: ANN401 - Ray's handles
        self._running[task.name] = ref
        done: Future[TaskReport] = Future()

        def finish(source: Future[Any]) -> None:
            self._running.pop(task.name, None)
            error = source.exception()
            if error is not None:
                done.set_exception(PartitionError(f"{task.label}: its worker died: {error}"[:500]))
                return
            if actor is not None:
                self._idle[task.gpus].append(actor)
            answer = source.result()
            if isinstance(answer, MmdataError):
                done.set_exception(answer)
            else:
                done.set_result(answer)

        ref.future().add_done_callback(finish)
        return done

    def _check_nodes(self, run: str) -> None:
        mine = _probe(run)
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            probe = ray.remote(num_cpus=0)(_probe).options(scheduling_strategy=strategy)
            theirs = ray.get(probe.remote(run), timeout=120)
            if theirs != mine:
                raise RunError(
                    f"node {node['NodeManagerAddress']} does not see the run folder {run}",
                    hint="use a folder that all nodes share, or an object store",
                )
        self._checked.add(run)


def _start(workers: int | None, address: str | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None:
        ray.init(address=address, log_to_driver=False)
        return
    ray.init(
        num_cpus=workers or os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        configure_logging=False,
    )
