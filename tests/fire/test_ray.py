"""Ray clusters: whatever is killed, the same bytes come out, or a clear error that the same command resumes from.

Drivers are processes of their own, as Ray ends the driver's process when its head is gone; nodes stand in working folders
of their own.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmdata.executors.reaper import children
from tests.conftest import write_yaml
from tests.fire.ray_cluster import Node, RayCluster, listening, session, wait_for
from tests.fire.ray_drivers import PLAN, Figure, Home, finish, in_the_middle, start
from tests.fire.seeds import GAUNTLET, seeds
from tests.flow.small import corpus_digest

GPU = ("--num-gpus", "1")  # Ray only counts them


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def shared_cluster(home: Home) -> Iterator[RayCluster]:
    with RayCluster(home.folder) as cluster:
        cluster.add("one", "two", options=GPU)
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster of this module, with two nodes and no words."""
    yield shared_cluster
    shared_cluster.hush()
    lost = [node for node in shared_cluster.nodes if node.process.poll() is not None]
    for node in lost:
        shared_cluster.nodes.remove(node)
        shared_cluster.add(f"{node.home.name}-again", options=GPU)


@pytest.mark.parametrize("stage", ["nap", "mixed"][: len(seeds(1, 2))])
def test_nodes_with_working_folders_of_their_own_give_the_same_bytes(home: Home, cluster: RayCluster, stage: str) -> None:
    run = home.new_run()
    # The driver stands in the run folder's parent and gives a relative path, the nodes stand elsewhere.
    driver = home.start(stage, Path(run.name), "--address", cluster.address, env=cluster.environment)
    finish(driver)
    assert corpus_digest(run) == home.digest(stage)
    assert not [path for node in cluster.nodes for path in node.home.iterdir() if path.name != "log"]


@pytest.mark.fault("P03")
@pytest.mark.parametrize("whole", [False, True][: len(seeds(1, 2))], ids=lambda whole: "node" if whole else "raylet")
def test_a_killed_node_costs_the_attempts_it_had(home: Home, cluster: RayCluster, whole: bool, record_property: Figure) -> None:
    run = home.new_run()
    cluster.say("pause", "0.3")
    driver = home.start("nap", run, "--address", cluster.address, env=cluster.environment)
    in_the_middle(driver, run)
    if whole:
        cluster.nodes[0].kill()
    else:
        os.kill(cluster.nodes[0].server("raylet"), signal.SIGKILL)
    since = time.monotonic()
    finish(driver)
    lost = "nodes was lost" if whole else "raylets was killed"
    record_property("figure", f"P03: rest of a run after one of two {lost}: {time.monotonic() - since:.0f} s")
    cluster.nodes[0].kill()
    assert corpus_digest(run) == home.digest("nap")


@pytest.mark.fault("P03")
@pytest.mark.parametrize("stage", ["held", "nap"][: len(seeds(1, 2))])
def test_without_its_head_a_run_stops_and_resumes_elsewhere(
    home: Home, tmp_path: Path, stage: str, record_property: Figure
) -> None:
    run = home.new_run()
    with RayCluster(tmp_path, head_cpus=2) as cluster:
        cluster.say("pause", "0.5")
        driver = home.start(stage, run, "--address", cluster.address, env=cluster.environment)
        in_the_middle(driver, run)
        os.kill(cluster.head.server("gcs_server"), signal.SIGKILL)
        since = time.monotonic()
        said = finish(driver, 1)
    record_property("figure", f"P03: clear end of the driver after the head was killed: {time.monotonic() - since:.0f} s")
    assert f"the Ray cluster at {cluster.address} is gone" in said
    assert "the same command resumes" in said
    said = finish(home.start(stage, run, "--executor", "serial", env=home.environment))
    assert corpus_digest(run) == home.digest(stage)


FILL = """
import os, sys
import numpy as np, ray
from mmdata.cli.main import main
from mmdata.executors.ray import RayExecutor

executor = RayExecutor(address=sys.argv.pop(1))
kept = []
try:
    while len(kept) < 40:
        kept.append(ray.put(np.ones(20 << 20, np.uint8)))
except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
    print("full:", type(error).__name__, len(kept), flush=True)
main()
"""


@pytest.mark.fault("P04")
def test_a_full_object_store_is_none_of_our_business(home: Home, tmp_path: Path, record_property: Figure) -> None:
    run, spill = home.new_run(), tmp_path / "spill"
    spill.mkdir()
    options = ("--object-spilling-directory", str(spill))
    with RayCluster(tmp_path, head_cpus=2, options=options, hide=spill) as cluster:  # 1 MiB to spill to
        command = [sys.executable, "-c", FILL, cluster.address, "run", str(home.folder / "nap.yaml"), "--run-dir", str(run)]
        said = finish(start([*command, "--address", cluster.address], cluster.environment, home.folder))
    assert "full: O" in said
    record_property("figure", f"P04: {said.partition('full: ')[2].splitlines()[0]} objects of 20 MiB, then a whole run")
    assert corpus_digest(run) == home.digest("nap")


@pytest.mark.fault("P05")
@pytest.mark.parametrize("own", [True, False], ids=["own cluster", "cluster by address"])
def test_a_killed_driver_leaves_nobody_behind(home: Home, cluster: RayCluster, own: bool, record_property: Figure) -> None:
    run = home.new_run()
    before = {pid for node in cluster.nodes for pid in session(node.process.pid)}
    cluster.say("pause", "0.3")
    options = ("--executor", "ray", "--workers", "2") if own else ("--address", cluster.address)
    env = home.environment if own else cluster.environment
    driver = home.start("nap", run, *options, env=env)
    in_the_middle(driver, run)
    workers = {pid for node in cluster.nodes for pid in session(node.process.pid)} - before
    assert bool(workers) != own
    started = children(driver.pid)
    driver.kill()
    since = time.monotonic()

    def gone() -> bool:
        there = {pid for node in cluster.nodes for pid in session(node.process.pid)}
        return not session(driver.pid) and not workers & there and not any(Path(f"/proc/{pid}").exists() for pid in started)

    wait_for(gone, 30, "no process of the run is left")
    record_property("figure", f"P05: last orphan of a killed driver ended after {time.monotonic() - since:.1f} s")
    driver.communicate()
    cluster.hush()
    finish(home.start("nap", run, *options, env=env))
    assert corpus_digest(run) == home.digest("nap")


OWNER = """
import sys, time
from concurrent.futures import Future
import ray
from mmdata.engine.task import Job, Task
from mmdata.executors.ray import RayExecutor, _Flight

@ray.remote
def forever():
    time.sleep(3600)

@ray.remote
class Owner:
    def make(self):
        return [forever.remote()]

executor = RayExecutor(address=sys.argv[1])
owner = Owner.remote()
(ref,) = ray.get(owner.make.remote())
flight = _Flight(Task(Job("", 0, "", "", (), ()), "segment", 0, 0, "key", label="borrowed"), "", Future())
executor._follow(flight, ref)
ray.kill(owner)
started = time.monotonic()
error = flight.done.exception(60)
print(f"{time.monotonic() - started:.1f}", type(error).__name__, error)
executor.close()
"""


@pytest.mark.fault("P06")
def test_an_object_whose_owner_died_is_a_failed_attempt(cluster: RayCluster, tmp_path: Path, record_property: Figure) -> None:
    said = finish(start([sys.executable, "-c", OWNER, cluster.address], cluster.environment, tmp_path))
    seconds, _, error = said.partition(" ")
    assert error.startswith("PartitionError borrowed: its worker was lost: OwnerDiedError")
    record_property("figure", f"P06: the owner's death is a PartitionError after {seconds} s")


IMPATIENT = """
import sys, threading, time
from pathlib import Path
from mmdata.engine import Runner
from mmdata.executors.ray import RayExecutor
from mmdata.plan import load_plan

class Impatient(RayExecutor):
    # Cancels what was sent before a worker took the word, and is not done some seconds after.
    def submit(self, task):
        early, future = not Path(sys.argv[4]).exists(), super().submit(task)
        if early:
            threading.Thread(target=self.watch, args=(task, future), daemon=True).start()
        return future

    def watch(self, task, future):
        while not Path(sys.argv[4]).exists():
            time.sleep(0.1)
        time.sleep(3)
        if not future.done():
            started = time.monotonic()
            self.cancel(task)
            error = future.exception(60)
            print(f"{time.monotonic() - started:.1f}", type(error).__name__, error, flush=True)

executor = Impatient(address=sys.argv[1])
Runner(load_plan(Path(sys.argv[2])), sys.argv[3]).execute(executor, quiet=True)
executor.close()
"""


@pytest.mark.fault("P02", "P09")
@pytest.mark.parametrize(
    ("word", "stage"), [("stop", "nap"), ("hang", "held"), ("hang", "nap"), ("stop", "held")][: len(seeds(1, 4))]
)
def test_a_task_without_an_end_is_cancelled_by_force(
    home: Home, cluster: RayCluster, word: str, stage: str, record_property: Figure
) -> None:
    run = home.new_run()
    cluster.say(word)
    plan = str(home.folder / f"{stage}.yaml")
    command = [sys.executable, "-c", IMPATIENT, cluster.address, plan, str(run), str(cluster.words / f"{word}.pid")]
    said = finish(start(command, cluster.environment, home.folder))
    assert "PartitionError " in said
    assert "it was cancelled with its worker" in said
    pid = cluster.heard(word)
    wait_for(lambda: not any(pid in session(node.process.pid) for node in cluster.nodes), 30, "the worker is gone")
    record_property("figure", f"P09: a task of a worker that will {word}, in a {stage}: cancelled in {said.split()[0]} s")
    assert corpus_digest(run) == home.digest(stage)


@pytest.mark.fault("P01", "P11")
@pytest.mark.parametrize("stage", ["held", "nap"][: len(seeds(1, 2))])
def test_a_killed_worker_or_actor_starts_from_records_only(home: Home, cluster: RayCluster, stage: str) -> None:
    for kill_after in seeds(1, 5):
        run = home.new_run()
        cluster.say("pause", "0.1")
        driver = home.start(stage, run, "--address", cluster.address, env=cluster.environment)
        in_the_middle(driver, run, 3 + kill_after)
        cluster.say("kill")
        cluster.heard("kill")
        finish(driver)
        assert corpus_digest(run) == home.digest(stage)


@pytest.mark.fault("P15")
def test_all_of_a_loopback_cluster_keeps_to_loopback(cluster: RayCluster) -> None:
    sockets = listening({pid for node in (cluster.head, *cluster.nodes) for pid in session(node.process.pid)})
    assert {socket.rpartition(":")[0] for socket in sockets} == {"127.0.0.1"}


def test_a_node_that_cannot_read_the_run_folder_is_refused(home: Home, cluster: RayCluster, tmp_path: Path) -> None:
    (node,) = cluster.add("blind", hide=tmp_path)
    said = finish(home.start("nap", tmp_path / "run", "--address", cluster.address, env=cluster.environment), 1)
    remove(cluster, node)
    assert f"node 127.0.0.1 does not see the run folder {tmp_path}/run" in said
    assert not list(tmp_path.glob("run/tasks/*"))


@pytest.mark.skipif(not GAUNTLET, reason="test_ray_nodes.py says the same of one worker")
def test_a_node_that_joins_later_is_looked_at_too(home: Home, cluster: RayCluster, tmp_path: Path) -> None:
    cluster.say("pause", "0.7")
    driver = home.start("nap", tmp_path / "run", "--address", cluster.address, "--workers", "3", env=cluster.environment)
    in_the_middle(driver, tmp_path / "run", 1)
    (node,) = cluster.add("late", hide=tmp_path)
    said = finish(driver, 1)
    remove(cluster, node)
    assert f"does not see the run folder {tmp_path}/run" in said


def remove(cluster: RayCluster, node: Node) -> None:
    raylet = node.server("raylet")
    os.kill(raylet, signal.SIGTERM)  # it takes its leave, so that nobody waits for it
    wait_for(lambda: raylet not in session(node.process.pid), 30, "the node has left")
    node.kill()
    cluster.nodes.remove(node)


def test_what_no_node_can_hold_is_refused_at_once(home: Home, cluster: RayCluster, tmp_path: Path) -> None:
    text = PLAN.replace("STAGE: {}", "nap: {resources: {cpus: 64}}").replace("path: images", f"path: {home.folder}/images")
    write_yaml(home.folder, text, "wide.yaml")
    said = finish(home.start("wide", tmp_path / "run", "--address", cluster.address, env=cluster.environment), 1)
    assert "has 64 CPUs" in said
