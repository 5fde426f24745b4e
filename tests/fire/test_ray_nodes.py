"""Ray: what is asked of a cluster before it gets work, what ours opens, and who sits on its actors."""

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmdata.engine import Task
from mmdata.engine.task import Job
from mmdata.errors import ConfigError, RunError
from mmdata.executors.nodes import PACKAGES, View, answer, check_version, compare, look, needs_token, write_nonce
from mmdata.executors.seats import Seats, share
from tests.fire.ray_cluster import environment, listening, session, wait_for
from tests.fire.ray_drivers import Figure, Home, finish, start


@pytest.mark.fault("P15")
def test_our_own_cluster_is_ours_alone(tmp_path: Path, record_property: Figure) -> None:
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
    environ = environment(tmp_path)
    driver = start([sys.executable, "-c", code], environ, tmp_path)
    assert driver.stdin is not None
    assert driver.stdout is not None
    address = driver.stdout.readline().strip()
    time.sleep(3)  # agents and workers open their ports
    sockets = listening(session(driver.pid))
    assert address in sockets
    assert {socket.rpartition(":")[0] for socket in sockets} == {"127.0.0.1"}
    assert not [socket for socket in sockets if socket.endswith((":8265", ":10001", ":52365"))]
    stranger = "import sys, ray; ray.init(sys.argv[1])"
    env = environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    env |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert "InvalidAuthToken" in finish(start([sys.executable, "-c", stranger, address], env, tmp_path), 1)
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert json.loads(driver.stdout.readline().replace("'", '"')) == []
    wait_for(lambda: session(driver.pid) == {driver.pid}, 10, "no process is left")
    finish(driver)
    record_property(
        "figure", f"P15: {len(sockets)} ports listened on by a local cluster, all on 127.0.0.1; 0 processes after close"
    )


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


def test_a_worker_does_nothing_in_a_folder_that_is_not_the_runs(tmp_path: Path) -> None:
    run = str(tmp_path)
    write_nonce(run)
    task = Task(Job(run, 1, "", "", (), ()), "segment", 0, 0, "key")
    assert "does not see the run folder" in str(answer(task, replace(look(run), nonce="another")))


def test_a_worker_of_a_node_that_joined_later_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # a cluster that this process started before has set it
    run = str(tmp_path)
    write_nonce(run)
    must = look(run)
    task = Task(Job(run, 1, "", "", (), ()), "segment", 0, 0, "key")
    said = answer(task, replace(must, versions=must.versions | {"pillow": "1"}))
    assert re.search(r"has pillow [\d.]+, not 1", str(said))
    assert "was started without RAY_AUTH_MODE=token" in str(answer(task, replace(must, token=True)))


def test_nobody_at_the_address_is_said_at_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
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


def test_with_a_lost_actor_go_those_that_are_idle() -> None:
    actors = Actors(3, 0)
    lost, idle, busy = actors.take(0), actors.take(0), actors.take(0)
    assert lost is not None
    assert idle is not None
    actors.leave(idle)
    actors.lose(lost)
    actors.clear()  # one node may have held them all
    assert actors.ended == [idle.handle]
    assert actors.live == [busy]


def test_shares_of_a_gpu_are_what_fits() -> None:
    assert [share(gpus) for gpus in (0, 0.25, 0.4, 0.6, 1, 2)] == [0, 0.25, 0.5, 1, 1, 2]
