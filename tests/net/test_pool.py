"""Connections: kept, bounded, asked again when the server closed them first, and gone when the work is cancelled."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable

import pytest

from mmdata.errors import ConfigError
from mmdata.net import Failure, Fetched, Guard
from mmdata.net.client import Options, open_transport
from mmdata.net.dns import TableResolver
from tests.net.asking import QUICK, ask, ask_at_once, outcome
from tests.net.behaviours import jpeg
from tests.net.hostile import HostileServer, http


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the folder changes while it is read


def wait_until(true: Callable[[], bool], seconds: float = 5) -> bool:
    end_s = time.monotonic() + seconds
    while not true() and time.monotonic() < end_s:
        time.sleep(0.01)
    return true()


def test_one_connection_serves_many_requests(hostile: HostileServer) -> None:
    async def work() -> None:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 4) as transport:
            for path in ["/ok", "/chunked", "/status?code=404", "/robots.txt", "/redirect?to=/x", "/ok"] * 3:
                await transport.get(hostile.url(path, host="a"))
            assert (transport.num_requests, len(hostile.hits)) == (18, 18)
            assert transport.num_bytes == 9 * len(jpeg())

    asyncio.run(work())
    assert {hit.connection for hit in hostile.hits} == {1}


def test_connections_are_bounded_and_idle_ones_give_way(hostile: HostileServer) -> None:
    async def work() -> None:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 3, Options(idle=0)) as transport:
            urls = [hostile.url("/ok", host=f"h{n}") for n in range(30)]
            assert {outcome(result) for result in await ask_at_once(transport, urls)} == {"ok"}
            assert hostile.peak() <= 3
            assert len(transport.pool) <= 3
            await asyncio.sleep(0.3)  # the server hears of an end a little later
            assert hostile.num_open <= 3

    asyncio.run(work())
    assert wait_until(lambda: hostile.num_open == 0)


def test_many_hosts_keep_their_connections(hostile: HostileServer) -> None:
    async def work() -> None:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 3) as transport:
            urls = [hostile.url("/ok", host=f"h{n}") for n in range(60)]
            for _ in range(3):
                assert {outcome(result) for result in await ask_at_once(transport, urls)} == {"ok"}
            assert hostile.peak() <= 3
            assert len(transport.pool) == 60

    asyncio.run(work())
    assert len({hit.connection for hit in hostile.hits}) == 60
    assert wait_until(lambda: hostile.num_open == 0)


@pytest.mark.fault("N36")
def test_cookies_are_not_kept(hostile: HostileServer) -> None:
    urls = [hostile.url("/cookie", host=f"h{n}") for n in range(200)] + [hostile.url("/ok", host="h1")]
    assert {outcome(result) for result in ask(hostile, urls)} == {"ok"}
    assert not [hit for hit in hostile.hits if "cookie" in hit.headers]


@pytest.mark.fault("N38")
@pytest.mark.parametrize("path", ["/keep-then-close", "/reset-if-reused"])
def test_a_kept_connection_that_the_server_closed_costs_no_row(hostile: HostileServer, path: str) -> None:
    async def work() -> None:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 4) as transport:
            for _ in range(6):
                result = await transport.get(hostile.url(path))
                assert isinstance(result, Fetched), result
                assert result.body == jpeg()

    asyncio.run(work())
    assert len(hostile.hits) <= 11
    assert len({hit.connection for hit in hostile.hits}) == 6


@pytest.mark.fault("N38")
def test_a_new_connection_that_the_server_closes_is_not_tried_twice(hostile: HostileServer) -> None:
    (result,) = ask(hostile, hostile.url("/nothing"))
    assert outcome(result) == "conn_reset"
    assert len(hostile.hits) == 1


def test_bytes_after_an_answer_are_no_answer_to_the_next_request(hostile: HostileServer) -> None:
    smuggled = http(b"other", "X-Smuggled: 1")
    hostile.on("/two", http(b"data") + smuggled)
    results = ask(hostile, [hostile.url("/two"), hostile.url("/ok"), hostile.url("/ok")])
    assert [result.body for result in results if isinstance(result, Fetched)] == [b"data", jpeg(), jpeg()]
    assert [hit.connection for hit in hostile.hits] == [1, 2, 2]


@pytest.mark.fault("N39")
def test_cancelling_many_slow_bodies_leaves_nothing(hostile: HostileServer) -> None:
    limits = QUICK.model_copy(update={"connect_s": 60, "headers_s": 60, "idle_s": 60, "total_s": 60, "slow_after_s": 60})

    async def work() -> None:
        async with open_transport(Guard(hostile.allow), limits, "mmdata/0.1", 64) as transport:
            urls = [hostile.url("/slow-body", host=f"h{n % 64}") for n in range(64 * 1000)]
            tasks = [asyncio.create_task(transport.get(url)) for url in urls]
            while len(hostile.hits) < 64:
                await asyncio.sleep(0.02)
            started = time.thread_time()  # of this thread: the server shares the process, and others the machine
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert time.thread_time() - started < 5
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [task.result() for task in tasks if not task.cancelled()] == []

    descriptors, threads = num_descriptors(), threading.active_count()
    asyncio.run(work())
    assert wait_until(lambda: hostile.num_open == 0)
    assert wait_until(lambda: num_descriptors() <= descriptors)
    assert threading.active_count() <= threads


def test_closing_ends_what_is_under_way(hostile: HostileServer) -> None:
    async def work() -> None:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 4) as transport:
            task = asyncio.create_task(transport.get(hostile.url("/silence")))
            while not hostile.hits:
                await asyncio.sleep(0.01)
        assert outcome(await task) == "conn_reset"

    asyncio.run(work())
    assert wait_until(lambda: hostile.num_open == 0)


def test_bodies_are_freed_without_the_collector(hostile: HostileServer) -> None:
    gc.collect()
    gc.disable()
    try:
        before = num_replies()  # of tests before this one
        ask(hostile, [hostile.url("/ok")] * 20)
        found = num_replies() - before
    finally:
        gc.enable()
    assert found <= 1


def num_replies() -> int:
    return sum(1 for item in gc.get_objects() if type(item).__name__ == "Reply")


def test_headers_of_a_host_are_for_that_host_alone(hostile: HostileServer) -> None:
    options = Options(headers={"A.hostile.test": {"Authorization": "Bearer secret", "X-Two": "2"}})
    urls = [
        hostile.url("/redirect", host="a", to=hostile.url("/ok", host="b")),
        hostile.url("/ok"),
        hostile.url("/short", host="a"),
    ]
    results = ask(hostile, urls, options=options, policy=True)
    assert [outcome(result) for result in results] == ["ok", "ok", "short_body"]
    sent = [(hit.host, hit.headers.get("authorization")) for hit in hostile.hits]
    assert sent == [
        ("a.hostile.test", "Bearer secret"), ("b.hostile.test", None), ("127.0.0.1", None), ("a.hostile.test", "Bearer secret"),
    ]  # fmt: skip
    assert "secret" not in repr(options) + repr(results)


@pytest.mark.parametrize("own", [{"X": "a\r\nHost: b"}, {"X\n": "a"}, {"Host": "b"}, {"Content-Length": "1"}, {"X": "\u20ac"}])
def test_a_header_that_is_no_header_is_refused_without_showing_it(own: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)headers for a\.test: .* cannot be set") as caught:
        ask(HostileServer(None), [], options=Options(headers={"a.test": own}))
    assert "Host: b" not in str(caught.value)


def test_headers_of_one_request_are_sent_with_that_alone(hostile: HostileServer) -> None:
    async def work() -> None:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 4) as transport:
            await transport.get(hostile.url("/ok"), headers={"Authorization": "Bearer secret"})
            await transport.get(hostile.url("/ok"))
            refused = await transport.get(hostile.url("/ok"), headers={"X": "secret\r\nY: z"})
            assert isinstance(refused, Failure)
            assert "secret" not in repr(refused)

    asyncio.run(work())
    assert [hit.headers.get("authorization") for hit in hostile.hits] == ["Bearer secret", None]


def test_where_a_host_is_dialled_can_be_asked() -> None:
    resolver = TableResolver({"a.example": [["8.8.8.8", "8.8.4.4"]]})

    async def work() -> None:
        async with open_transport(
            Guard(("*.demo.test=127.0.0.1:8080",)), QUICK, "mmdata/0.1", 4, Options(resolver=resolver)
        ) as transport:
            hosts = ["a.example", "A.example.", "nothing.example", "1.2.3.4", "::1", "x.demo.test", "metadata", "a b", ""]
            found = [await transport.address(host) for host in hosts]
        assert found == ["8.8.8.8", "8.8.8.8", "", "1.2.3.4", "::1", "", "", "", ""]
        assert resolver.asked == ["a.example", "nothing.example"]

    asyncio.run(work())


def test_a_host_may_be_told_another_user_agent(hostile: HostileServer) -> None:
    ask(
        hostile,
        [hostile.url("/ok", host="a"), hostile.url("/ok")],
        options=Options(headers={"a.hostile.test": {"user-agent": "x"}}),
    )
    assert [hit.headers["user-agent"][:6] for hit in hostile.hits] == ["x", "mmdata"]


def test_an_agent_that_is_more_than_a_line_is_refused() -> None:
    async def work() -> None:
        async with open_transport(Guard(), QUICK, "mmdata\r\nX: y", 4):
            raise AssertionError("unreachable")

    with pytest.raises(ConfigError, match="`User-Agent` cannot be set"):
        asyncio.run(work())


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "nonsense", "http://"])
def test_a_proxy_that_is_none_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigError, match="proxy: "):
        ask(HostileServer(None), [], options=Options(proxy=proxy))


def test_a_proxy_that_is_away_is_no_connection(hostile: HostileServer) -> None:
    server = HostileServer(None)
    server.port = 1
    (result,) = ask(server, "http://example.com/", options=Options(proxy="http://127.0.0.1:1"))
    assert isinstance(result, Failure)
    assert result.outcome == "conn_reset"
