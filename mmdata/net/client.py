"""The HTTP transport; the only file that imports the HTTP library and maps its errors to ours.

Four clocks stand over every request (connect, headers, idle, total) and a minimum rate; bytes are counted while they are
read. Sockets are made by the guard alone.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from mmdata.net.answers import Failure, Fetched
from mmdata.net.guard import Blocked, Guard
from mmdata.net.limits import Limits
from mmdata.net.optout import Refuse, opt_out

_MAX_HEADER = 8190
_CHUNK = 1 << 16


class GuardedResolver(AbstractResolver):
    """Resolves names: by an allowance that names them, else by the system. Addresses are judged where they are dialled."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.system = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Return the addresses of a name."""
        place = self.guard.place_of(host)
        if place is None:
            return await self.system.resolve(host, port, family)
        address, own_port = place
        family_ = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=own_port, family=family_, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""


class HttpTransport:
    """One request at a time over a shared pool of connections."""

    def __init__(self, session: aiohttp.ClientSession, limits: Limits) -> None:
        self.session, self.limits = session, limits
        self.num_requests = 0
        self.num_bytes = 0

    async def get(
        self, url: str, *, media: bool = True, refuse: Refuse | None = None, headers: Mapping[str, str] | None = None
    ) -> Fetched | Failure:
        """Fetch one url within the limits; an opt-out is for media, a robots.txt is read in any case."""
        self.num_requests += 1
        try:
            async with asyncio.timeout(self.limits.total_s):
                return await self._get(url, (refuse or opt_out) if media else None, headers)
        except TimeoutError:
            return Failure("timeout_total", f"not finished after {self.limits.total_s:g} s", url)
        except Blocked as error:
            return Failure(error.outcome, error.detail, url)
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            return Failure(_outcome(error), f"{type(error).__name__}: {error}"[:300], url)
        except Exception as error:  # noqa: BLE001 - whatever a hostile answer makes the library raise costs this row alone
            return Failure("bad_response", f"{type(error).__name__}: {error}"[:300], url)

    async def address(self, host: str) -> str:
        """Return that the address is not known before it is dialled."""
        return ""

    async def _get(self, url: str, refuse: Refuse | None, sent: Mapping[str, str] | None) -> Fetched | Failure:
        request = self.session.get(url, allow_redirects=False, headers=sent)
        try:
            async with asyncio.timeout(self.limits.headers_s):
                response = await request
        except aiohttp.ServerTimeoutError as error:
            return Failure("timeout_connect", f"{error}"[:300], url)
        except TimeoutError:
            return Failure("timeout_headers", f"no headers after {self.limits.headers_s:g} s", url)
        async with response:
            headers = _headers(response)
            if response.status != 200 or (refuse and refuse(headers)):
                response.close()
                return Fetched(response.status, headers, url=url)
            if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                response.close()
                return Failure("bad_encoding", f"Content-Encoding {headers['content-encoding']}, identity was asked", url)
            body = await self._body(response, url)
            return body if isinstance(body, Failure) else Fetched(response.status, headers, body, url)

    async def _body(self, response: aiohttp.ClientResponse, url: str) -> bytes | Failure:
        cap, started = self.limits.max_bytes, time.monotonic()
        if (response.content_length or 0) > cap:
            response.close()
            return Failure("too_large", f"Content-Length {response.content_length} is above {cap}", url)
        chunks, size = [], 0
        try:
            async for chunk in response.content.iter_chunked(_CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                self.num_bytes += len(chunk)
                elapsed = time.monotonic() - started
                if size > cap:
                    response.close()
                    return Failure("too_large", f"more than {cap} bytes", url)
                if elapsed > self.limits.slow_after_s and size < elapsed * self.limits.min_bytes_per_s:
                    response.close()
                    return Failure("too_slow", f"{size} bytes in {elapsed:.0f} s", url)
        except aiohttp.SocketTimeoutError:
            return Failure("timeout_idle", f"nothing for {self.limits.idle_s:g} s", url)
        return b"".join(chunks)


@asynccontextmanager
async def open_transport(guard: Guard, limits: Limits, agent: str, connections: int) -> AsyncIterator[HttpTransport]:
    """Open the pool of connections for as long as the context lasts."""
    connector = aiohttp.TCPConnector(
        limit=connections,
        resolver=GuardedResolver(guard),
        ttl_dns_cache=300,
        ssl=ssl.create_default_context(),
        socket_factory=guard.socket,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=limits.idle_s),
        headers={"User-Agent": agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        max_line_size=_MAX_HEADER,
        max_field_size=_MAX_HEADER,
    )
    async with session:
        yield HttpTransport(session, limits)


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


def _outcome(error: Exception) -> str:
    kinds: tuple[tuple[type[Exception], str], ...] = (
        (aiohttp.ClientConnectorDNSError, "dns"),
        (aiohttp.ClientSSLError, "tls"),
        (ssl.SSLError, "tls"),
        (aiohttp.SocketTimeoutError, "timeout_idle"),
        (aiohttp.ServerTimeoutError, "timeout_connect"),
        (aiohttp.ClientPayloadError, "short_body"),
        (aiohttp.InvalidURL, "bad_row"),
        (aiohttp.ClientResponseError, "bad_response"),
        (aiohttp.ClientConnectorError, "conn_reset"),
        (aiohttp.ServerDisconnectedError, "conn_reset"),
        (OSError, "conn_reset"),
        (ValueError, "bad_row"),
    )
    return next((outcome for kind, outcome in kinds if isinstance(error, kind)), "bad_response")
