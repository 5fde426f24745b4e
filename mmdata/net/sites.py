"""What a site says about being fetched: robots.txt, and the files that reserve rights (tdmrep.json, ai.txt).

Each file is asked for once an origin and run, by one worker of a machine for all, with manners, through the guard, and
with at most five redirects. What could not be had because the host was not reached is asked for again after a rest.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from mmdata.net.answers import Failure, Fetched
from mmdata.net.cache import DAY_S, AnswerCache
from mmdata.net.hosts import POLL_S
from mmdata.net.manners import Pace
from mmdata.net.optout import MAX_TDMREP_BYTES, Reservations, Signals, read_tdmrep
from mmdata.net.robots import MAX_ROBOTS_BYTES, UNREACHED, PathRules, Robots, parse_robots, read_robots
from mmdata.net.target import Target
from mmdata.net.urls import REDIRECTS, redirect_of

_REDIRECTS_FOLLOWED = 5

Ask = Callable[[str], Awaitable[Fetched | Failure]]


@dataclass(frozen=True)
class Site:
    """What the files of one origin say of its urls.

    preferences  paths for which training is refused, by the name of the file and line that say it
    """

    robots: Robots
    preferences: tuple[tuple[str, PathRules], ...] = ()
    reservations: Reservations = field(default_factory=lambda: Reservations([]))

    def verdict(self, url: str) -> str | Failure:
        """Return the rule that allows a url, or the failure that names the rule against it."""
        robots = self.robots
        allowed, line = robots.access.verdict(url)
        if robots.refused or not allowed:
            rule = robots.rule if robots.refused else f"{robots.rule}: {line}"
            return Failure("robots", rule, url, rule=rule)
        for name, rules in self.preferences:
            allowed, path = rules.verdict(url)
            if not allowed:
                return Failure("opted_out", f"{name}: {path}", url, rule=f"{name}: {path}")
        return f"{robots.rule}: {line or 'no rule'}" if robots.rule == "robots" else robots.rule


@dataclass(frozen=True)
class SiteRules:
    """How sites are read: robots.txt at all or not, which signals, for which product token, with which patience.

    crawl_delay_s  a host that asks for more between two requests is not fetched from
    unreached_s    a host that could not be reached is asked again after this long
    backoffs_s     the pauses before each further try of a robots.txt that fails quickly; a timeout is not tried again
    """

    robots: bool
    signals: Signals
    token: str
    crawl_delay_s: float
    unreached_s: float
    backoffs_s: tuple[float, ...]


class Sites:
    """All origins of a partition, each read once."""

    def __init__(self, rules: SiteRules, ask: Ask, pace: Pace, cache: AnswerCache) -> None:
        self.rules, self.ask, self.pace, self.cache = rules, ask, pace, cache
        self._known: dict[str, tuple[float, Site | Failure]] = {}
        self._reading: dict[str, asyncio.Task[Site | Failure]] = {}

    def known(self, target: Target) -> Site | Failure | None:
        """Return what a url's site says, if it has been read."""
        until, site = self._known.get(target.origin, (0.0, None))
        return site if time.monotonic() < until else None

    async def read(self, target: Target) -> Site | Failure:
        """Return what a url's site says; a Failure when it could not be reached."""
        task = self._reading.get(target.origin)
        if task is None:
            task = self._reading[target.origin] = asyncio.ensure_future(self._load(target))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is still being read."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, target: Target) -> Site | Failure:
        try:
            async with self._for_all(target.origin):
                site = await self._site(target)
            holds_s = self.rules.unreached_s if isinstance(site, Failure) else DAY_S
            self._known[target.origin] = time.monotonic() + holds_s, site
            return site
        finally:
            del self._reading[target.origin]

    async def _site(self, target: Target) -> Site | Failure:
        rules, origin = self.rules, target.origin
        robots: Robots | Failure = Robots("robots: off")
        if rules.robots:
            answer = await self._read(f"{origin}/robots.txt", rules.backoffs_s)
            robots = read_robots(answer, rules.token, strict=rules.signals.robots_strict)
        if isinstance(robots, Failure):
            return robots
        if robots.delay_s > rules.crawl_delay_s:
            robots = Robots(f"robots: Crawl-delay: {robots.delay_s:g}", refused=True)
        if robots.refused:
            return Site(robots)
        self.pace.slow_down(target.host, robots.delay_s)
        reservations = Reservations([])
        if rules.signals.tdmrep_json:
            reservations = read_tdmrep(await self._read(f"{origin}/.well-known/tdmrep.json"))
        return Site(robots, await self._preferences(origin, robots), reservations)

    async def _preferences(self, origin: str, robots: Robots) -> tuple[tuple[str, PathRules], ...]:
        signals, found = self.rules.signals, []
        if signals.content_usage:
            found.append(("robots.txt Content-Usage", robots.usage))
        if signals.content_signal:
            found.append(("robots.txt Content-Signal", robots.signal))
        if signals.ai_txt:
            answer = await self._read(f"{origin}/ai.txt")
            if isinstance(answer, Fetched) and answer.status == 200:
                found.append(("ai.txt", parse_robots(answer.body, self.rules.token).access))
        return tuple((name, rules) for name, rules in found if rules)

    async def _read(self, url: str, backoffs_s: tuple[float, ...] = ()) -> Fetched | Failure:
        answer = self.cache.get(url)
        if answer is None:
            answer = await self._patiently(url, backoffs_s)
            unreached = isinstance(answer, Failure) and answer.outcome in UNREACHED
            self.cache.put(url, answer, self.rules.unreached_s if unreached else DAY_S)
        return answer

    async def _patiently(self, url: str, backoffs_s: tuple[float, ...]) -> Fetched | Failure:
        answer = await self._follow(url)
        for backoff_s in backoffs_s:
            busy = isinstance(answer, Fetched) and (answer.status >= 500 or answer.status == 429)
            passing = isinstance(answer, Failure) and answer.outcome in ("conn_reset", "short_body")
            if not (busy or passing):
                break
            await asyncio.sleep(backoff_s)
            answer = await self._follow(url)
        return answer

    async def _follow(self, url: str) -> Fetched | Failure:
        answer = await self.ask(url)
        for _ in range(_REDIRECTS_FOLLOWED):
            if isinstance(answer, Failure) or answer.status not in REDIRECTS:
                break
            target = redirect_of(url, answer.headers.get("location", ""))
            if isinstance(target, Failure):
                return target
            url = target
            answer = await self.ask(url)
        if isinstance(answer, Fetched):
            return replace(answer, headers={}, body=answer.body[: max(MAX_ROBOTS_BYTES, MAX_TDMREP_BYTES + 1)], url=url)
        return answer

    @asynccontextmanager
    async def _for_all(self, origin: str) -> AsyncIterator[None]:
        """Let one worker of this machine read a site while the others wait for what it finds."""
        table = self.pace.table
        while (claim := table.claim(f"site {origin}")) is None:
            await asyncio.sleep(POLL_S)
        try:
            yield
        finally:
            table.give_up(claim)
