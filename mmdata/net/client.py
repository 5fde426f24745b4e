"""The HTTP transport: one request at a time over a shared pool of connections, each under its clocks.

The clocks are connect, headers, idle and total, and a minimum rate; one timer looks at all requests under way, so a
request costs no timer of its own. Nothing is decompressed: identity is asked, and any other encoding is refused.
"""

import asyncio
import functools
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mmdata.errors import ConfigError
from mmdata.net.answers import Failure, Fetched
from mmdata.net.dns import NameCache, Resolver, ServerResolver, SystemResolver, Unresolved
from mmdata.net.guard import Blocked, Guard
from mmdata.net.limits import Limits
from mmdata.net.optout import Refuse, opt_out
from mmdata.net.pool import MOST_IDLE, Pool, Proxy, Refused
from mmdata.net.target import Target
from mmdata.net.wire import MOST_SKIPPED_BYTES, Reply

_MOST_SKIPPED_S = 1.0
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*")
_OURS = ("host", "content-length", "transfer-encoding", "connection", "accept-encoding")


@dataclass(frozen=True)
class Options:
    """How requests leave, beyond limits and guard; nothing of it comes from the environment.

    proxy        `http://[USER:PASSWORD@]HOST:PORT`; the address guard then judges the proxy's address
    headers      further headers by host name; sent to that host alone, never shown
    nameservers  `ADDRESS[:PORT]`s that are asked in place of the system's resolver
    resolver     whoever answers in place of both
    dns_s        seconds that one lookup may take
    tls          a TLS context in place of the default one, which trusts what the system trusts
    idle         how many connections that nobody uses are kept, as far as there are descriptors
    """

    proxy: str = field(default="", repr=False)
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    nameservers: tuple[str, ...] = ()
    resolver: Resolver | None = None
    dns_s: float = 5.0
    tls: ssl.SSLContext | None = None
    idle: int = MOST_IDLE


class HttpTransport:
    """Fetches one url a call; as many at once as there may be connections."""

    def __init__(self, pool: Pool, agent: str, options: Options) -> None:
        self.pool, self.limits = pool, pool.limits
        self.num_requests = 0
        self.num_bytes = 0
        usual = {"User-Agent": agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        self._usual = _lines("every host", usual)
        self._own = {host.lower().rstrip("."): _lines(host, own, usual) for host, own in options.headers.items()}
        self._turns = asyncio.Semaphore(pool.most)
        limits = self.limits
        clocks = (limits.headers_s, limits.idle_s, limits.total_s, limits.slow_after_s)
        self._tick_s = min(max(min(clocks) / 10, 0.01), 0.25)
        self._looked_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def get(
        self, url: str, *, media: bool = True, refuse: Refuse | None = None, headers: Mapping[str, str] | None = None
    ) -> Fetched | Failure:
        """Fetch one url within the limits.

        media    false for robots.txt and its like, which are read in any case
        refuse   says which header of media opts out, if one does; the body is then not read
        headers  sent with this request, besides the transport's own; never shown
        """
        self.num_requests += 1
        judge = functools.partial(self._judge, (refuse or opt_out) if media else None)
        async with self._turns:
            reply = Reply(judge, self.limits.max_bytes, asyncio.get_running_loop())
            try:
                target = Target.of(url)
                await self._ask(target, self._request(target, headers), reply)
            except Exception as error:  # noqa: BLE001 - whatever a hostile answer makes a library raise costs this row alone
                late = isinstance(error, TimeoutError) and time.monotonic() - reply.started_s >= self.limits.total_s
                reply.end(self._late() if late else _failure(error))
        return self._answer(url, reply)

    def start(self) -> None:
        """Start the clocks."""
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._look)

    async def close(self) -> None:
        """End every connection, and the clocks."""
        if self._timer is not None:
            self._timer.cancel()
        await self.pool.close()

    async def address(self, host: str) -> str:
        """Return the address at which a host is dialled first, "" where that is not known or was set by an allowance."""
        try:
            return await self.pool.address(Target.of(f"http://[{host}]/" if ":" in host else f"http://{host}/"))
        except (Blocked, Unresolved, OSError, ValueError):
            return ""

    async def _ask(self, target: Target, request: bytes, reply: Reply) -> None:
        connection = self.pool.take(target)
        while not reply.over:
            reused = connection is not None
            if connection is None:
                async with asyncio.timeout(self.limits.total_s):
                    connection = await self.pool.connect(target)
            reply.address = connection.address
            try:
                await connection.ask(request, reply)
            finally:
                self.pool.give(connection, reply.last_s)
            if reused and reply.failure is not None and reply.untouched and reply.failure.outcome == "conn_reset":
                # The server had closed a kept connection before it read the request: nothing was asked yet.
                reply.again()
                connection = None

    def _request(self, target: Target, headers: Mapping[str, str] | None) -> bytes:
        lines = self._own.get(target.host, self._usual)
        if headers:
            lines += _lines(target.host, headers, {})
        if self.pool.proxy is None or target.scheme == "https":
            return target.request(lines)
        return target.request(lines + self.pool.proxy.told, absolute=True)

    def _judge(self, refuse: Refuse | None, reply: Reply) -> None:
        """Say at the headers whether the body is wanted."""
        headers, cap = reply.headers, self.limits.max_bytes
        length = int(headers.get("content-length", "0"))
        if reply.status != 200:
            reply.skip()
            if length > MOST_SKIPPED_BYTES:
                reply.end()
        elif refuse is not None and refuse(headers):
            reply.end()
        elif headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            reply.end(Failure("bad_encoding", f"Content-Encoding {headers['content-encoding'][:80]}, identity was asked"))
        elif headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
            reply.end(Failure("bad_encoding", f"Transfer-Encoding {headers['transfer-encoding'][:80]}, identity was asked"))
        elif length > cap:
            reply.end(Failure("too_large", f"Content-Length {length} is above {cap}"))

    def _answer(self, url: str, reply: Reply) -> Fetched | Failure:
        self.num_bytes += reply.num_bytes
        elapsed_s = time.monotonic() - reply.started_s
        failure = reply.failure
        if failure is not None:
            return Failure(failure.outcome, failure.detail[:300], url, address=reply.address, elapsed_s=elapsed_s)
        return Fetched(reply.status, reply.headers, reply.body(), url, address=reply.address, elapsed_s=elapsed_s)

    def _look(self) -> None:
        """Look at the clocks of every request under way."""
        now_s = time.monotonic()
        for connection in list(self.pool.busy):
            reply = connection.reply
            failure = self._overdue(reply, now_s) if reply is not None else None
            if reply is not None and failure is not None:
                reply.end(None if reply.skipped else failure)  # of what is skipped, the status is answer enough
        self._looked_s = now_s
        self.pool.sweep(now_s)
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._look)

    def _late(self) -> Failure:
        return Failure("timeout_total", f"not finished after {self.limits.total_s:g} s")

    def _overdue(self, reply: Reply, now_s: float) -> Failure | None:
        limits = self.limits
        if now_s - reply.started_s > limits.total_s:
            return self._late()
        if not reply.in_body:
            late = now_s - reply.asked_s > limits.headers_s
            return Failure("timeout_headers", f"no headers after {limits.headers_s:g} s") if late else None
        if reply.skipped:
            return self._late() if now_s - reply.body_from_s > _MOST_SKIPPED_S else None
        if now_s - reply.last_s > limits.idle_s:
            return Failure("timeout_idle", f"nothing for {limits.idle_s:g} s")
        body_s = now_s - reply.body_from_s
        if reply.last_s < self._looked_s:
            return None  # silence is the idle clock's
        if body_s > limits.slow_after_s and reply.num_bytes < body_s * limits.min_bytes_per_s:
            return Failure("too_slow", f"{reply.num_bytes} bytes in {body_s:.1f} s")
        return None


@asynccontextmanager
async def open_transport(
    guard: Guard, limits: Limits, agent: str, connections: int, options: Options | None = None
) -> AsyncIterator[HttpTransport]:
    """Open the pool of connections for as long as the context lasts."""
    options = options or Options()
    resolver = options.resolver or (ServerResolver(options.nameservers) if options.nameservers else SystemResolver())
    names = NameCache(resolver, deadline_s=options.dns_s)
    proxy = Proxy.parse(options.proxy) if options.proxy else None
    pool = Pool(guard, names, limits, options.tls or _tls(), proxy, (connections, options.idle))
    transport = HttpTransport(pool, agent, options)
    transport.start()
    try:
        yield transport
    finally:
        await transport.close()


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _lines(host: str, own: Mapping[str, str], usual: Mapping[str, str] | None = None) -> bytes:
    """Write header lines, those of a host after the usual ones that it does not replace."""
    for name, value in own.items():
        if not _HEADER.fullmatch(f"{name}: {value}") or (usual is not None and name.lower() in _OURS):
            # The value is not shown: it may be a secret.
            raise ConfigError(f"headers for {host}: `{name}` cannot be set", hint="a header is one line of printable characters")
    replaced = {name.lower() for name in own}
    kept = {name: value for name, value in (usual or {}).items() if name.lower() not in replaced}
    return "".join(f"{name}: {value}\r\n" for name, value in {**kept, **own}.items()).encode("latin-1")


def _failure(error: Exception) -> Failure:
    if isinstance(error, Refused):
        return error.failure
    if isinstance(error, Blocked):
        return Failure(error.outcome, error.detail)
    kinds: tuple[tuple[type[Exception], str], ...] = (
        (Unresolved, "dns"),
        (ssl.SSLError, "tls"),
        (TimeoutError, "timeout_connect"),
        (OSError, "conn_reset"),
        (ValueError, "bad_row"),
    )
    outcome = next((outcome for kind, outcome in kinds if isinstance(error, kind)), "bad_response")
    return Failure(outcome, f"{error}" or "no connection in time")
