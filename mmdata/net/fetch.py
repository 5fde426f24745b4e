"""Policy of fetching: schemes, redirects, retries, manners. The transport below it moves bytes and knows the library.

Every fetch ends in one of the outcomes of `mmdata.schema.OUTCOMES`. An opt-out costs one request and stores nothing.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from mmdata.net.limits import Limits
from mmdata.net.manners import Hosts, opt_out

TRANSIENT = ("dns", "timeout_connect", "timeout_headers", "timeout_idle", "conn_reset", "short_body", "http_5xx")
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Fetched:
    """A response with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    url: str = ""


@dataclass(frozen=True)
class Failure:
    """A fetch that ended without media."""

    outcome: str
    detail: str
    url: str = ""


class Transport(Protocol):
    """One request and its answer; no redirects, no retries."""

    async def get(self, url: str, *, body_for: tuple[int, ...] = (200,)) -> Fetched | Failure:
        """Fetch one url; read the body only for the statuses named and only if nothing in the headers opts out."""
        ...


class ReplayTransport:
    """A fake: answers from a table of `url -> Fetched | Failure`, and 404 for all else. It counts its requests."""

    def __init__(self, answers: Mapping[str, Fetched | Failure]) -> None:
        self.answers = answers
        self.requests: list[str] = []

    async def get(self, url: str, *, body_for: tuple[int, ...] = (200,)) -> Fetched | Failure:
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
            location = result.headers.get("location", "")
            target = urljoin(url, location)
            if not location or len(location) > 8192 or any(ord(char) < 33 for char in location):
                return Failure("bad_response", "a redirect without a usable Location", url)
            if url.startswith("https:") and target.startswith("http:"):
                return Failure("bad_response", "a redirect from https to http", url)
            url = target
        return Failure("redirect_limit", f"more than {self.limits.redirects} redirects", url)

    async def _polite(self, url: str) -> Fetched | Failure:
        host = self.hosts.of(url)
        if host.broken:
            return Failure("throttled", f"{host.name} failed {self.limits.breaker} times in a row", url)
        if self.robots and not await host.may_fetch(url, self._robots_txt):
            return Failure("robots", "robots.txt disallows it", url)
        async with host.turn():
            result = await self.transport.get(url)
        host.note(isinstance(result, Failure) and result.outcome in TRANSIENT)
        return result

    async def _robots_txt(self, url: str) -> str | None:
        """Return the text of a robots.txt, an empty text where there is none, null where the host must be left alone."""
        for _ in range(self.limits.redirects + 1):
            if check_url(url) is not None:
                return None
            result = await self.transport.get(url)
            if isinstance(result, Failure):
                return None
            if result.status in _REDIRECTS and "location" in result.headers:
                url = urljoin(url, result.headers["location"])
                continue
            if result.status == 200:
                return result.body[:512_000].decode("utf-8-sig", errors="replace")
            return None if result.status >= 500 else ""
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
