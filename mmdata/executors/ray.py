"""Tasks on Ray; the only file that imports it.

Nothing travels through Ray's object store: tasks carry paths, reports carry counts, errors a bounded text. Segments that
hold a model live in actors, since a task that ends gives its worker back and the weights in it.

Without an address a cluster is started for this process alone: loopback only, no dashboard, a token of its own, and it ends
with the process. A cluster by address must ask for a token, and every node must read the run folder: it is looked at before
the first task, and by every worker before its first. Whatever befalls a worker, its node or its actor fails one attempt;
when the head is gone the run stops. No wait for Ray is without a bound.
"""

import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray._private import ray_constants
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from mmdata.engine.task import Task, TaskReport
from mmdata.errors import MmdataError, PartitionError, RunError
from mmdata.executors.gang import Work, environment, free_port, serve
from mmdata.executors.nodes import (
    View,
    answer,
    brief,
    check_version,
    compare,
    is_loopback,
    listens,
    look,
    needs_token,
    write_nonce,
)
from mmdata.executors.reaper import children, reaping
from mmdata.executors.seats import Seat, Seats

_OWN = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_STORE_BYTES = 100 << 20  # nothing of ours lies in the object store
_NODE_S = 120.0  # a worker's start on each of many nodes
_STOP_S = 30.0  # Ray asks a worker to end, and kills it after 5
_BEAT_S = 2.0
_LOOK_S = 30.0
_SILENCE_S = 20.0  # after 60 Ray ends the driver's process itself


class _Actor:
    """A worker that keeps its models between tasks; what it needs to know of a task it reads from the run folder."""

    def run(self, task: Task, view: View) -> TaskReport | MmdataError:
        return answer(task, view)


class _Rank:
    """A worker that is one of several which work together."""

    def place(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), free_port()

    def run(self, work: Work, environ: dict[str, str]) -> Any:  # noqa: ANN401 - what the work returns
        return serve(work, environ)


@dataclass(eq=False)
class _Flight:
    """An attempt at a task."""

    task: Task
    view: View
    done: Future[TaskReport]
    ref: Any = None
    seat: Seat | None = None
    stopped: bool = False


class RayExecutor:
    """Runs tasks on a Ray cluster; `address` is its head's HOST:PORT, or `auto` on one of its nodes.

    One thread makes all calls about tasks and actors; another only knocks at the head's port, so that a call that Ray does
    not return from keeps no future from its end.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        check_version(ray.__version__)
        self._token = address is not None and needs_token(address, os.environ)
        with ExitStack() as exits:
            if not ray.is_initialized():
                exits.enter_context(_cluster(workers, address))
            self._exits = exits.pop_all()
        self.address: str = ray.get_runtime_context().gcs_address
        self._workers = workers
        self._seats = Seats(1, self._make_actor, ray.kill)
        self._look()
        if address is not None:  # what was called 127.0.0.1 may listen for everybody
            self._token = self._asks_token()
        self._task = ray.remote(max_retries=0)(answer)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        self._waiting: list[_Flight] = []
        self._flights: dict[str, _Flight] = {}
        self._views: dict[str, View] = {}
        self._gone: RunError | None = None
        self._closed = threading.Event()
        self._todo: queue.SimpleQueue[tuple[_Flight | None, Callable[[], None]] | None] = queue.SimpleQueue()
        self._hand = threading.Thread(target=self._work, name="ray-work", daemon=True)
        self._hand.start()
        threading.Thread(target=self._knock, name="ray-knock", daemon=True).start()

    @property
    def machines(self) -> int:
        """How many nodes have room for tasks."""
        return max(1, len(self._nodes))

    def submit(self, task: Task) -> Future[TaskReport]:
        """Send the task to a worker, or to an actor when it holds a model."""
        if self._gone is not None:
            raise self._gone
        if task.job.run not in self._views:
            self._views[task.job.run] = self._check_nodes(task.job.run)
        self._check_room(task)
        flight = _Flight(task, self._views[task.job.run], Future())
        self._flights[task.name] = flight
        self._todo.put((flight, partial(self._launch, flight)))
        return flight.done

    def cancel(self, task: Task) -> None:
        """Kill the worker or actor that has the task; the attempt fails even if that does not end."""
        flight = self._flights.get(task.name)
        if flight is not None:
            self._todo.put((flight, partial(self._stop, flight)))
            error = PartitionError(f"{task.label}: cancelled, and its worker did not end within {_STOP_S:g} s")
            timer = threading.Timer(_STOP_S, self._settle, (flight, error))
            timer.daemon = True
            timer.start()

    def launch(
        self, call: Callable[..., Any], arguments: tuple[Any, ...], folder: str, gpus: int | None, beat: Callable[[], None]
    ) -> Any:  # noqa: ANN401 - what the call returns
        """Call a function on as many ranks as there are workers, with torchrun's variables; return the first rank's result.

        folder  every node must read and write it      gpus  of each rank; null = one, where the cluster has enough
        beat    is called every few seconds meanwhile

        The first error, or the loss of a worker, ends them all.
        """
        work = Work(call, arguments, folder, self._check_nodes(folder))
        gpus = int(self._total("GPU") >= self.slots) if gpus is None else gpus
        group = placement_group([{"CPU": 1, **({"GPU": gpus} if gpus else {})}] * self.slots)
        actors: list[Any] = []
        try:
            self._await_room(group, gpus)
            strategy = PlacementGroupSchedulingStrategy(group)
            kind = ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1, num_gpus=gpus)(_Rank)
            actors += [kind.options(scheduling_strategy=strategy).remote() for _ in range(self.slots)]
            return self._follow_ranks(actors, work, beat)
        finally:
            for actor in actors:
                ray.kill(actor)
            remove_placement_group(group)

    def _await_room(self, group: Any, gpus: int) -> None:  # noqa: ANN401 - Ray's handle
        try:
            ray.get(group.ready(), timeout=_NODE_S)
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(
                f"the Ray cluster at {self.address} has no room for {self.slots} ranks, each of 1 CPU and {gpus} GPUs",
                hint="start with fewer workers, or when others have ended",
            ) from error

    def _follow_ranks(self, actors: list[Any], work: Work, beat: Callable[[], None]) -> Any:  # noqa: ANN401
        try:
            host, port = ray.get(actors[0].place.remote(), timeout=_NODE_S)
            told = (environment(rank, len(actors), host, port) for rank in range(len(actors)))
            refs = [actor.run.remote(work, environ) for actor, environ in zip(actors, told, strict=True)]
            waiting, first = list(refs), None
            while waiting:
                if self._gone is not None:
                    raise self._gone
                ready, waiting = ray.wait(waiting, timeout=_BEAT_S)
                beat()
                for ref in ready:
                    outcome = ray.get(ref, timeout=_NODE_S)
                    if isinstance(outcome, MmdataError):
                        raise outcome
                    first = outcome if ref == refs[0] else first
        except ray.exceptions.RayError as error:
            hint = "the same command goes on from what was done"
            raise RunError(f"a rank's worker was lost: {brief(error)}", hint=hint) from error
        return first

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._closed.set()
        self._todo.put(None)
        self._hand.join(_STOP_S if self._gone is None else _BEAT_S)  # a call after the end would start a cluster
        self._exits.close()

    def _launch(self, flight: _Flight) -> None:
        self._waiting.append(flight)
        self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Begin what there is room for: in Ray's own queue nobody could tell a task that waits from one that works."""
        free = self._free_cpus()
        for flight in sorted(self._waiting, key=lambda flight: not self._seats.has_idle(flight.task.gpus)):
            try:
                self._begin(flight, free)
            except Exception as error:  # noqa: BLE001 - it ends this attempt, not those behind it
                wrapped = PartitionError(f"{flight.task.label}: {brief(error)}")
                self._settle(flight, error if isinstance(error, MmdataError) else wrapped)
            if flight.ref is not None or flight.done.done():
                self._waiting.remove(flight)
            if flight.ref is not None and flight.seat is None:
                free -= flight.task.cpus

    def _begin(self, flight: _Flight, free: float) -> None:
        """Give a task to a worker, if that many CPUs are free, or to an actor, if one has room."""
        task, view = flight.task, flight.view
        if flight.done.done():
            return
        if task.holds_model or task.gpus:
            flight.seat = self._seats.take(task.gpus)
            if flight.seat is not None:
                self._follow(flight, flight.seat.handle.run.remote(task, view))
        elif task.cpus <= free:
            self._follow(flight, self._task.options(num_cpus=task.cpus).remote(task, view))

    def _free_cpus(self) -> float:
        """Return how many CPUs of the cluster our tasks leave; actors hold none."""
        flights = list(self._flights.values())
        return self._total("CPU") - sum(flight.task.cpus for flight in flights if flight.ref is not None and flight.seat is None)

    def _make_actor(self, gpus: float) -> Any:  # noqa: ANN401 - Ray's handle
        # Without GPUs it needs a free CPU to start and none from then on: idle actors must not starve tasks.
        options = {"num_gpus": gpus, "num_cpus": 0} if gpus else {}
        return self._actor.options(scheduling_strategy="SPREAD", **options).remote()

    def _follow(self, flight: _Flight, ref: Any) -> None:  # noqa: ANN401 - Ray's handle
        flight.ref = ref
        flight.done.set_running_or_notify_cancel()
        ref.future().add_done_callback(lambda source: self._todo.put((flight, partial(self._land, flight, source))))

    def _land(self, flight: _Flight, source: Future[Any]) -> None:
        error = source.exception()
        if error is not None:
            self._doubt = True
            text = "it was cancelled with its worker" if flight.stopped else f"its worker was lost: {brief(error)}"
            self._settle(flight, PartitionError(f"{flight.task.label}: {text}"))
        else:
            self._settle(flight, source.result())
        if flight.seat is not None and error is None:
            self._seats.leave(flight.seat)
        elif flight.seat is not None:
            self._seats.lose(flight.seat)
            self._seats.clear()  # its node may be gone, and with it those that are idle there
        self._begin_waiting()

    def _stop(self, flight: _Flight) -> None:
        flight.stopped = True
        if flight in self._waiting:
            self._waiting.remove(flight)
            self._settle(flight, PartitionError(f"{flight.task.label}: cancelled while it waited for room"))
        elif flight.done.done():
            return
        elif flight.seat is not None:
            ray.kill(flight.seat.handle)
        else:
            ray.cancel(flight.ref, force=True)

    def _settle(self, flight: _Flight, outcome: TaskReport | Exception) -> None:
        if self._flights.get(flight.task.name) is flight:
            del self._flights[flight.task.name]
        with suppress(InvalidStateError):  # settled before: cancelled, or the cluster was given up
            if isinstance(outcome, Exception):
                flight.done.set_exception(outcome)
            else:
                flight.done.set_result(outcome)

    def _work(self) -> None:
        while (item := self._todo.get()) is not None and not self._closed.is_set():
            flight, act = item
            try:
                act()
            except Exception as error:  # noqa: BLE001 - a thread that dies would leave the run waiting for ever
                if flight is not None:
                    self._settle(flight, PartitionError(f"{flight.task.label}: {brief(error)}"))

    def _knock(self) -> None:
        """Give all tasks up when nobody has answered at the head's port for a while; have new nodes looked for meanwhile."""
        heard = looked = time.monotonic()
        while not self._closed.wait(_BEAT_S):
            if listens(self.address):
                heard = time.monotonic()
                if heard - looked > _LOOK_S:
                    looked = heard
                    self._todo.put((None, self._look_again))
            elif time.monotonic() - heard > _SILENCE_S:
                hint = "start it again, or another; the same command resumes"
                self._gone = RunError(f"the Ray cluster at {self.address} is gone", hint=hint)
                for flight in list(self._flights.values()):
                    self._settle(flight, self._gone)
                return

    def _look_again(self) -> None:
        """See who joined, whose room is taken at once, and who is lost: what only they could do must not wait for ever."""
        self._look()
        for flight in [flight for flight in self._waiting if not self._has_room(flight.task)]:
            self._settle(flight, PartitionError(f"{flight.task.label}: the node that had room for it is gone"))
        self._begin_waiting()

    def _look(self) -> None:
        """See which nodes there are: others may join while we work, and some be lost."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._nodes = [node for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
        self.slots = self._workers or max(1, int(self._total("CPU")))
        self._seats.slots, self._seats.total_gpus = self.slots, self._total("GPU")
        self._looked, self._doubt = time.monotonic(), False

    def _asks_token(self) -> bool:
        try:
            asked = [needs_token(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", os.environ) for node in ray.nodes()]
        except MmdataError:
            self._exits.close()
            raise
        return any(asked)

    def _total(self, resource: str) -> float:
        return float(sum(node["Resources"].get(resource, 0) for node in self._nodes))

    def _check_room(self, task: Task) -> None:
        """Refuse what would wait for ever, from the start or since a node died."""
        if (self._doubt or time.monotonic() - self._looked > _LOOK_S) and listens(self.address):
            self._look()
        until = time.monotonic() + (_NODE_S if self._workers else 0.0)  # an autoscaler may be starting them
        while not self._has_room(task) and time.monotonic() < until:
            time.sleep(_BEAT_S)
            self._look()
        if not self._has_room(task):
            raise RunError(
                f"{task.label}: no node of the Ray cluster at {self.address} has {task.cpus} CPUs and {task.gpus:g} GPUs",
                hint="start such a node or ask for less in the stage's `resources`; the same command resumes",
            )

    def _has_room(self, task: Task) -> bool:
        sizes = [node["Resources"] for node in self._nodes]
        return any(size.get("CPU", 0) >= task.cpus and size.get("GPU", 0) >= task.gpus for size in sizes)

    def _check_nodes(self, run: str) -> View:
        """Let every node read a nonce from the run folder; return what each must see, those too that join later."""
        write_nonce(run)
        probe = ray.remote(num_cpus=0, max_retries=0)(look)
        mine, until, refs = look(run), time.monotonic() + _NODE_S, {}
        for node in self._nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            refs[node["NodeID"]] = probe.options(scheduling_strategy=strategy).remote(run)
        for node in self._nodes:
            name = node["NodeManagerAddress"]
            try:
                theirs = ray.get(refs[node["NodeID"]], timeout=max(0, until - time.monotonic()))
            except ray.exceptions.RayError as error:
                self._look()
                if node["NodeID"] in [other["NodeID"] for other in self._nodes]:
                    raise RunError(f"node {name} does not work: {brief(error)}", hint="is mmdata installed on it?") from error
            else:
                compare(name, run, mine, theirs, token=self._token)
        return replace(mine, token=self._token)


@contextmanager
def _cluster(workers: int | None, address: str | None) -> Iterator[None]:
    """Join a cluster; without an address start one on this machine that nobody else can use, which ends with us."""
    before, others = dict(os.environ), children(os.getpid())
    if address not in (None, "auto") and not listens(str(address)):
        raise RunError(f"nobody answers at {address}", hint="see whether the cluster's head is up, and the port right")
    try:
        if address is None:
            os.environ.update(_OWN, RAY_AUTH_TOKEN=secrets.token_hex(32))
        _read_token_again()
        if address is None:
            _init("local", num_cpus=workers or os.cpu_count(), include_dashboard=False, object_store_memory=_STORE_BYTES)
            with reaping(others):
                yield
        else:
            _init(address)
            yield
    finally:
        ray.shutdown()
        for name in (*_OWN, "RAY_AUTH_TOKEN", "PYTHONBREAKPOINT"):  # the last is Ray's doing
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
        _read_token_again()


def _init(address: str, **options: Any) -> None:  # noqa: ANN401 - Ray's
    """Call `ray.init`; a cluster of this machine alone gets a loopback address."""
    several = ray_constants.ENABLE_RAY_CLUSTER
    # Ray puts the machine's outer address in place of a loopback one, and listens on all interfaces then, except where it
    # believes that it runs on one machine only.
    ray_constants.ENABLE_RAY_CLUSTER = several and address != "local" and not is_loopback(address)
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, **options)
    except (OSError, RuntimeError, ValueError) as error:
        where = "start Ray" if address == "local" else f"join the Ray cluster at {address}"
        hint = "the driver runs on one of its nodes, with its token, Python and Ray"
        raise RunError(f"cannot {where}: {brief(error)}", hint=hint) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several
    if address == "local" and not is_loopback(ray.get_runtime_context().gcs_address):
        raise RunError(f"ray {ray.__version__} does not keep to loopback", hint="use another version, or --executor processes")


def _read_token_again() -> None:
    """Ray keeps what it once read from the environment."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
