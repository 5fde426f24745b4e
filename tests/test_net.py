"""Fetching: which addresses are dialled, what is asked of whom, and how each answer ends."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mmdata.errors import ConfigError
from mmdata.net import Failure, Fetched, Fetcher, Guard, Limits, Policy, ReplayTransport, Signals
from mmdata.net.client import open_transport
from mmdata.net.guard import Allowance, Blocked, is_public
from mmdata.net.optout import opt_out

AGENT = "mmdata/0.1"
QUICK = Limits(host_interval_s=0, retries=1, headers_s=0.5, idle_s=0.5, total_s=2, slow_after_s=0.3, max_mib=1)
NO_FILES = Signals(tdmrep_json=False)


@contextmanager
def raw_server(answer: bytes, *, hold: bool = False, address: str = "127.0.0.1") -> Iterator[tuple[int, list[bytes]]]:
    """A socket that gives every connection the same bytes, and keeps what was asked."""
    listener = socket.create_server((address, 0))
    asked: list[bytes] = []
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                asked.append(connection.recv(65536))
                connection.sendall(answer)
                if hold:
                    held.append(connection)
                    continue
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        for connection in held:
            connection.close()
        listener.close()


def fetch(url: str, *, allow: tuple[str, ...] = (), limits: Limits = QUICK, robots: bool = False) -> Fetched | Failure:
    async def run() -> Fetched | Failure:
        async with open_transport(Guard(allow), limits, AGENT, 4) as transport:
            return await Fetcher(transport, Policy(limits, AGENT, robots, NO_FILES)).fetch(url)

    return asyncio.run(run())


def outcome(result: Fetched | Failure) -> str:
    return result.outcome if isinstance(result, Failure) else "ok"


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http(b"data"), "ok"),
        (http(b"data", length=1000), "short_body"),
        (http(b"", status="404 Not Found"), "http_4xx"),
        (http(b"", status="503 Busy"), "http_5xx"),
        (http(b"", status="429 Slow"), "throttled"),
        (http(b"", status="204 No"), "bad_response"),
        (http(b"x", length=10 << 30), "too_large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), "too_large"),
        (http(b"x", "Content-Encoding: gzip"), "bad_encoding"),
        (http(b"x", "X-Robots-Tag: noai"), "opted_out"),
        (http(b"x", "TDM-Reservation: 1"), "opted_out"),
        (http(b"", "Location: http://127.0.0.2/", status="302 Found"), "blocked_address"),
        (http(b"", "Location: ftp://x/", status="302 Found"), "blocked_scheme"),
        (http(b"", status="302 Found"), "bad_response"),
        (b"not http at all\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"y" * 100_000 + b"\r\n\r\n", "bad_response"),
        (b"", "conn_reset"),
    ],
)  # fmt: skip
def test_how_an_answer_ends(answer: bytes, expected: str) -> None:
    with raw_server(answer) as (port, _):
        assert outcome(fetch(f"http://127.0.0.1:{port}/x.jpg", allow=(f"127.0.0.1:{port}",))) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(b"", "timeout_headers"), (http(b"x", length=100), "timeout_idle"), (b"HTTP/1.1 200", "timeout_headers")],
)
def test_a_silent_server_is_left(answer: bytes, expected: str) -> None:
    with raw_server(answer, hold=True) as (port, _):
        assert outcome(fetch(f"http://127.0.0.1:{port}/", allow=(f"127.0.0.1:{port}",))) == expected


def test_an_opt_out_costs_one_request() -> None:
    with raw_server(http(b"x", "X-Robots-Tag: noai")) as (port, asked):
        fetch(f"http://127.0.0.1:{port}/", allow=(f"127.0.0.1:{port}",))
        assert len(asked) == 1


def test_nothing_on_loopback_is_dialled_by_default() -> None:
    with raw_server(http(b"secret")) as (port, asked):
        assert outcome(fetch(f"http://127.0.0.1:{port}/")) == "blocked_address"
        assert outcome(fetch("http://127.0.0.1/")) == "blocked_address"
        assert outcome(fetch("http://localhost/")) == "blocked_address"
        assert not asked


@pytest.mark.parametrize(
    "url",
    ["http://127.1/", "http://2130706433/", "http://0x7f.0.0.1/", "http://[::ffff:127.0.0.1]/", "http://[::1]/",
     "http://user@127.0.0.1/", "http://①②⑦.⓪.⓪.①/", "http://127.0.0.1./", "http://169.254.169.254/latest/"],
)  # fmt: skip
def test_odd_spellings_of_private_addresses(url: str) -> None:
    assert outcome(fetch(url)) in ("blocked_address", "bad_row", "dns")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "data:,x", "ftp://a/", "s3://a/b", "pipe:cat", "/etc/passwd", "\\\\a\\b"])
def test_only_http_is_fetched(url: str) -> None:
    assert outcome(fetch(url)) == "blocked_scheme"


PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.255.255.255", "169.254.0.1", "172.16.0.1", "172.31.255.255", "192.0.0.1",
    "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "::ffff:8.8.8.8", "64:ff9b::808:808",
    "2001::1", "2001:2::1", "2001:10::1", "2002::1", "4000::1", "5f00::1", "2001:db8::1", "2a00::5efe:10.0.0.1", "not an address",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::5efe:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_an_allowance_is_exact() -> None:
    guard = Guard(("127.0.0.1:8080", "*.demo.localhost=127.0.0.1:9090"))
    guard.check("127.0.0.1", 8080)
    with pytest.raises(Blocked, match=r"127\.0\.0\.1 is not a public address"):
        guard.check("127.0.0.1", 8081)
    with pytest.raises(Blocked, match="port 8081"):
        guard.check("8.8.8.8", 8081)
    assert guard.place_of("a.demo.localhost.") == ("127.0.0.1", 9090)
    assert guard.place_of("example.com") is None
    with pytest.raises(ConfigError, match="not an allowance"):
        Allowance.parse("localhost:80")


def policy(answers: dict[str, Fetched | Failure], url: str, limits: Limits = QUICK) -> tuple[Fetched | Failure, list[str]]:
    async def run() -> tuple[Fetched | Failure, list[str]]:
        transport = ReplayTransport(answers)
        return await Fetcher(transport, Policy(limits, AGENT, signals=NO_FILES)).fetch(url), transport.requests

    return asyncio.run(run())


def test_robots_are_asked_first_and_obeyed() -> None:
    robots = Fetched(200, {}, b"User-agent: *\nDisallow: /private\n")
    result, asked = policy({"http://a/robots.txt": robots}, "http://a/private/x.jpg")
    assert outcome(result) == "robots"
    assert asked == ["http://a/robots.txt"]


@pytest.mark.parametrize(
    ("robots", "expected"),
    [(Fetched(404, {}), "ok"), (Fetched(403, {}), "ok"), (Fetched(500, {}), "robots"), (Failure("timeout_total", ""), "robots"),
     (Fetched(200, {}, b"User-agent: mmdata\nDisallow: /\n"), "robots"), (Fetched(200, {}, b"\xff\xfe\0<html>"), "ok"),
     (Fetched(200, {}, b"User-agent: *\nCrawl-delay: 1000000\n"), "robots")],
)  # fmt: skip
def test_what_robots_txt_may_be(robots: Fetched | Failure, expected: str) -> None:
    result, _ = policy({"http://a/robots.txt": robots, "http://a/x": Fetched(200, {}, b"data")}, "http://a/x")
    assert outcome(result) == expected


@pytest.mark.parametrize("outcome_", ["dns", "tls", "conn_reset", "blocked_address", "blocked_port", "timeout_connect"])
def test_a_host_that_cannot_be_reached_ends_as_that_and_not_as_robots(outcome_: str) -> None:
    result, asked = policy({"http://a/robots.txt": Failure(outcome_, "")}, "http://a/x")
    assert outcome(result) == outcome_
    assert "http://a/x" not in asked


def test_an_opt_out_on_robots_txt_itself_does_not_hide_it() -> None:
    with raw_server(http(b"User-agent: *\nDisallow: /\n", "X-Robots-Tag: noindex")) as (port, asked):
        result = fetch(f"http://127.0.0.1:{port}/x.jpg", allow=(f"127.0.0.1:{port}",), robots=True)
        assert outcome(result) == "robots"
        assert len(asked) == 1


@pytest.mark.parametrize("location", ["http://[x", "http://a\\b", "\x00"])
def test_a_redirect_to_nowhere_costs_its_row(location: str) -> None:
    result, _ = policy({"http://a/x": Fetched(302, {"location": location})}, "http://a/x")
    assert outcome(result) in ("bad_response", "bad_row", "http_4xx")


def test_a_host_of_a_star_costs_its_row() -> None:
    assert outcome(fetch("http://*/x")) in ("dns", "bad_response", "bad_row", "conn_reset")


def test_redirects_end() -> None:
    result, asked = policy({"http://a/x": Fetched(302, {"location": "/x"})}, "http://a/x")
    assert outcome(result) == "redirect_limit"
    assert asked.count("http://a/x") == 6


def test_transient_failures_are_tried_again_and_others_are_not() -> None:
    _, asked = policy({"http://a/x": Failure("conn_reset", "")}, "http://a/x")
    assert asked.count("http://a/x") == 2
    _, asked = policy({}, "http://a/x")
    assert asked.count("http://a/x") == 1


def test_a_broken_host_is_left_alone() -> None:
    async def run() -> tuple[list[str], int]:
        transport = ReplayTransport({f"http://a/{n}": Failure("conn_reset", "") for n in range(20)})
        fetcher = Fetcher(transport, Policy(QUICK.model_copy(update={"retries": 0}), AGENT, signals=NO_FILES))
        results = [outcome(await fetcher.fetch(f"http://a/{n}")) for n in range(20)]
        return results, len(transport.requests)

    results, num = asyncio.run(run())
    assert results == ["conn_reset"] * 5 + ["throttled"] * 15
    assert num == 6  # robots.txt and five tries


def test_a_host_is_asked_by_few_at_once() -> None:
    class Counting(ReplayTransport):
        now = peak = 0

        async def get(self, url: str, **options: object) -> Fetched | Failure:
            Counting.now += 1
            Counting.peak = max(Counting.peak, Counting.now)
            await asyncio.sleep(0.005)
            Counting.now -= 1
            return await super().get(url)

    async def run() -> None:
        fetcher = Fetcher(Counting({}), Policy(QUICK, AGENT, robots=False, signals=NO_FILES))
        await asyncio.gather(*(fetcher.fetch(f"http://a/{n}") for n in range(50)))

    asyncio.run(run())
    assert Counting.peak == QUICK.per_host


@pytest.mark.parametrize(
    ("headers", "signal"),
    [
        ({"x-robots-tag": "noai"}, True), ({"x-robots-tag": "NoImageAI"}, True), ({"x-robots-tag": "none"}, True),
        ({"x-robots-tag": "all, noml"}, True), ({"x-robots-tag": "noai, unavailable_after: 25 Jun 2030 15:00:00 PST"}, True),
        ({"x-robots-tag": "otherbot: noindex"}, False),
        ({"x-robots-tag": "mmdata: noindex"}, True), ({"x-robots-tag": "all"}, False), ({}, False),
        ({"tdm-reservation": " 1 "}, True), ({"tdm-reservation": "0"}, False), ({"tdm-reservation": "2"}, False),
        ({"content-usage": "train-ai=n"}, True),
    ],
)  # fmt: skip
def test_opt_outs(headers: dict[str, str], signal: bool) -> None:
    assert (opt_out(headers) is not None) == signal
