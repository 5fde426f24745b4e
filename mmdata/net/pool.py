"""Connections: how they are made, kept and ended. Every socket is made by the guard, for an address that it has seen."""

import asyncio
import base64
import resource
import socket
import ssl
import time
from dataclasses import dataclass
from itertools import islice
from urllib.parse import unquote, urlsplit

from mmdata.errors import ConfigError
from mmdata.net.answers import Failure
from mmdata.net.dns import NameCache, Unresolved
from mmdata.net.guard import Blocked, Guard
from mmdata.net.limits import Limits
from mmdata.net.target import Key, Target
from mmdata.net.wire import BUFFER_BYTES, Connection, Reply

MOST_TRIES = 4
IDLE_S = 15.0
# A list goes from host to host, so a kept connection pays only where many hosts keep theirs; each is one descriptor.
MOST_IDLE = 1024
_SPARE_DESCRIPTORS = 256
_CLOSE_ROUNDS = 100


class Refused(Exception):
    """A connection that did not come about."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


@dataclass(frozen=True)
class Proxy:
    """A forward proxy: `http://[USER:PASSWORD@]HOST:PORT`. Its password is in no text that this object shows.

    told  the header lines that are for the proxy alone
    """

    target: Target
    told: bytes

    @classmethod
    def parse(cls, url: str) -> "Proxy":
        """Read a proxy's url."""
        try:
            target, parts = Target.of(url), urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"proxy: {error}", hint="write http://HOST:PORT") from None
        if target.scheme != "http":
            raise ConfigError("proxy: only http:// is spoken to a proxy", hint="write http://HOST:PORT")
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        told = b"Proxy-Authorization: Basic " + base64.b64encode(login) + b"\r\n"
        return cls(target, told if parts.username else b"")

    def __repr__(self) -> str:
        return f"Proxy({self.target.authority})"


class Pool:
    """All connections of one transport.

    most  connections in use at once, and so many more that are kept idle, as far as there are descriptors
    """

    def __init__(
        self, guard: Guard, names: NameCache, limits: Limits, tls: ssl.SSLContext, proxy: Proxy | None, most: tuple[int, int]
    ) -> None:
        self.guard, self.names, self.limits = guard, names, limits
        self.tls, self.proxy, self.most = tls, proxy, most[0]
        self.most_open = self.most + min(most[1], max(0, _descriptors() - self.most - _SPARE_DESCRIPTORS))
        self.busy: set[Connection] = set()
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # the one that is idle longest comes first
        self._kept: dict[Key, list[Connection]] = {}
        self._num_dialled = 0
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def __len__(self) -> int:
        return len(self._open)

    def take(self, target: Target) -> Connection | None:
        """Return an idle connection to a target, the one used last."""
        kept = self._kept.get(self._key(target))
        if not kept:
            return None
        connection = kept[-1]
        self._forget(connection)
        self.busy.add(connection)
        return connection

    def give(self, connection: Connection, now_s: float) -> None:
        """Take a connection back, to be used again if it still can be."""
        self.busy.discard(connection)
        if connection.is_open:
            connection.idle_since_s = now_s
            self._idle[connection] = None
            self._kept.setdefault(connection.key, []).append(connection)

    def sweep(self, now_s: float) -> None:
        """Close what has been idle for long."""
        for connection in list(self._idle):
            if now_s - connection.idle_since_s <= IDLE_S:
                return
            self._end(connection)

    async def connect(self, target: Target) -> Connection:
        """Open a connection to a target; raise Refused, Blocked, Unresolved or OSError where there is no way to it."""
        self._num_dialled += 1
        try:
            self._make_room()
            if self.proxy is None:
                connection = await self._dial(target, target.host if target.scheme == "https" else None)
            else:
                self._check_literally(target)
                connection = await self._dial(self.proxy.target, None)
        finally:
            self._num_dialled -= 1
        connection.key = self._key(target)
        if self.proxy is not None and target.scheme == "https":
            await self._tunnel(connection, target, self.proxy)
        self.busy.add(connection)
        return connection

    async def address(self, target: Target) -> str:
        """Return the first address of a target, "" behind a proxy and where an allowance says where a name is dialled."""
        if self.proxy is not None or (not target.is_address and self.guard.place_of(target.host) is not None):
            return ""
        return (await self._places(target))[0][0]

    async def close(self) -> None:
        """End every connection and wait until each is gone."""
        self.names.close()
        for connection in list(self._open):
            connection.close()
        for wait in range(_CLOSE_ROUNDS):
            await asyncio.sleep(0 if wait < 3 else 0.01)
            if not self._open:
                return

    def _key(self, target: Target) -> Key:
        """Say what one connection may serve: through a proxy, plain HTTP of every host."""
        return self.proxy.target.key if self.proxy is not None and target.scheme == "http" else target.key

    async def _places(self, target: Target) -> list[tuple[str, int]]:
        if target.is_address:
            return [(target.host, target.port)]
        place = self.guard.place_of(target.host)
        if place is not None:
            return [place]
        self.guard.check_name(target.host, target.port)
        return [(address, target.port) for address in await self.names.lookup(target.host)]

    async def _dial(self, target: Target, tls_name: str | None) -> Connection:
        """Try one address after the other, none for longer than its share of the clock."""
        places = (await self._places(target))[:MOST_TRIES]
        failed: Exception | None = None
        end_s = time.monotonic() + self.limits.connect_s
        for number, place in enumerate(places):
            try:
                async with asyncio.timeout((end_s - time.monotonic()) / (len(places) - number)):
                    return await self._dial_one(place, tls_name)
            except ssl.SSLError:
                raise
            except (Blocked, OSError) as error:
                failed = failed or error
        raise failed or Unresolved(f"{target.host}: no address")

    async def _dial_one(self, place: tuple[str, int], tls_name: str | None) -> Connection:
        loop, family = asyncio.get_running_loop(), socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        made = self.guard.socket((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place))
        try:
            made.setblocking(False)
            await loop.sock_connect(made, place)
        except BaseException:
            made.close()
            raise
        tls = self.tls if tls_name is not None else None
        _, connection = await loop.create_connection(
            lambda: Connection(self._lost, self._buffer), sock=made, ssl=tls, server_hostname=tls_name
        )
        connection.address = place[0]
        self._open.add(connection)
        return connection

    async def _tunnel(self, connection: Connection, target: Target, proxy: Proxy) -> None:
        """Have the proxy connect to a target, and speak TLS through it."""
        loop = asyncio.get_running_loop()
        reply = Reply(_judge_tunnel, 0, loop)
        try:
            async with asyncio.timeout(self.limits.connect_s):
                await connection.ask(target.tunnel(proxy.told), reply)
                if reply.failure is None and connection.transport is not None:
                    made = await loop.start_tls(connection.transport, connection, self.tls, server_hostname=target.host)
                    connection.transport = made
        except BaseException:
            connection.close()
            raise
        if reply.failure is not None:
            raise Refused(reply.failure)

    def _check_literally(self, target: Target) -> None:
        """Refuse what can be told without an address: a proxy would dial for us what we would not."""
        if target.is_address:
            self.guard.check(target.host, target.port)
        else:
            self.guard.check_name(target.host, target.port)

    def _make_room(self) -> None:
        """Close what has been idle longest, until what is being dialled fits in."""
        over = len(self._open) + self._num_dialled - self.most_open
        for connection in list(islice(self._idle, max(over, 0))):
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._lost(connection)
        connection.close()

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        """Take a connection out of the idle ones, if it is there."""
        if connection in self._idle:
            del self._idle[connection]
            kept = self._kept[connection.key]
            kept.remove(connection)
            if not kept:
                del self._kept[connection.key]


def _descriptors() -> int:
    """Return how many files this process may open, once the soft limit is at the hard one, or high enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096
    if soft == resource.RLIM_INFINITY or soft >= enough:
        return enough
    wanted = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some systems name a hard limit that they do not grant
        return soft
    return wanted


def _judge_tunnel(reply: Reply) -> None:
    reply.keep = reply.status == 200
    reply.end(None if reply.keep else Failure("bad_response", f"the proxy answers HTTP {reply.status} to CONNECT"))
