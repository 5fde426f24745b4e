"""Ray clusters: whatever is killed, the same bytes come out, or a clear error that the same command resumes from.

Drivers are processes of their own, as Ray ends the driver's process when its head is gone; nodes stand in working folders
of their own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmdata.errors import ConfigError, RunError
from mmdata.executors.nodes import PACKAGES, View, check_version, compare, needs_token
from mmdata.executors.seats import Seats, share
from tests.conftest import encode, write_yaml
from tests.corpus import draw
from tests.fire.ray_cluster import Node, RayCluster, end, environment, listening, session, wait_for
from tests.fire.seeds import seeds
from tests.flow.small import corpus_digest

PLAN = """\
name: fire
source: {folder: {path: images, partition_rows: 2}}
stages:
  - measure: {}
  - STAGE: {}
  - keep: {column: width, at_least: 1}
  - dedupe: {by: text}
sink: {shards: {samples: 10}}
"""
PARTITIONS = 20
RUN_S = 150.0
Figure = Callable[[str, object], None]


class Home:
    """A folder with the pictures, a plan for each stage, and the digest of an undisturbed run of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, environment(folder)
        self.digests: dict[str, str] = {}
        self.count = 0
        (folder / "images").mkdir()
        for number in range(2 * PARTITIONS):
            (folder / f"images/{number:03}.png").write_bytes(encode(draw("red", "bar" if number % 2 else "square")))
            (folder / f"images/{number:03}.txt").write_text(f"text {number % 30}", encoding="utf-8")
        for stage in ("nap", "held"):
            write_yaml(folder, PLAN.replace("STAGE", stage), f"{stage}.yaml")

    def digest(self, stage: str) -> str:
        if stage not in self.digests:
            run = self.new_run()
            finish(self.start(stage, run, "--executor", "serial", env=self.environment))
            self.digests[stage] = corpus_digest(run)
        return self.digests[stage]

    def new_run(self) -> Path:
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, stage: str, run: Path, *options: str, env: dict[str, str], cwd: Path | None = None) -> subprocess.Popen[str]:
        code = "from mmdata.cli.main import main; main()"
        plan = str(self.folder / f"{stage}.yaml")
        command = [sys.executable, "-c", code, "run", plan, "--run-dir", str(run), *options]
        return start(command, env, cwd or self.folder)


def start(command: list[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Start a driver in a session of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(driver: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a driver and all that came of it; return what it said."""
    try:
        out, err = driver.communicate(timeout=RUN_S)
    finally:
        end(driver.pid)
    assert driver.returncode == code, err[-4000:]
    return out + err


def in_the_middle(run: Path, num: int = 5) -> None:
    """Wait until some tasks are done, and not all."""
    wait_for(lambda: len(list(run.glob("tasks/*.json"))) >= num, RUN_S, "some tasks are done")
    assert len(list(run.glob("tasks/*.json"))) < PARTITIONS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def shared_cluster(home: Home) -> Iterator[RayCluster]:
    with RayCluster(home.folder) as cluster:
        cluster.add("one", "two")
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster of this module, with two nodes and no words."""
    yield shared_cluster
    shared_cluster.hush()
    lost = [node for node in shared_cluster.nodes if node.process.poll() is not None]
    for node in lost:
        shared_cluster.nodes.remove(node)
        shared_cluster.add(f"{node.home.name}-again")


@pytest.mark.fault("P16")
@pytest.mark.parametrize("stage", ["nap", "held"])
def test_nodes_with_working_folders_of_their_own_give_the_same_bytes(home: Home, cluster: RayCluster, stage: str) -> None:
    run = home.new_run()
    # The driver stands in the run folder's parent and gives a relative path, the nodes stand elsewhere.
    driver = home.start(stage, Path(run.name), "--address", cluster.address, env=cluster.environment)
    finish(driver)
    assert corpus_digest(run) == home.digest(stage)
    assert not [path for node in cluster.nodes for path in node.home.iterdir() if path.name != "log"]


@pytest.mark.fault("P03")
def test_a_killed_node_costs_the_attempts_it_had(home: Home, cluster: RayCluster, record_property: Figure) -> None:
    run = home.new_run()
    cluster.say("pause", "0.3")
    driver = home.start("nap", run, "--address", cluster.address, env=cluster.environment)
    in_the_middle(run)
    os.kill(cluster.nodes[0].server("raylet"), signal.SIGKILL)
    since = time.monotonic()
    finish(driver)
    record_property("figure", f"P03: rest of a run after one of two raylets was killed: {time.monotonic() - since:.0f} s")
    cluster.nodes[0].kill()
    assert corpus_digest(run) == home.digest("nap")


@pytest.mark.fault("P03")
def test_without_its_head_a_run_stops_and_resumes_elsewhere(home: Home, tmp_path: Path, record_property: Figure) -> None:
    run = home.new_run()
    with RayCluster(tmp_path, head_cpus=2) as cluster:
        cluster.say("pause", "0.5")
        driver = home.start("nap", run, "--address", cluster.address, env=cluster.environment)
        in_the_middle(run)
        os.kill(cluster.head.server("gcs_server"), signal.SIGKILL)
        since = time.monotonic()
        said = finish(driver, 1)
    record_property("figure", f"P03: clear end of the driver after the head was killed: {time.monotonic() - since:.0f} s")
    assert f"the Ray cluster at {cluster.address} is gone" in said
    assert "the same command resumes" in said
    said = finish(home.start("nap", run, "--executor", "serial", env=home.environment))
    assert corpus_digest(run) == home.digest("nap")


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
        said = finish(start([*command, "--address", cluster.address], cluster.environment, tmp_path))
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
    in_the_middle(run)
    workers = {pid for node in cluster.nodes for pid in session(node.process.pid)} - before
    assert bool(workers) != own
    driver.kill()
    since = time.monotonic()

    def gone() -> bool:
        there = {pid for node in cluster.nodes for pid in session(node.process.pid)}
        return not session(driver.pid) and not workers & there

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
    # Cancels what is not done some seconds after a worker took the word.
    def submit(self, task):
        future = super().submit(task)
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
@pytest.mark.parametrize("stage", ["nap", "held"])
@pytest.mark.parametrize("word", ["hang", "stop"])
def test_a_task_without_an_end_is_cancelled_by_force(
    home: Home, cluster: RayCluster, stage: str, word: str, record_property: Figure
) -> None:
    run = home.new_run()
    cluster.say(word)
    plan = str(home.folder / f"{stage}.yaml")
    command = [sys.executable, "-c", IMPATIENT, cluster.address, plan, str(run), str(cluster.words / f"{word}.pid")]
    said = finish(start(command, cluster.environment, home.folder))
    assert "PartitionError" in said
    pid = cluster.heard(word)
    wait_for(lambda: not any(pid in session(node.process.pid) for node in cluster.nodes), 30, "the worker is gone")
    record_property("figure", f"P09: a task of a worker that will {word}, in a {stage}: cancelled in {said.split()[0]} s")
    assert corpus_digest(run) == home.digest(stage)


@pytest.mark.fault("P01", "P11")
@pytest.mark.parametrize("stage", ["nap", "held"])
def test_a_killed_worker_or_actor_starts_from_records_only(home: Home, cluster: RayCluster, stage: str) -> None:
    for kill_after in seeds(1, 5):
        run = home.new_run()
        cluster.say("pause", "0.1")
        driver = home.start(stage, run, "--address", cluster.address, env=cluster.environment)
        in_the_middle(run, 3 + 3 * kill_after)
        cluster.say("kill")
        cluster.heard("kill")
        finish(driver)
        assert corpus_digest(run) == home.digest(stage)


@pytest.mark.fault("P15")
def test_our_own_cluster_is_ours_alone(home: Home, record_property: Figure) -> None:
    code = """
import os, sys
from mmdata.executors.ray import RayExecutor
before = dict(os.environ)
executor = RayExecutor(2)
print(executor.address, flush=True)
sys.stdin.readline()
executor.close()
changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
print(sorted(changed), flush=True)
sys.stdin.readline()
"""
    driver = start([sys.executable, "-c", code], home.environment, home.folder)
    assert driver.stdin is not None
    assert driver.stdout is not None
    address = driver.stdout.readline().strip()
    time.sleep(3)  # agents and workers open their ports
    sockets = listening(session(driver.pid))
    assert address in sockets
    assert {socket.rpartition(":")[0] for socket in sockets} == {"127.0.0.1"}
    assert not [socket for socket in sockets if socket.endswith((":8265", ":10001", ":52365"))]
    stranger = "import sys, ray; ray.init(sys.argv[1])"
    env = home.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    env |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert "InvalidAuthToken" in finish(start([sys.executable, "-c", stranger, address], env, home.folder), 1)
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert json.loads(driver.stdout.readline().replace("'", '"')) == []
    wait_for(lambda: session(driver.pid) == {driver.pid}, 10, "no process is left")
    finish(driver)
    record_property(
        "figure", f"P15: {len(sockets)} ports listened on by a local cluster, all on 127.0.0.1; 0 processes after close"
    )


@pytest.mark.fault("P15")
def test_all_of_a_loopback_cluster_keeps_to_loopback(cluster: RayCluster) -> None:
    sockets = listening({pid for node in (cluster.head, *cluster.nodes) for pid in session(node.process.pid)})
    assert {socket.rpartition(":")[0] for socket in sockets} == {"127.0.0.1"}


@pytest.mark.fault("P15")
def test_a_ray_below_the_floor_is_refused() -> None:
    check_version("2.52.0")
    check_version("3.0.0.dev0")
    for version in ("2.51.9", "1.13.0"):
        with pytest.raises(ConfigError, match=rf"ray {version} is below 2.52 \(CVE-2025-62593\)[\s\S]*pip install 'ray>=2.52'"):
            check_version(version)


@pytest.mark.fault("P15")
def test_a_remote_cluster_must_ask_for_a_token() -> None:
    assert not needs_token("127.0.0.1:6379", {})
    assert not needs_token("[::1]:6379", {})
    assert needs_token("10.0.0.7:6379", {"RAY_AUTH_MODE": "token"})
    assert not needs_token("10.0.0.7:6379", {"MMDATA_RAY_OPEN": "1"})
    for address in ("10.0.0.7:6379", "head.example:6379", "auto", "[fd00::7]:6379"):
        with pytest.raises(ConfigError, match=r"may be reached by others[\s\S]*RAY_AUTH_MODE=token[\s\S]*MMDATA_RAY_OPEN=1"):
            needs_token(address, {"RAY_AUTH_MODE": "disabled"})
    for address in ("ray://head:10001", "head", "head:port", ":6379"):
        with pytest.raises(ConfigError, match=r"is no address of a Ray cluster[\s\S]*HOST:PORT"):
            needs_token(address, {})


def test_a_node_is_compared_with_the_driver() -> None:
    mine = View("nonce", dict.fromkeys(PACKAGES, "1"), token=True)
    compare("n", "r", mine, mine, token=True)
    with pytest.raises(RunError, match=r"node n does not see the run folder r[\s\S]*object store"):
        compare("n", "r", mine, View("other", mine.versions, token=True), token=True)
    with pytest.raises(RunError, match=r"node n has pillow 2, not 1[\s\S]*same packages"):
        compare("n", "r", mine, View("nonce", mine.versions | {"pillow": "2"}, token=True), token=True)
    with pytest.raises(RunError, match=r"node n was started without RAY_AUTH_MODE=token"):
        compare("n", "r", mine, View("nonce", mine.versions, token=False), token=True)


def test_a_node_that_cannot_read_the_run_folder_is_refused(home: Home, cluster: RayCluster, tmp_path: Path) -> None:
    (node,) = cluster.add("blind", hide=tmp_path)
    said = finish(home.start("nap", tmp_path / "run", "--address", cluster.address, env=cluster.environment), 1)
    remove(cluster, node)
    assert f"node 127.0.0.1 does not see the run folder {tmp_path}/run" in said
    assert not list(tmp_path.glob("run/tasks/*"))


def test_a_node_that_joins_later_is_looked_at_too(home: Home, cluster: RayCluster, tmp_path: Path) -> None:
    cluster.say("pause", "0.7")
    driver = home.start("nap", tmp_path / "run", "--address", cluster.address, "--workers", "3", env=cluster.environment)
    in_the_middle(tmp_path / "run", 1)
    (node,) = cluster.add("late", hide=tmp_path)
    said = finish(driver, 1)
    remove(cluster, node)
    assert f"does not see the run folder {tmp_path}/run" in said


def remove(cluster: RayCluster, node: Node) -> None:
    node.kill()
    cluster.nodes.remove(node)


def test_what_no_node_can_hold_is_refused_at_once(home: Home, cluster: RayCluster, tmp_path: Path) -> None:
    text = PLAN.replace("STAGE: {}", "nap: {resources: {cpus: 64}}").replace("path: images", f"path: {home.folder}/images")
    write_yaml(home.folder, text, "wide.yaml")
    said = finish(home.start("wide", tmp_path / "run", "--address", cluster.address, env=cluster.environment), 1)
    assert "has 64 CPUs" in said


def test_nobody_at_the_address_is_said_at_once(home: Home, tmp_path: Path) -> None:
    said = finish(home.start("nap", tmp_path / "run", "--address", "127.0.0.1:9", env=home.environment), 1)
    assert "nobody answers at 127.0.0.1:9" in said


class Actors(Seats):
    """Seats that make numbers, and remember which were ended."""

    def __init__(self, slots: int, total_gpus: float) -> None:
        self.made = 0
        self.ended: list[int] = []
        super().__init__(slots, self._make, self.ended.append, total_gpus)

    def _make(self, gpus: float) -> int:
        self.made += 1
        return self.made


def test_an_idle_actor_is_taken_again() -> None:
    actors = Actors(2, 0)
    first = actors.take(0)
    assert first is not None
    assert actors.take(0) is not None
    assert actors.take(0) is None  # at most one a slot
    actors.leave(first)
    assert actors.take(0) is first
    assert actors.made == 2


def test_idle_actors_make_way_for_one_of_another_size() -> None:
    actors = Actors(8, 1)
    whole = actors.take(1)
    assert whole is not None
    assert actors.take(0.5) is None  # it would wait for ever
    actors.leave(whole)
    assert actors.take(0.5) is not None
    assert actors.ended == [whole.handle]
    assert actors.take(0.5) is not None
    assert actors.take(0.5) is None


def test_a_lost_actor_leaves_room() -> None:
    actors = Actors(1, 0)
    lost = actors.take(0)
    assert lost is not None
    actors.lose(lost)
    assert actors.take(0) is not None
    assert actors.ended == []


def test_shares_of_a_gpu_are_what_fits() -> None:
    assert [share(gpus) for gpus in (0, 0.25, 0.4, 0.6, 1, 2)] == [0, 0.25, 0.5, 1, 1, 2]
