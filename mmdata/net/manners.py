"""Manners: what a host allows, how often it is asked, and when it is left alone.

robots.txt is read once a host; a host whose robots.txt cannot be had (5xx, timeout) is left alone for this run, one that
has none allows all. Opt-out headers are obeyed in every spelling; the most restrictive wins.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from protego import Protego

from mmdata.net.answers import Failure
from mmdata.net.limits import Limits

_NO_AI = ("noai", "noimageai", "noindex", "noimageindex", "none", "noml")
MAX_CRAWL_DELAY_S = 30.0


class Host:
    """What is known of one host name during a run."""

    def __init__(self, name: str, limits: Limits, agent: str) -> None:
        self.name, self.limits, self.agent = name, limits, agent
        self.failures = 0
        self.interval_s = limits.host_interval_s
        self._slots = asyncio.Semaphore(limits.per_host)
        self._next = 0.0
        self._rules: asyncio.Task[Protego | Failure] | None = None

    @property
    def broken(self) -> bool:
        """True once the host has failed too often in a row."""
        return self.failures >= self.limits.breaker

    def note(self, failed: bool) -> None:
        """Count a failure, or forget the ones before."""
        self.failures = self.failures + 1 if failed else 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place among the host's connections, and for its interval."""
        async with self._slots:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self.interval_s
            await asyncio.sleep(start - now)
            yield

    async def refusal(self, url: str, read: Callable[[str], Awaitable[str | Failure]]) -> Failure | None:
        """Return why robots.txt, or its absence, forbids a url; null when it may be fetched. It is read once."""
        if self._rules is None:
            parts = urlsplit(url)
            self._rules = asyncio.ensure_future(self._load(f"{parts.scheme}://{parts.netloc}/robots.txt", read))
        rules = await asyncio.shield(self._rules)
        if isinstance(rules, Failure):
            return Failure(rules.outcome, rules.detail, url)
        return None if rules.can_fetch(url, self.agent) else Failure("robots", "robots.txt disallows it", url)

    async def _load(self, url: str, read: Callable[[str], Awaitable[str | Failure]]) -> Protego | Failure:
        text = await read(url)
        if isinstance(text, Failure):
            return text
        rules = Protego.parse(text.replace("\0", ""))
        delay = rules.crawl_delay(self.agent)
        if delay is not None and not 0 <= delay <= MAX_CRAWL_DELAY_S:
            return Failure("robots", f"Crawl-delay {delay:g} s is above {MAX_CRAWL_DELAY_S:g} s", url)
        self.interval_s = max(self.interval_s, delay or 0.0)
        return rules


class Hosts:
    """All hosts of a run, by normalised name."""

    def __init__(self, limits: Limits, agent: str) -> None:
        self.limits, self.agent = limits, agent
        self._hosts: dict[str, Host] = {}

    def of(self, url: str) -> Host:
        """Return the host of a url."""
        name = (urlsplit(url).hostname or "").rstrip(".").lower()
        if name not in self._hosts:
            self._hosts[name] = Host(name, self.limits, self.agent.split("/")[0])
        return self._hosts[name]


def opt_out(headers: Mapping[str, str]) -> str | None:
    """Return the header that opts this media out of training, or null.

    headers  names in lower case; several headers of one name joined by a comma
    """
    for directive in headers.get("x-robots-tag", "").lower().replace(";", ",").split(","):
        word = directive.rsplit(":", 1)[-1].strip() if "unavailable_after" not in directive else ""
        if word in _NO_AI:
            return f"X-Robots-Tag: {word}"
    if headers.get("tdm-reservation", "").strip() == "1":
        return "TDM-Reservation: 1"
    usage = headers.get("content-usage", "").lower().replace(" ", "")
    return "Content-Usage: train-ai=n" if "train-ai=n" in usage else None
