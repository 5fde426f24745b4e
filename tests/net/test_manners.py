"""Pace: who is asked when, how often again, and when a host is left alone."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate

import pytest

from mmdata.net import TRANSIENT, Failure, Fetched, Fetcher, Limits, Policy, ReplayTransport, Signals
from mmdata.net.manners import retry_after_s
from mmdata.schema import OUTCOMES

AGENT = "mmdata/0.1"
QUICK = Limits(host_interval_s=0, retries=2, backoff_s=0.01)
NO_FILES = Signals(tdmrep_json=False)
MEDIA = Fetched(200, {}, b"data")
Answer = Fetched | Failure


class Scripted(ReplayTransport):
    """Gives each url its answers in turn (the last stays), after a while, and notes when and how many at once."""

    def __init__(self, script: Callable[[str], Sequence[Answer]], seconds: Callable[[str], float] = lambda _: 0.0) -> None:
        super().__init__({})
        self.script, self.seconds = script, seconds
        self.times: dict[str, list[float]] = {}
        self.running: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    async def get(self, url: str, **_: object) -> Answer:
        host = url.split("/")[2]
        asked = self.times.setdefault(url, [])
        asked.append(time.monotonic())
        self.requests.append(url)
        self.running[host] = self.running.get(host, 0) + 1
        self.peak[host] = max(self.peak.get(host, 0), self.running[host])
        try:
            await asyncio.sleep(self.seconds(url))
        finally:
            self.running[host] -= 1
        answers = self.script(url)
        return answers[min(len(asked), len(answers)) - 1]


def policy(limits: Limits = QUICK, connections: int = 64) -> Policy:
    return Policy(limits, AGENT, robots=False, signals=NO_FILES, connections=connections)


def fetch_all(transport: Scripted, urls: Sequence[str], rules: Policy | None = None, within_s: float = 20) -> list[Answer]:
    async def run() -> list[Answer]:
        fetcher = Fetcher(transport, rules or policy())
        async with asyncio.timeout(within_s):
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    return asyncio.run(run())


def outcomes(results: Sequence[Answer]) -> list[str]:
    return [result.outcome if isinstance(result, Failure) else "ok" for result in results]


def gaps(times: Sequence[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(times)]


def held_to(times: Sequence[float], interval_s: float) -> bool:
    """Say whether requests came no faster than one an interval: on a busy machine one may be late, and the next then near it."""
    slack = 0.4 * interval_s
    return times[-1] - times[0] >= (len(times) - 1) * interval_s - slack and min(gaps(times)) >= interval_s - slack


def test_transient_outcomes_are_outcomes() -> None:
    assert set(OUTCOMES) >= set(TRANSIENT)
    assert "http_4xx" not in TRANSIENT


@pytest.mark.fault("N28")
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_holds_the_whole_host_and_no_other(status: int) -> None:
    busy = Fetched(status, {"retry-after": "1"})
    transport = Scripted(lambda url: [busy, MEDIA] if url == "http://a/0" else [MEDIA])
    limits = QUICK.model_copy(update={"per_host": 1})
    urls = ["http://a/0", "http://a/1", "http://a/2", "http://b/0", "http://b/1"]
    assert outcomes(fetch_all(transport, urls, policy(limits))) == ["ok"] * 5
    first, *later = sorted(at for url in transport.times if "//a/" in url for at in transport.times[url])
    assert min(later) - first >= 1.0
    assert max(at for url in transport.times if "//b/" in url for at in transport.times[url]) - first < 1.0


@pytest.mark.fault("N29")
@pytest.mark.parametrize("status", [429, 503])
def test_a_host_that_asks_for_too_long_is_left_alone_and_holds_nobody(status: int) -> None:
    transport = Scripted(lambda url: [Fetched(status, {"retry-after": "86400"})] if "//a/" in url else [MEDIA])
    limits = QUICK.model_copy(update={"per_host": 1})
    results = fetch_all(transport, [*(f"http://a/{n}" for n in range(50)), "http://b/x"], policy(limits))
    assert outcomes(results) == ["throttled"] * 50 + ["ok"]
    assert results[0].rule == "Retry-After: 86400"
    assert results[1].rule == "breaker"
    assert transport.requests.count("http://a/0") == 1
    assert len(transport.requests) == 2


@pytest.mark.fault("N29")
def test_a_success_that_was_under_way_does_not_open_a_host_that_asked_to_be_left_alone() -> None:
    transport = Scripted(
        lambda url: [Fetched(503, {"retry-after": "86400"})] if url.endswith("/0") else [MEDIA],
        lambda url: 0.2 if url.endswith("/1") else 0.0,
    )

    async def run() -> list[Answer]:
        fetcher = Fetcher(transport, policy())
        first = await asyncio.gather(fetcher.fetch("http://a/0"), fetcher.fetch("http://a/1"))
        return [*first, await fetcher.fetch("http://a/2")]

    assert outcomes(asyncio.run(run())) == ["throttled", "ok", "throttled"]


NOON = 1_800_000_000.0


@pytest.mark.fault("N30")
@pytest.mark.parametrize(
    ("headers", "expected"),
    [({"retry-after": "7"}, 7.0), ({"retry-after": " 7 "}, 7.0), ({"retry-after": "0"}, 0.0), ({}, None),
     ({"retry-after": formatdate(NOON + 90, usegmt=True), "date": formatdate(NOON, usegmt=True)}, 90.0),
     ({"retry-after": formatdate(NOON - 90, usegmt=True), "date": formatdate(NOON, usegmt=True)}, None),
     ({"retry-after": formatdate(NOON + 90_000, usegmt=True), "date": formatdate(NOON, usegmt=True)}, 90_000.0),
     ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None), ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
     ({"retry-after": "-5"}, None), ({"retry-after": "soon"}, None), ({"retry-after": "1e9"}, None), ({"retry-after": "²"}, None),
     ({"retry-after": "2, 2"}, None), ({"retry-after": "Fri, 99 Foo"}, None)],
)  # fmt: skip
def test_what_retry_after_means(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers) == expected


@pytest.mark.fault("N30")
@pytest.mark.parametrize("moved_s", [86_400.0, -86_400.0, 262.0, -262.0])
def test_a_moved_wall_clock_lengthens_no_wait(moved_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + moved_s)
    dated = {"retry-after": formatdate(NOON + 1, usegmt=True), "date": formatdate(NOON, usegmt=True)}
    transport = Scripted(lambda _: [Fetched(503, dated), MEDIA])
    assert outcomes(fetch_all(transport, ["http://a/x"])) == ["ok"]
    assert 1.0 <= gaps(transport.times["http://a/x"])[0] < 10


@pytest.mark.fault("N31")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_no_is_taken_for_a_no(status: int) -> None:
    transport = Scripted(lambda _: [Fetched(status, {})])
    assert outcomes(fetch_all(transport, ["http://a/x"])) == ["http_4xx"]
    assert len(transport.requests) == 1


@pytest.mark.fault("N32")
def test_retries_are_few_and_their_pauses_grow_with_jitter() -> None:
    limits = Limits(host_interval_s=0, retries=3, backoff_s=0.05, breaker=1000)
    transport = Scripted(lambda _: [Fetched(500, {})])
    urls = [f"http://a{n}/x" for n in range(8)]
    assert outcomes(fetch_all(transport, urls, policy(limits))) == ["http_5xx"] * 8
    pauses = [gaps(transport.times[url]) for url in urls]
    assert all(len(pause) == 3 for pause in pauses)
    assert all(pause[0] >= 0.05 and pause[1] >= 0.1 and pause[2] >= 0.2 for pause in pauses)
    assert len({round(pause[2], 3) for pause in pauses}) > 1


@pytest.mark.fault("N32")
@pytest.mark.parametrize("first", [Fetched(500, {}), Failure("conn_reset", ""), Failure("short_body", "")])
def test_what_passes_is_tried_again(first: Answer) -> None:
    transport = Scripted(lambda _: [first, MEDIA])
    assert outcomes(fetch_all(transport, ["http://a/x"])) == ["ok"]
    assert len(transport.requests) == 2


@pytest.mark.fault("N02")
@pytest.mark.parametrize("outcome", ["timeout_headers", "timeout_idle", "timeout_total", "too_slow", "timeout_connect", "dns"])
def test_a_row_waits_out_one_deadline_only_and_is_left_to_a_later_pass(outcome: str) -> None:
    transport = Scripted(lambda _: [Failure(outcome, "")])
    assert outcomes(fetch_all(transport, ["http://a/x"])) == [outcome]
    assert len(transport.requests) == 1
    assert outcome in TRANSIENT


@pytest.mark.fault("N14")
def test_a_reset_is_tried_three_times_at_most() -> None:
    transport = Scripted(lambda _: [Failure("conn_reset", "")])
    assert outcomes(fetch_all(transport, ["http://a/x"])) == ["conn_reset"]
    assert len(transport.requests) == 3


@pytest.mark.fault("N40")
def test_a_url_asked_for_many_times_at_once_is_fetched_once() -> None:
    transport = Scripted(lambda _: [MEDIA], lambda _: 0.05)
    results = fetch_all(transport, ["http://a/x"] * 1000)
    assert outcomes(results) == ["ok"] * 1000
    assert all(isinstance(result, Fetched) and result.body == b"data" for result in results)
    assert len(transport.requests) == 1


@pytest.mark.fault("N40")
def test_a_cancelled_fetch_does_not_take_those_that_shared_it_along() -> None:
    transport = Scripted(lambda _: [MEDIA], lambda _: 0.1)

    async def run() -> list[Answer]:
        fetcher = Fetcher(transport, policy())
        first, *others = [asyncio.ensure_future(fetcher.fetch("http://a/x")) for _ in range(4)]
        await asyncio.sleep(0.02)
        first.cancel()
        others[0].cancel()
        return await asyncio.gather(*others[1:])

    assert outcomes(asyncio.run(run())) == ["ok", "ok"]
    assert len(transport.requests) == 2


@pytest.mark.fault("N42")
def test_a_host_never_sees_more_of_us_than_it_should() -> None:
    transport = Scripted(lambda _: [MEDIA], lambda _: 0.002)
    assert outcomes(fetch_all(transport, [f"http://a/{n}" for n in range(2000)], within_s=60)) == ["ok"] * 2000
    assert transport.peak == {"a": QUICK.per_host}


@pytest.mark.fault("N42")
def test_starts_at_one_host_keep_their_interval() -> None:
    transport = Scripted(lambda _: [MEDIA])
    limits = QUICK.model_copy(update={"host_interval_s": 0.05})
    fetch_all(transport, [f"http://a/{n}" for n in range(10)], policy(limits))
    assert held_to(sorted(at for times in transport.times.values() for at in times), 0.05)


def test_names_at_one_address_share_four_times_as_much() -> None:
    class Housed(Scripted):
        async def address(self, host: str) -> str:
            return "192.0.2.7"

    transport = Housed(lambda _: [MEDIA], lambda _: 0.05)
    limits = QUICK.model_copy(update={"per_host": 1, "host_interval_s": 0.08})
    starts = []
    fetch_all(transport, [f"http://h{n}/{m}" for n in range(12) for m in range(2)], policy(limits))
    starts = sorted(at for times in transport.times.values() for at in times)
    assert held_to(starts, 0.02)
    for host in range(12):
        mine = sorted(at for m in range(2) for at in transport.times[f"http://h{host}/{m}"])
        assert held_to(mine, 0.08)


def test_rows_of_many_hosts_are_interleaved() -> None:
    transport = Scripted(lambda _: [MEDIA])
    fetch_all(transport, [f"http://h{n}/{m}" for n in range(4) for m in range(25)], policy(QUICK, connections=4))
    hosts = [url.split("/")[2] for url in transport.requests]
    assert all(len(set(hosts[at : at + 8])) >= 3 for at in range(0, 80, 8))


@pytest.mark.fault("N43")
def test_a_host_that_only_times_out_is_left_alone_after_five() -> None:
    transport = Scripted(lambda _: [Failure("timeout_headers", "")], lambda _: 0.2)
    started = time.monotonic()
    results = fetch_all(transport, [f"http://a/{n}" for n in range(500)])
    assert set(outcomes(results)) == {"timeout_headers", "throttled"}
    assert outcomes(results).count("timeout_headers") <= 8
    assert len(transport.requests) <= 5 + QUICK.per_host
    assert time.monotonic() - started < 10


def test_a_host_that_rested_is_tried_by_one_request_and_opened_by_its_success() -> None:
    well = False
    transport = Scripted(lambda _: [MEDIA] if well else [Failure("conn_reset", "")], lambda _: 0.05)
    limits = QUICK.model_copy(update={"breaker_rest_s": 0.3, "retries": 0})

    async def run() -> list[list[str]]:
        nonlocal well
        fetcher, waves = Fetcher(transport, policy(limits)), []

        async def wave(number: int) -> None:
            before = len(transport.requests)
            done = await asyncio.gather(*(fetcher.fetch(f"http://a/{number}/{n}") for n in range(10)))
            waves.append([*sorted(set(outcomes(done))), str(len(transport.requests) - before)])

        await wave(0)
        await asyncio.sleep(0.35)
        await wave(1)
        well = True
        await asyncio.sleep(0.35)
        await wave(2)
        await wave(3)
        return waves

    waves = asyncio.run(run())
    assert waves[0][:2] == ["conn_reset", "throttled"]
    assert waves[1] == ["conn_reset", "throttled", "1"]
    assert waves[2] == ["ok", "throttled", "1"]
    assert waves[3] == ["ok", "10"]


def test_on_hold_nothing_starts_and_what_is_under_way_ends() -> None:
    transport = Scripted(lambda _: [MEDIA], lambda _: 0.05)

    async def run() -> tuple[int, int]:
        fetcher = Fetcher(transport, policy(QUICK, connections=2))
        jobs = [asyncio.ensure_future(fetcher.fetch(f"http://h{n}/x")) for n in range(10)]
        while len(transport.requests) < 2:
            await asyncio.sleep(0.001)
        fetcher.hold()
        await asyncio.sleep(0.3)
        done = sum(job.done() for job in jobs)
        fetcher.go_on()
        await asyncio.gather(*jobs)
        return done, len(transport.requests)

    done, requests = asyncio.run(run())
    assert done in (2, 4)  # on a slow machine a second pair may have started before
    assert requests == 10


@pytest.mark.fault("N44", "K02")
def test_tarpits_hold_up_nobody() -> None:
    """64 connections, 150 tarpits on 150 hosts that last 3 s each: the healthy half must not wait for them."""
    transport = Scripted(
        lambda url: [MEDIA] if "//good" in url else [Failure("timeout_total", "")],
        lambda url: 0.01 if "//good" in url else 3.0,
    )
    urls = [f"http://{kind}{n}/x" for n in range(150) for kind in ("tarpit", "good")]
    results = fetch_all(transport, urls)
    assert outcomes(results) == ["timeout_total", "ok"] * 150
    last = max(times[-1] for url, times in transport.times.items() if "//good" in url)
    assert last - min(times[0] for times in transport.times.values()) < 8


def test_cancelled_fetches_give_their_connections_back() -> None:
    transport = Scripted(lambda _: [MEDIA], lambda _: 0.2)

    async def run() -> list[Answer]:
        fetcher = Fetcher(transport, policy(QUICK, connections=2))
        jobs = [asyncio.ensure_future(fetcher.fetch(f"http://h{n}/x")) for n in range(40)]
        await asyncio.sleep(0.05)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        return await asyncio.gather(*(fetcher.fetch(f"http://h{n}/y") for n in range(6)))

    assert outcomes(asyncio.run(run())) == ["ok"] * 6
    assert set(transport.running.values()) == {0}


def test_hosts_that_only_wait_for_their_turn_hold_no_connection() -> None:
    transport = Scripted(lambda _: [MEDIA])
    limits = QUICK.model_copy(update={"host_interval_s": 0.4})
    slow = [f"http://s{n}/{m}" for n in range(20) for m in range(4)]
    quick = [f"http://q{n}/x" for n in range(200)]
    fetch_all(transport, [*slow, *quick], policy(limits, connections=2))
    started = min(times[0] for times in transport.times.values())
    assert max(transport.times[url][0] for url in quick) - started < 0.9


def test_headers_of_a_row_do_not_go_to_another_host() -> None:
    seen: list[tuple[str, object]] = []

    class Moved(ReplayTransport):
        async def get(self, url: str, **options: object) -> Answer:
            seen.append((url, options["headers"]))
            return await super().get(url)

    moved = {
        "http://a/1": Fetched(302, {"location": "/2"}),
        "http://a/2": Fetched(302, {"location": "http://b/3"}),
        "http://b/3": Fetched(302, {"location": "http://a/4"}),
        "http://a/4": MEDIA,
    }

    async def run() -> Answer:
        return await Fetcher(Moved(moved), policy()).fetch("http://a/1", {"referer": "http://a/"})

    result = asyncio.run(run())
    assert (result.url, result.hops) == ("http://a/4", ("http://a/1", "http://a/2", "http://b/3"))
    assert [headers for _, headers in seen] == [{"referer": "http://a/"}, {"referer": "http://a/"}, None, None]


@pytest.mark.fault("Q03")
def test_a_denied_url_is_never_asked_for_nor_a_redirect_into_one() -> None:
    transport = ReplayTransport({"http://a/x": Fetched(302, {"location": "http://bad/y"})})
    rules = Policy(QUICK, AGENT, robots=False, signals=NO_FILES, denied=lambda url: "domain bad" if "//bad/" in url else None)

    async def run() -> list[Answer]:
        fetcher = Fetcher(transport, rules)
        return [await fetcher.fetch("http://bad/z"), await fetcher.fetch("http://a/x")]

    results = asyncio.run(run())
    assert outcomes(results) == ["denylisted"] * 2
    assert results[1].rule == "domain bad"
    assert transport.requests == ["http://a/x"]


@pytest.mark.fault("N19")
@pytest.mark.parametrize("there", ["http://a/x", "http://b/x", "/x?n={}"])
def test_redirects_end(there: str) -> None:
    num = itertools.count()
    transport = Scripted(lambda url: [Fetched(302, {"location": there.format(next(num)) if "//a/" in url else "http://a/x"})])
    assert outcomes(fetch_all(transport, ["http://a/x"])) == ["redirect_limit"]
    assert len(transport.requests) <= 6


@pytest.mark.fault("N21", "N22")
@pytest.mark.parametrize("location", ["", "\r\nx: y", "http://a/ b", "x" * 10_000, "http://[x", "http://b/x"])
def test_a_redirect_that_leads_nowhere_or_out_of_tls(location: str) -> None:
    transport = Scripted(lambda _: [Fetched(302, {"location": location})])
    (result,) = fetch_all(transport, ["https://a/x"])
    assert isinstance(result, Failure)
    assert result.outcome == "bad_response"
    assert "redirect" in result.detail
