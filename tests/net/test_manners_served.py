"""Manners over real connections: what a server sees of us."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmdata.net import Failure, Fetched, Guard, Limits, Policy, Signals, open_fetcher
from mmdata.net.client import open_transport
from tests.net.behaviours import BEHAVIOURS, jpeg
from tests.net.hostile import Exchange, HostileServer, hostile_server, http

QUICK = Limits(host_interval_s=0, retries=2, backoff_s=0.05)


def fetch(
    server: HostileServer, urls: Sequence[str], limits: Limits = QUICK, signals: Signals | None = None, folder: Path | None = None
) -> list[Fetched | Failure]:
    async def run() -> list[Fetched | Failure]:
        policy = Policy(limits, "mmdata/0.1 (+mail@example.org)", signals=signals or Signals())
        transport = open_transport(Guard(server.allow), policy.limits, policy.agent, policy.sockets)
        async with open_fetcher(transport, policy, folder) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    return asyncio.run(run())


def outcomes(results: Sequence[Fetched | Failure]) -> list[str]:
    return [result.outcome if isinstance(result, Failure) else "ok" for result in results]


@pytest.mark.fault("N01")
def test_a_picture_comes_with_the_rule_that_allowed_it_and_three_requests() -> None:
    with hostile_server() as server:
        server.on("/robots.txt", http(b"User-agent: *\nDisallow: /private\nAllow: /private/ok\n"))
        server.on("/private/ok", http(jpeg(), "Content-Type: image/jpeg"))
        (result,) = fetch(server, [server.url("/private/ok", host="a")])
        assert isinstance(result, Fetched)
        assert (result.body, result.rule) == (jpeg(), "robots: Allow: /private/ok")
        assert [hit.path for hit in server.hits] == ["/robots.txt", "/.well-known/tdmrep.json", "/private/ok"]
        assert all(hit.headers["user-agent"] == "mmdata/0.1 (+mail@example.org)" for hit in server.hits)


@pytest.mark.fault("R12", "R18")
@pytest.mark.parametrize(
    ("headers", "rule"),
    [(["X-Robots-Tag: noai"], "X-Robots-Tag: noai"), (["X-Robots-Tag: all", "X-Robots-Tag: noml"], "X-Robots-Tag: noml"),
     (["X-Robots-Tag: otherbot: noindex", "x-robots-tag: NoImageAI"], "X-Robots-Tag: noimageai"),
     (["X-Robots-Tag: all,\r\n  noai"], "X-Robots-Tag: noai"), (["TDM-Reservation:  1 "], "TDM-Reservation: 1"),
     (["X-Robots-Tag: unavailable_after: Friday, 25-Jun-30 15:00:00 UTC", "X-Robots-Tag: noindex"], "X-Robots-Tag: noindex"),
     (["Content-Usage: train-ai=n"], "Content-Usage: train-ai=n"),
     (["Content-Signal: ai-train=no"], "Content-Signal: ai-train=no")],
)  # fmt: skip
def test_an_opt_out_costs_one_request_and_its_body_is_not_read(headers: list[str], rule: str) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.send(("HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n" + "\r\n".join(headers) + "\r\n\r\n").encode())
        for _ in range(1600):
            await exchange.send(bytes(65536))

    with hostile_server() as server:
        server.on("/x", endless)
        (result,) = fetch(server, [server.url("/x", host="a")])
        assert (outcomes([result]), result.rule) == (["opted_out"], rule)
        assert len(server.asked("/x")) == 1


@pytest.mark.fault("R14", "R15")
def test_a_reservation_in_the_file_is_known_before_the_body_is_read_and_the_header_can_lift_it() -> None:
    with hostile_server() as server:
        server.on("/.well-known/tdmrep.json", http(b'[{"location": "/x*", "tdm-reservation": 1}]'))
        server.on("/x", http(jpeg()))
        server.on("/x0", http(jpeg(), "TDM-Reservation: 0"))
        server.on("/y", http(jpeg()))
        results = fetch(server, [server.url(path, host="a") for path in ("/x", "/x0", "/y")])
        assert outcomes(results) == ["opted_out", "ok", "ok"]
        assert results[0].rule == "tdmrep.json: /x*"
        assert len(server.asked("/.well-known/tdmrep.json")) == 1


@pytest.mark.fault("N28")
def test_after_429_a_host_hears_nothing_for_as_long_as_it_asked_and_others_go_on() -> None:
    limits = QUICK.model_copy(update={"per_host": 1})
    signals = Signals(tdmrep_json=False)
    with hostile_server() as server:
        server.on("/x", [http(b"", "Retry-After: 2", status="429 Slow down"), http(jpeg())], host="a")
        server.on("/x", http(jpeg()), host="b")
        urls = [server.url("/x", host=host, n=n) for n in range(5) for host in ("a", "b")]
        assert outcomes(fetch(server, urls, limits, signals)) == ["ok"] * 10
        first, second, *_ = (hit.at_s for hit in server.asked("/x", host="a.hostile.test"))
        assert second - first >= 1.99
        assert max(hit.at_s for hit in server.asked("/x", host="b.hostile.test")) - first < 2


@pytest.mark.fault("N43")
def test_a_silent_host_costs_seconds_whatever_the_number_of_its_rows() -> None:
    limits = Limits(host_interval_s=0, retries=0, headers_s=0.5)
    with hostile_server() as server:
        server.on("/robots.txt", http(b"", status="404 None"))
        urls = [server.url("/silence", host="a", n=n) for n in range(500)]
        results = fetch(server, urls, limits, Signals(tdmrep_json=False))
        assert set(outcomes(results)) == {"timeout_headers", "throttled"}
        assert len(server.asked("/silence")) <= limits.breaker + limits.per_host


@pytest.mark.fault("R03")
@pytest.mark.parametrize("path", ["/silence", "/reset"])
def test_a_host_without_an_answer_for_robots_txt_is_asked_for_nothing_else(path: str) -> None:
    limits = Limits(host_interval_s=0, retries=0, headers_s=0.5)
    with hostile_server() as server:
        server.on("/robots.txt", BEHAVIOURS[path])
        results = fetch(server, [server.url("/ok", host="a", n=n) for n in range(20)], limits)
        assert set(outcomes(results)) <= {"robots", "conn_reset"}
        assert server.asked("/ok") == []
        assert len(server.asked("/robots.txt")) == 1


@pytest.mark.fault("S13")
@pytest.mark.parametrize("path", ["/robots.txt", "/.well-known/tdmrep.json", "/ai.txt"])
def test_files_that_redirect_to_a_forbidden_address_do_not_reach_it(path: str) -> None:
    with hostile_server() as server:
        server.on(path, http(b"", f"Location: {server.canary()}", status="302 Found"))
        results = fetch(server, [server.url("/ok", host="a")], signals=Signals(ai_txt=True))
        assert outcomes(results) in ([["blocked_port"], ["blocked_address"]] if path == "/robots.txt" else [["ok"]])
        assert server.canary_hits == 0


@pytest.mark.fault("N40")
def test_a_url_of_a_thousand_rows_is_served_once() -> None:
    with hostile_server() as server:
        server.on("/x", http(jpeg()))
        assert outcomes(fetch(server, [server.url("/x", host="a")] * 1000)) == ["ok"] * 1000
        assert len(server.asked("/x")) == 1


@pytest.mark.fault("N42")
def test_two_thousand_urls_of_one_host_never_meet_more_than_four_connections() -> None:
    with hostile_server() as server:
        server.on("/x", http(jpeg()))
        assert outcomes(fetch(server, [server.url("/x", host="a", n=n) for n in range(2000)])) == ["ok"] * 2000
        assert server.peak("a.hostile.test") <= QUICK.per_host
