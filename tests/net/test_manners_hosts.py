"""What workers share about hosts: limits hold over processes, and a killed one leaves nothing behind."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mmdata.net import Failure, Fetched, Guard, Limits, Policy, Signals, hosts, open_fetcher
from mmdata.net.cache import DAY_S, AnswerCache
from mmdata.net.client import open_transport
from mmdata.net.hosts import HostTable, open_table
from tests.net.hostile import Exchange, HostileServer, hostile_server, http

SPAWN = multiprocessing.get_context("spawn")
INTERVAL_S = 0.01
LIMITS = Limits(host_interval_s=INTERVAL_S, retries=0, headers_s=40)


def work(allow: tuple[str, ...], urls: Sequence[str], folder: Path, share: int = 1) -> list[str]:
    """Fetch urls as a worker does, and return their outcomes."""

    async def run() -> list[str]:
        policy = Policy(LIMITS, "mmdata/0.1", signals=Signals(tdmrep_json=False), share=share)
        transport = open_transport(Guard(allow), policy.limits, policy.agent, policy.sockets)
        async with open_fetcher(transport, policy, folder) as fetcher:
            results = await asyncio.gather(*(fetcher.fetch(url) for url in urls))
        return [result.outcome if isinstance(result, Failure) else "ok" for result in results]

    return asyncio.run(run())


def work_and_check(allow: tuple[str, ...], urls: Sequence[str], folder: Path, expected: str) -> None:
    assert set(work(allow, urls, folder)) == {expected}


@contextmanager
def workers(
    num: int, server: HostileServer, urls: Sequence[Sequence[str]], folder: Path, expected: str
) -> Iterator[list[BaseProcess]]:
    processes = [SPAWN.Process(target=work_and_check, args=(server.allow, urls[n], folder, expected)) for n in range(num)]
    try:
        for process in processes:
            process.start()
        yield list(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join(10)


async def after_a_while(exchange: Exchange) -> None:
    await asyncio.sleep(0.03)
    exchange.keep = True
    await exchange.send(http(b"data"))


async def held(exchange: Exchange) -> None:
    await asyncio.sleep(30)


@pytest.mark.fault("N42")
def test_four_processes_keep_to_one_hosts_limits_and_a_killed_one_frees_its_connections(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with hostile_server() as server:
        server.on("/x", after_a_while)
        urls = [[server.url("/x", n=f"{worker}-{n}") for n in range(200)] for worker in range(4)]
        with workers(4, server, urls, tmp_path, "ok") as running:
            deadline = time.monotonic() + 60
            while len(server.asked("/x")) < 200 and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(running[0].pid or 0, signal.SIGKILL)
            for process in running[1:]:
                process.join(60)
            assert [process.exitcode for process in running[1:]] == [0, 0, 0]
        assert server.peak("127.0.0.1") <= LIMITS.per_host
        times = sorted(hit.at_s for hit in server.asked("/x"))
        assert len(times) >= 600
        rate = (len(times) - 1) / (times[-1] - times[0])
        record_property(
            "figure", f"4 processes, one host: {server.peak('127.0.0.1')} connections at most, {rate:.0f} starts a second"
        )
        # Arrivals jitter, so the interval is held over any hundred of them, and as a whole.
        assert min(b - a for a, b in zip(times, times[100:], strict=False)) >= 100 * INTERVAL_S * 0.7
        assert times[-1] - times[0] >= (len(times) - 1) * INTERVAL_S * 0.95
        assert len(server.asked("/robots.txt")) == 1


@pytest.mark.fault("N42")
def test_a_worker_killed_with_all_connections_in_use_lets_the_next_one_in(tmp_path: Path) -> None:
    with hostile_server() as server:
        server.on("/held", held)
        server.on("/x", after_a_while)
        urls = [[server.url("/held", n=n) for n in range(8)], [server.url("/x", n=n) for n in range(8)]]
        with workers(1, server, urls, tmp_path, "ok") as (holder,):
            deadline = time.monotonic() + 30
            while len(server.asked("/held")) < LIMITS.per_host and time.monotonic() < deadline:
                time.sleep(0.02)
            with workers(1, server, urls[1:], tmp_path, "ok") as (other,):
                other.join(3)
                assert other.is_alive()
                assert server.asked("/x") == []
                os.kill(holder.pid or 0, signal.SIGKILL)
                other.join(30)
                assert other.exitcode == 0
        assert len(server.asked("/held")) == LIMITS.per_host
        assert len(server.asked("/x")) == 8


@pytest.mark.fault("N29")
def test_what_one_process_was_told_by_retry_after_the_next_one_obeys(tmp_path: Path) -> None:
    with hostile_server() as server:
        server.on("/x", http(b"", "Retry-After: 86400", status="503 Busy"))
        assert work(server.allow, [server.url("/x")], tmp_path) == ["throttled"]
        with workers(1, server, [[server.url("/x", n=n) for n in range(20)]], tmp_path, "throttled") as (other,):
            other.join(30)
            assert other.exitcode == 0
        assert len(server.asked("/x")) == 1
        assert len(server.asked("/robots.txt")) == 1


def test_each_machine_takes_its_part_of_what_a_host_allows(tmp_path: Path) -> None:
    with hostile_server() as server:
        server.on("/x", after_a_while)
        assert work(server.allow, [server.url("/x", n=n) for n in range(20)], tmp_path, share=4) == ["ok"] * 20
        assert server.peak("127.0.0.1") == 1
        times = sorted(hit.at_s for hit in server.asked("/x"))
        assert times[-1] - times[0] >= 19 * INTERVAL_S * 4 * 0.95


def test_a_process_may_open_a_table_twice_and_close_it_once(tmp_path: Path) -> None:
    with open_table(tmp_path) as first:
        with open_table(tmp_path) as second:
            assert first is second
            place = second.place("a", 1, 0.0)
            assert second.start(place) == 0
        assert first.start(place) > 0
        first.finish(place)
        assert first.start(place) == 0
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_table(tmp_path):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_claim_is_held_by_one(tmp_path: Path) -> None:
    with open_table(tmp_path) as table:
        claim = table.claim("site a")
        assert claim is not None
        assert table.claim("site a") is None
        other = table.claim("site b")
        assert other is not None
        table.give_up(claim)
        assert table.claim("site a") == claim


def test_a_full_table_forgets_idle_hosts_and_then_shares_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_CAPACITY", 8)
    monkeypatch.setattr(hosts, "_SIZE", 8 * 5 * 8)
    table = HostTable()
    places = [table.place(f"h{n}", 1, 0.5) for n in range(9)]
    assert [table.start(place) for place in places[:8]] == [0.0] * 8
    assert table.start(places[8]) > 0
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert table.start(places[8]) == 0
    table.close()


def test_a_rest_ends_and_a_pause_is_only_lengthened(monkeypatch: pytest.MonkeyPatch) -> None:
    table, now = HostTable(), time.monotonic()
    place = table.place("a", 4, 0.0)
    table.pause(place, 10)
    table.pause(place, 1)
    table.rest(place, 5)
    monkeypatch.setattr(time, "monotonic", lambda: now + 4)
    assert 5 < table.start(place) < 7
    assert 0.5 < table.rests_s(place) < 2
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert table.rests_s(place) <= 0
    assert table.start(place) == 0
    table.close()


@pytest.mark.fault("R08")
def test_an_answer_is_kept_for_a_day_of_the_monotonic_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, now, wall = AnswerCache(tmp_path), time.monotonic(), time.time()
    cache.put("http://a/robots.txt", Fetched(200, {"x": "y"}, b"\n\0text", "http://b/r"), holds_s=1e9)
    cache.put("http://b/robots.txt", Failure("dns", "no such name", "http://b/robots.txt"), holds_s=60)
    monkeypatch.setattr(time, "time", lambda: wall + 1e6)
    assert AnswerCache(tmp_path).get("http://a/robots.txt") == Fetched(200, {}, b"\n\0text", "http://b/r")
    assert AnswerCache(tmp_path).get("http://b/robots.txt") == Failure("dns", "no such name", "http://b/robots.txt")
    assert cache.get("http://c/robots.txt") is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert cache.get("http://b/robots.txt") is None
    monkeypatch.setattr(time, "monotonic", lambda: now + DAY_S + 1)
    assert cache.get("http://a/robots.txt") is None


@pytest.mark.fault("R08")
@pytest.mark.parametrize("damage", [b"", b"{", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_store_is_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    cache = AnswerCache(tmp_path)
    cache.put("http://a/robots.txt", Fetched(200, {}, b"x"))
    cache.close()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        path.write_bytes(damage)
    cache = AnswerCache(tmp_path)
    assert cache.get("http://a/robots.txt") is None
    cache.put("http://a/robots.txt", Fetched(200, {}, b"y"))
    assert cache.get("http://a/robots.txt") in (None, Fetched(200, {}, b"y"))
    cache.put("http://a/\ud800", Fetched(200, {}, b"y"))
    assert cache.get("http://a/\ud800") is None
    cache.close()
