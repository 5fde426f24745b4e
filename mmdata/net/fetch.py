"""Policy of fetching: schemes, redirects, retries, manners. The transport below it moves bytes and knows the library.

Every fetch ends in one of the outcomes of `mmdata.schema.OUTCOMES`, with the rule that allowed or refused it. An opt-out
costs one request and stores nothing. A url that is asked for several times at once is fetched once.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mmdata.net.answers import Failure, Fetched
from mmdata.net.cache import AnswerCache
from mmdata.net.hosts import HostTable, open_table
from mmdata.net.limits import Limits
from mmdata.net.manners import SLOW_SHARE, Pace, retry_after_s
from mmdata.net.optout import DEFAULT_SIGNALS, Judge, Refuse, Signals
from mmdata.net.sites import SiteRules, Sites
from mmdata.net.target import Target
from mmdata.net.urls import REDIRECTS, parse_url, redirect_of

# Outcomes that another try may turn into `ok`: worth a later pass, or `retry` on another day.
TRANSIENT = (
    "dns", "timeout_connect", "timeout_headers", "timeout_idle", "timeout_total", "too_slow", "conn_reset", "short_body",
    "http_5xx", "throttled",
)  # fmt: skip
# Those tried again soon; the others would cost their whole deadline again, or give the same answer.
_RETRIED = ("conn_reset", "short_body", "http_5xx", "throttled")
# Rules by which a host is left alone for now: another try would only meet them again.
_AT_REST = ("breaker", "Retry-After")


class Transport(Protocol):
    """One request and its answer; no redirects, no retries."""

    async def get(
        self, url: str, *, media: bool = True, refuse: Refuse | None = None, headers: Mapping[str, str] | None = None
    ) -> Fetched | Failure:
        """Fetch one url; read the body only of a 200, and of media only if `refuse` finds no opt-out in its headers.

        media    false for robots.txt and its like, which are read in any case
        refuse   judges the headers of media (lower-case names); null = by the default signals
        headers  sent with this request, besides the transport's own
        """
        ...

    async def address(self, host: str) -> str:
        """Return the address that a host name will be dialled at, "" where that is not known."""
        ...


class ReplayTransport:
    """A fake: answers from a table of `url -> Fetched | Failure`, and 404 for all else. It counts its requests."""

    def __init__(self, answers: Mapping[str, Fetched | Failure]) -> None:
        self.answers = answers
        self.requests: list[str] = []

    async def get(
        self, url: str, *, media: bool = True, refuse: Refuse | None = None, headers: Mapping[str, str] | None = None
    ) -> Fetched | Failure:
        """Return the recorded answer."""
        self.requests.append(url)
        return self.answers.get(url, Fetched(404, {}))

    async def address(self, host: str) -> str:
        """Return that the address is not known."""
        return ""


@dataclass(frozen=True)
class Policy:
    """How a run fetches.

    agent        the user agent; what stands before its first `/` is the product token that robots.txt names
    connections  at once, in one process; a further `SLOW_SHARE` times as many may be slow ones
    share        how many machines work on the run, each taking its part of what a host allows
    seed         of the jitter between retries
    denied       gives the rule of a deny list that a url falls under, or null; asked on every hop, before any request
    """

    limits: Limits
    agent: str
    robots: bool = True
    signals: Signals = DEFAULT_SIGNALS
    connections: int = 64
    share: int = 1
    seed: int = 0
    denied: Callable[[str], str | None] | None = None

    @property
    def token(self) -> str:
        """The product token."""
        return self.agent.split("/")[0]

    @property
    def sockets(self) -> int:
        """How many connections the transport must allow."""
        return self.connections * (1 + SLOW_SHARE)


class Fetcher:
    """Fetches urls politely through a transport; `open_fetcher` makes one."""

    def __init__(
        self, transport: Transport, policy: Policy, table: HostTable | None = None, cache: AnswerCache | None = None
    ) -> None:
        limits = policy.limits
        self.transport, self.policy, self.limits = transport, policy, limits
        self.pace = Pace(table or HostTable(), limits, policy.connections, policy.share, transport.address)
        backoffs_s = tuple(limits.backoff_s * 2**number for number in range(limits.retries))
        rules = SiteRules(policy.robots, policy.signals, policy.token, limits.crawl_delay_s, limits.breaker_rest_s, backoffs_s)
        self.sites = Sites(rules, self._ask_file, self.pace, cache or AnswerCache())
        self._judge = Judge(policy.signals, policy.token)
        self._jitter = random.Random(policy.seed)
        self._under_way: dict[str, asyncio.Future[Fetched | Failure | None]] = {}

    async def fetch(self, url: str, headers: Mapping[str, str] | None = None) -> Fetched | Failure:
        """Return the media's response, or how the fetch failed. Ask for all rows at once: what waits holds no connection.

        headers  sent with the request for this url, never to another host after a redirect
        """
        while (other := self._under_way.get(url)) is not None:
            shared = await asyncio.shield(other)
            if shared is not None:
                return shared
        future = self._under_way[url] = asyncio.get_running_loop().create_future()
        result: Fetched | Failure | None = None
        try:
            result = await self._fetch(url, headers)
            return result
        finally:
            # Null when this fetch was cancelled: one of those that waited for it then fetches itself.
            del self._under_way[url]
            future.set_result(result)

    def hold(self) -> None:
        """Start no further request until `go_on`: whoever takes the media is behind. Nothing under way is touched."""
        self.pace.slots.hold(True)

    def go_on(self) -> None:
        """Start requests again."""
        self.pace.slots.hold(False)

    async def close(self) -> None:
        """Give up what is under way."""
        await self.sites.close()

    async def _fetch(self, url: str, headers: Mapping[str, str] | None) -> Fetched | Failure:
        result = await self._follow(url, headers)
        for number in range(self.limits.retries):
            if not isinstance(result, Failure) or result.outcome not in _RETRIED or result.rule.startswith(_AT_REST):
                break
            if result.outcome != "throttled":  # the host's own pause is longer, and holds for all its rows
                await asyncio.sleep(self.limits.backoff_s * 2**number * (1 + self._jitter.random() / 2))
            again = await self._follow(url, headers)
            if isinstance(again, Failure) and again.rule.startswith("breaker"):
                break
            result = again
        return result

    async def _follow(self, url: str, headers: Mapping[str, str] | None) -> Fetched | Failure:
        hops: tuple[str, ...] = ()
        target = parse_url(url)
        while isinstance(target, Target):
            result = await self._hop(target, headers)
            if isinstance(result, Failure) or result.status not in REDIRECTS:
                return replace(result, hops=hops) if hops else result
            if len(hops) == self.limits.redirects:
                return Failure("redirect_limit", f"more than {len(hops)} redirects", target.url, result.rule, hops=hops)
            hops = (*hops, target.url)
            place = redirect_of(target.url, result.headers.get("location", ""))
            onward = place if isinstance(place, Failure) else parse_url(place)
            if isinstance(onward, Target) and onward.host != target.host:
                headers = None
            target = onward
        return replace(target, hops=hops) if hops else target

    async def _hop(self, target: Target, headers: Mapping[str, str] | None) -> Fetched | Failure:
        """Ask for one url, if all who have a say let us; a redirect comes back as it is."""
        url, policy = target.url, self.policy
        denied = policy.denied(url) if policy.denied else None
        if denied:
            return Failure("denylisted", denied, url, rule=denied)
        site = self.sites.known(target) or await self.sites.read(target)
        if isinstance(site, Failure):
            return replace(site, url=url)
        rule = site.verdict(url)
        if isinstance(rule, Failure):
            return rule
        refuse = self._judge.with_file(site.reservations.rule(url))
        answer = await self._ask(target, refuse, headers)
        if isinstance(answer, Fetched) and answer.status not in REDIRECTS:
            answer = self._judged(answer, refuse)
        rule = answer.rule or rule
        if isinstance(answer, Failure):
            return Failure(answer.outcome, answer.detail, url, rule, answer.address, (), answer.elapsed_s)
        return Fetched(answer.status, answer.headers, answer.body, url, rule, answer.address, (), answer.elapsed_s)

    async def _ask(self, target: Target, refuse: Refuse | None, headers: Mapping[str, str] | None) -> Fetched | Failure:
        turn = await self.pace.begin(target.host)
        if isinstance(turn, Failure):
            return turn
        answer: Fetched | Failure | None = None
        try:
            answer = await self.transport.get(target.url, media=refuse is not None, refuse=refuse, headers=headers)
            return answer
        finally:
            self.pace.end(turn, answer)

    async def _ask_file(self, url: str) -> Fetched | Failure:
        target = parse_url(url)
        return target if isinstance(target, Failure) else await self._ask(target, None, None)

    def _judged(self, answer: Fetched, refuse: Refuse) -> Fetched | Failure:
        """Say what a whole answer means for its row."""
        status = answer.status
        if status == 200:
            signal = refuse(answer.headers)
            return Failure("opted_out", signal, rule=signal, address=answer.address) if signal else answer
        asked_s = retry_after_s(answer.headers) if status in (429, 503) else None
        if asked_s is not None and asked_s > self.limits.retry_after_s:
            rule = f"Retry-After: {asked_s:.0f}"
            return Failure("throttled", f"HTTP {status}, {rule} s", rule=rule, address=answer.address)
        outcome = f"http_{status // 100}xx" if 400 <= status < 600 else "bad_response"
        return Failure("throttled" if status == 429 else outcome, f"HTTP {status}", address=answer.address)


def check_url(url: str) -> Failure | None:
    """Refuse a url that is not plain http or https with a host."""
    target = parse_url(url)
    return target if isinstance(target, Failure) else None


@asynccontextmanager
async def open_fetcher(
    transport: AbstractAsyncContextManager[Transport], policy: Policy, folder: Path | None = None
) -> AsyncIterator[Fetcher]:
    """Open a fetcher over a transport, e.g. `open_transport(guard, policy.limits, policy.agent, policy.sockets)`.

    folder  on this machine's own disk, the same for all workers of the run: what they know of hosts lies there. Without
            one every fetcher is polite by itself alone
    """
    async with transport as opened:
        with open_table(folder) as table:
            cache = AnswerCache(folder)
            fetcher = Fetcher(opened, policy, table, cache)
            try:
                yield fetcher
            finally:
                await fetcher.close()
                cache.close()
