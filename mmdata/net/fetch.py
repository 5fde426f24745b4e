"""Policy of fetching: schemes, redirects, retries, manners. The transport below it moves bytes and knows the library.

Every fetch ends in one of the outcomes of `mmdata.schema.OUTCOMES`. An opt-out costs one request and stores nothing.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from mmdata.net.answers import Failure, Fetched
from mmdata.net.limits import Limits
from mmdata.net.manners import Hosts, opt_out

TRANSIENT = ("dns", "timeout_connect", "timeout_headers", "timeout_idle", "conn_reset", "short_body", "http_5xx")
_REDIRECTS = (301, 302, 303, 307, 308)
_UNREACHED = ("dns", "tls", "timeout_connect", "conn_reset", "blocked_address", "blocked_port", "blocked_scheme", "bad_row")


class Transport(Protocol):
    """One request and its answer; no redirects, no retries."""

    async def get(self, url: str, *, media: bool = True) -> Fetched | Failure:
        """Fetch one url; read the body only of a 200, and of media only if nothing in the headers opts out."""
        ...


class ReplayTransport:
    """A fake: answers from a table of `url -> Fetched | Failure`, and 404 for all else. It counts its requests."""

    def __init__(self, answers: Mapping[str, Fetched | Failure]) -> None:
        self.answers = answers
        self.requests: list[str] = []

    async def get(self, url: str, *, media: bool = True) -> Fetched | Failure:
        """Return the recorded answer."""
        self.requests.append(url)
        return self.answers.get(url, Fetched(404, {}))


@dataclass
class Fetcher:
    """Fetches urls politely through a transport."""

    transport: Transport
    limits: Limits
    agent: str
    robots: bool = True
    hosts: Hosts = field(init=False)

    def __post_init__(self) -> None:
        self.hosts = Hosts(self.limits, self.agent)

    async def fetch(self, url: str) -> Fetched | Failure:
        """Return the media's response, or how the fetch failed."""
        result: Fetched | Failure = Failure("bad_row", "no url", url)
        for attempt in range(self.limits.retries + 1):
            if attempt:
                await asyncio.sleep(0.2 * 2**attempt)
            result = await self._follow(url)
            if not (isinstance(result, Failure) and result.outcome in TRANSIENT):
                break
        return result

    async def _follow(self, url: str) -> Fetched | Failure:
        for _ in range(self.limits.redirects + 1):
            refused = check_url(url)
            if refused is not None:
                return refused
            result = await self._polite(url)
            if isinstance(result, Failure) or result.status not in _REDIRECTS:
                return result if isinstance(result, Failure) else _final(result, url)
            target = _target(url, result.headers.get("location", ""))
            if target is None:
                return Failure("bad_response", "a redirect without a usable Location", url)
            if url.startswith("https:") and target.startswith("http:"):
                return Failure("bad_response", "a redirect from https to http", url)
            url = target
        return Failure("redirect_limit", f"more than {self.limits.redirects} redirects", url)

    async def _polite(self, url: str) -> Fetched | Failure:
        host = self.hosts.of(url)
        if host.broken:
            return Failure("throttled", f"{host.name} failed {self.limits.breaker} times in a row", url)
        refused = await host.refusal(url, self._robots_txt) if self.robots else None
        if refused is not None:
            return refused
        async with host.turn():
            result = await self.transport.get(url)
        host.note(isinstance(result, Failure) and result.outcome in TRANSIENT)
        return result

    async def _robots_txt(self, url: str) -> str | Failure:
        """Return the text of a robots.txt (empty where there is none), or why the host must be left alone."""
        result: Fetched | Failure = Failure("robots", "robots.txt redirects for ever", url)
        hops = tries = 0
        while hops <= self.limits.redirects:
            refused = check_url(url)
            if refused is not None:
                return refused
            async with self.hosts.of(url).turn():
                result = await self.transport.get(url, media=False)
            if isinstance(result, Failure):
                tries += 1
                if result.outcome not in TRANSIENT or tries > self.limits.retries:
                    break
                await asyncio.sleep(0.2 * 2**tries)
                continue
            target = _target(url, result.headers.get("location", "")) if result.status in _REDIRECTS else None
            if target is None:
                break
            url, hops = target, hops + 1
        return _robots_answer(result, url)


def _robots_answer(result: Fetched | Failure, url: str) -> str | Failure:
    """Say what an answer for robots.txt means: a host that does not answer at all ends as itself, not as `robots`."""
    if isinstance(result, Failure):
        own = result.outcome in (*_UNREACHED, "robots")
        return result if own else Failure("robots", f"robots.txt cannot be had: {result.outcome}", url)
    if result.status == 200:
        return result.body[:512_000].decode("utf-8-sig", errors="replace")
    if result.status >= 500 or result.status in _REDIRECTS:
        return Failure("robots", f"robots.txt answers HTTP {result.status}", url)
    return ""


def _target(url: str, location: str) -> str | None:
    """Return where a redirect leads, by RFC 3986; null when that cannot be told."""
    if not location or len(location) > 8192 or any(ord(char) < 33 for char in location):
        return None
    try:
        return urljoin(url, location)
    except ValueError:
        return None


def check_url(url: str) -> Failure | None:
    """Refuse a url that is not plain http or https with a host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return Failure("bad_row", f"not a url: {error}", url)
    if parts.scheme not in ("http", "https"):
        return Failure("blocked_scheme", f"scheme `{parts.scheme}` is not http or https", url)
    return Failure("bad_row", "a url without a host", url) if not host else None


def _final(result: Fetched, url: str) -> Fetched | Failure:
    signal = opt_out(result.headers)
    if signal:
        return Failure("opted_out", signal, url)
    if result.status == 200:
        return Fetched(result.status, result.headers, result.body, url)
    if result.status == 429:
        return Failure("throttled", "HTTP 429", url)
    if 400 <= result.status < 600:
        return Failure(f"http_{result.status // 100}xx", f"HTTP {result.status}", url)
    return Failure("bad_response", f"HTTP {result.status}", url)
