"""Names: how long an answer counts, who is asked, and that nobody waits for ever."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mmdata.net import Guard
from mmdata.net import dns as dns_module
from mmdata.net.client import Options, open_transport
from mmdata.net.dns import Addresses, NameCache, ServerResolver, SystemResolver, TableResolver, Unresolved, in_turn, literal
from tests.net.asking import QUICK, ask, ask_at_once, outcome
from tests.net.hostile import HostileServer


class Silent:
    """A resolver that never answers."""

    async def addresses(self, name: str) -> Addresses:
        await asyncio.sleep(3600)
        raise AssertionError(name)

    def close(self) -> None:
        pass


@contextmanager
def name_server(*, silent: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A name server on loopback: every name has 203.0.113.7 for 60 s, but those that begin with `no` do not exist."""
    asked: list[bytes] = []
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                question, visitor = listener.recvfrom(4096)
                end = question.index(b"\0", 12) + 5
                asked.append(question[13 : 13 + question[12]])
                (kind,) = struct.unpack(">H", question[end - 4 : end - 2])
                missing, found = asked[-1].startswith(b"no"), kind == 1
                head = question[:2] + struct.pack(">HHHHH", 0x8183 if missing else 0x8180, 1, int(found and not missing), 0, 0)
                record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton("203.0.113.7")
                if not silent:
                    listener.sendto(head + question[12:end] + (record if found and not missing else b""), visitor)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.close()


@pytest.mark.fault("N34")
def test_a_name_that_does_not_exist_ends_as_that() -> None:
    resolver = TableResolver({})
    server = HostileServer(None)
    results = ask(server, ["http://nothing.example/"] * 3, options=Options(resolver=resolver))
    assert [outcome(result) for result in results] == ["dns"] * 3
    assert resolver.asked == ["nothing.example"]  # that a name does not exist is remembered too


@pytest.mark.fault("N34")
def test_a_silent_resolver_is_left() -> None:
    started = time.monotonic()
    (result,) = ask(HostileServer(None), "http://a.example/", options=Options(resolver=Silent(), dns_s=0.3))
    assert outcome(result) == "dns"
    assert "no answer from the name servers after 0.3 s" in str(result)
    assert time.monotonic() - started < 2


@pytest.mark.fault("N34")
def test_a_system_that_hangs_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(dns_module, "_ask_system", lambda _: hang.wait(20))
    started = time.monotonic()
    server = HostileServer(None)
    results = ask(server, [f"http://{n}.example/" for n in range(3)], options=Options(dns_s=0.1))
    assert [outcome(result) for result in results] == ["dns"] * 3
    assert time.monotonic() - started < 3
    hang.set()


@pytest.mark.fault("N34", "N39")
def test_closing_ends_lookups_too() -> None:
    async def work() -> None:
        async with open_transport(Guard(), QUICK, "mmdata/0.1", 4, Options(resolver=Silent())) as transport:
            task = asyncio.create_task(transport.get("http://a.example/"))
            await asyncio.sleep(0.05)
            task.cancel()
        assert await asyncio.gather(task, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


@pytest.mark.fault("N34")
def test_of_a_thousand_addresses_few_are_tried(hostile: HostileServer) -> None:
    many = [f"127.1.{n // 256}.{n % 256}" for n in range(1000)]
    resolver = TableResolver({"many.example": [many], "late.example": [[*many[:3], "127.0.0.1"]]})

    async def work() -> None:
        cache = NameCache(resolver)
        assert len(await cache.lookup("many.example")) == 8

    asyncio.run(work())
    urls = [f"http://{name}.example:{hostile.port}/ok" for name in ("many", "late")]
    assert [outcome(result) for result in ask(hostile, urls, options=Options(resolver=resolver))] == ["blocked_address", "ok"]


@pytest.mark.fault("N34")
def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    resolver = TableResolver({f"{n}.example": [["8.8.8.8"]] for n in range(5_000)})

    async def work() -> None:
        cache = NameCache(resolver, most_names=1_000)
        for n in range(10_000):  # half of them do not exist
            with contextlib.suppress(Unresolved):
                await cache.lookup(f"{n}.example")
        assert len(cache) == 1_000
        with pytest.raises(Unresolved, match="not in the table"):
            await cache.lookup("9999.example")
        assert len(resolver.asked) == 10_000
        assert await cache.lookup("0.example") == ("8.8.8.8",)
        assert len(resolver.asked) == 10_001

    asyncio.run(work())


def test_one_lookup_serves_all_who_wait_and_outlives_who_gives_up() -> None:
    resolver = TableResolver({"a.example": [["8.8.8.8"]]})

    async def work() -> None:
        cache = NameCache(resolver)
        waiting = [asyncio.create_task(cache.lookup("a.example")) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [("8.8.8.8",)] * 49
        assert resolver.asked == ["a.example"]

    asyncio.run(work())


def test_an_answer_counts_for_its_time() -> None:
    class Changing(TableResolver):
        ttl_s = 0.0

        async def addresses(self, name: str) -> Addresses:
            return Addresses((await super().addresses(name)).texts, self.ttl_s)

    resolver = Changing({"a.example": [["8.8.8.8"], ["8.8.4.4"]]})

    async def work() -> None:
        cache = NameCache(resolver)
        loop = asyncio.get_running_loop()
        assert await cache.lookup("a.example") == ("8.8.8.8",)
        until_s, _ = cache._known["a.example"]
        assert 9 < until_s - loop.time() <= 10  # a TTL of 0 still spares the name servers
        cache._known["a.example"] = (loop.time(), ("8.8.8.8",))
        assert await cache.lookup("a.example") == ("8.8.4.4",)

    asyncio.run(work())


def test_the_system_knows_localhost() -> None:
    async def work() -> None:
        cache = NameCache(SystemResolver(threads=2))
        found = await asyncio.gather(*(cache.lookup("localhost") for _ in range(4)))
        assert set(found[0]) <= {"127.0.0.1", "::1"}
        with pytest.raises(Unresolved):
            await cache.lookup("a..b")
        cache.close()

    before = threading.active_count()
    asyncio.run(work())
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_name_servers_of_ones_own_choice_are_asked_in_turn() -> None:
    async def work(servers: list[str], name: str) -> Addresses:
        resolver = ServerResolver(servers, timeout_s=0.3)
        try:
            async with asyncio.timeout(5):
                return await resolver.addresses(name)
        finally:
            resolver.close()

    with name_server() as (good, asked), name_server(silent=True) as (silent, _):
        assert asyncio.run(work([good], "a.example")) == Addresses(("203.0.113.7",), 60.0)
        assert set(asked) == {b"a"}
        assert asyncio.run(work([silent, good], "b.example")).texts == ("203.0.113.7",)
        with pytest.raises(Unresolved, match=r"none\.example") as caught:
            asyncio.run(work([good], "none.example"))
        assert caught.value.lasting


def test_the_answers_of_name_servers_are_judged_too() -> None:
    with name_server() as (address, asked):
        (result,) = ask(HostileServer(None), "http://a.example/", options=Options(nameservers=(address,)))
        assert outcome(result) == "blocked_address"  # 203.0.113.7 is for documentation
        assert asked


def test_a_dead_name_does_not_hold_up_a_live_one(hostile: HostileServer) -> None:
    class Half(TableResolver):
        async def addresses(self, name: str) -> Addresses:
            if name.startswith("dead"):
                await asyncio.sleep(3600)
            return await super().addresses(name)

    resolver = Half({"live.example": [["127.0.0.1"]]})

    async def work() -> float:
        options = Options(resolver=resolver, dns_s=2)
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 16, options) as transport:
            dead = asyncio.gather(*(transport.get(f"http://dead{n}.example/") for n in range(8)))
            await asyncio.sleep(0)
            started = time.monotonic()
            results = await ask_at_once(transport, [f"http://live.example:{hostile.port}/ok"] * 20)
            assert [outcome(result) for result in results] == ["ok"] * 20
            elapsed_s = time.monotonic() - started
            assert {outcome(result) for result in await dead} <= {"timeout_total"}
            return elapsed_s

    assert asyncio.run(work()) < 1


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("010.0.0.1", "8.0.0.1"), ("1.2.3.4.", "1.2.3.4"), ("::1", "::1"),
     ("a.example", None), ("1.example", None), ("example", None)],
)  # fmt: skip
def test_what_is_an_address(host: str, address: str | None) -> None:
    assert literal(host) == address


@pytest.mark.parametrize("host", ["1.2.3.256", "1.2.3.4.5", "0x7g.1", "1..2", "a.0x", "::g"])
def test_what_is_neither_name_nor_address(host: str) -> None:
    with pytest.raises(ValueError, match="address"):
        literal(host)


def test_families_take_turns() -> None:
    assert in_turn(["::2", "::3", "1.1.1.1", "1.1.1.2", "1.1.1.1", "::2"]) == ("::2", "1.1.1.1", "::3", "1.1.1.2")
    assert in_turn([]) == ()
