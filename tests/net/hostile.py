"""A web server that misbehaves as it is told: raw sockets on loopback, the path chooses how (`tests.net.behaviours`).

    with hostile_server() as server:
        Guard(server.allow)              # may dial the server, and `NAME.hostile.test` there; never the canary
        server.url("/silence")           # http://127.0.0.1:PORT/silence
        server.url("/ok", host="a")      # http://a.hostile.test/ok, dialled at the server
        server.on("/robots.txt", http(b"User-agent: *\\nDisallow: /\\n"))     # raw bytes for a path
        server.on("/x", [http(b"", status="500 No"), http(jpeg())])         # the n-th request gets the n-th, then the last
        server.hits, server.peak("a.hostile.test"), server.shortest_gap_s("a.hostile.test")
        assert server.canary_hits == 0   # 127.0.0.2, same port: whoever connects there got around the guard

`hostile_server(tls=context)` speaks TLS. As a forward proxy it answers as any host, and `CONNECT` by `on("CONNECT", ...)`.
It runs in a thread of its own, so tests, the command line and other processes can all be its clients. A connection lives
`LONGEST_S` at most, an answer has `MOST_BYTES` at most.
"""

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

ALLOWED, CANARY = "127.0.0.1", "127.0.0.2"
SUFFIX = "hostile.test"
LONGEST_S = 60.0
MOST_BYTES = 256 << 20
_MOST_HEAD = 1 << 16

Behaviour = Callable[["Exchange"], Awaitable[None]]
Answer = bytes | Behaviour


@dataclass
class Hit:
    """One request as it came in; times are monotonic seconds, `ended_s` is infinite while it is being answered."""

    at_s: float
    connection: int
    method: str
    host: str
    path: str
    headers: dict[str, str]
    ended_s: float = float("inf")


@dataclass
class Exchange:
    """One request being answered; a behaviour sends what it likes and may say `keep` to go on with the connection."""

    hit: Hit
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: "HostileServer"
    keep: bool = False
    query: dict[str, list[str]] = field(default_factory=dict)
    sent: int = 0

    def option(self, name: str, default: str) -> str:
        """Return a value of the query."""
        return self.query.get(name, [default])[0]

    async def send(self, data: bytes) -> None:
        """Send bytes and wait until they are under way."""
        self.sent += len(data)
        if self.sent > MOST_BYTES:
            raise ConnectionError("an answer has its bound too")
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes, every_s: float) -> None:
        """Send bytes one by one."""
        for position in range(len(data)):
            await self.send(data[position : position + 1])
            await asyncio.sleep(every_s)

    def reset(self) -> None:
        """End the connection with RST."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class HostileServer:
    """The running server, seen from a test."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self.port = 0
        self.hits: list[Hit] = []
        self.canary_hits = 0
        self.num_open = 0
        self._num_connections = 0
        self._own: dict[tuple[str | None, str], list[Answer]] = {}

    @property
    def allow(self) -> tuple[str, ...]:
        """The allowances that a client needs."""
        return (f"{ALLOWED}:{self.port}", f"*.{SUFFIX}={ALLOWED}:{self.port}")

    def url(self, path: str, *, host: str = "", **query: object) -> str:
        """Return a url of the server; `host` gives it a name of its own, further keywords become the query."""
        scheme = "https" if self.tls else "http"
        place = f"{host}.{SUFFIX}" if host else f"{ALLOWED}:{self.port}"
        return f"{scheme}://{place}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")

    def canary(self, path: str = "/") -> str:
        """Return the url of what nobody may dial."""
        return f"{'https' if self.tls else 'http'}://{CANARY}:{self.port}{path}"

    def on(self, path: str, answer: Answer | Sequence[Answer], *, host: str | None = None) -> None:
        """Answer a path with raw bytes or a behaviour; of several, the n-th request gets the n-th and the last stays."""
        several = [answer] if isinstance(answer, bytes) or callable(answer) else list(answer)
        self._own[f"{host}.{SUFFIX}" if host else None, path] = several

    def asked(self, path: str | None = None, host: str | None = None) -> list[Hit]:
        """Return the hits of a path (without its query) and of a host."""
        return [
            hit for hit in list(self.hits)
            if path in (None, hit.path.partition("?")[0]) and host in (None, hit.host)
        ]  # fmt: skip

    def peak(self, host: str | None = None) -> int:
        """Return how many requests were being answered at once."""
        hits = self.asked(host=host)
        marks = sorted([(hit.at_s, 1) for hit in hits] + [(hit.ended_s, -1) for hit in hits])
        now = most = 0
        for _, step in marks:
            now += step
            most = max(most, now)
        return most

    def shortest_gap_s(self, host: str | None = None) -> float:
        """Return the shortest time between two requests."""
        times = sorted(hit.at_s for hit in self.asked(host=host))
        return min((b - a for a, b in itertools.pairwise(times)), default=float("inf"))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self._num_connections += 1
        self.num_open += 1
        # Cancelled is only what is under way when the server ends; asyncio's streams would print it.
        ends = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError)
        try:
            with contextlib.suppress(*ends):
                async with asyncio.timeout(LONGEST_S):
                    await self._talk(reader, writer, self._num_connections)
        finally:
            self.num_open -= 1
            writer.close()

    async def on_canary(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count whoever comes here."""
        self.canary_hits += 1
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        keep = True
        while keep:
            head = await reader.readuntil(b"\r\n\r\n")
            exchange = Exchange(_hit(head, connection), reader, writer, self)
            self.hits.append(exchange.hit)
            try:
                await self._behaviour(exchange)(exchange)
            finally:
                exchange.hit.ended_s = time.monotonic()
            keep = exchange.keep

    def _behaviour(self, exchange: Exchange) -> Behaviour:
        from tests.net.behaviours import BEHAVIOURS, missing, raw

        parts = urlsplit(exchange.hit.path)
        exchange.query = parse_qs(parts.query, keep_blank_values=True)
        path = parts.path if exchange.hit.method != "CONNECT" else "CONNECT"
        own = self._own.get((exchange.hit.host, path)) or self._own.get((None, path))
        if not own:
            return BEHAVIOURS.get(path, missing)
        answer = own.pop(0) if len(own) > 1 else own[0]
        return raw(answer) if isinstance(answer, bytes) else answer


@contextmanager
def hostile_server(tls: ssl.SSLContext | None = None) -> Iterator[HostileServer]:
    """Run the server and its canary for as long as the context lasts."""
    server, loop = HostileServer(tls), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="hostile", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(_start(server), loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def full_backlog() -> Iterator[int]:
    """Give the port of a listener that never accepts and whose queue is full: connecting hangs."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((ALLOWED, 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Write a response; `length` lies about the body's."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def _start(server: HostileServer) -> None:
    # Both addresses must give the same port, or a guard that looks at the port alone would pass.
    for _ in range(20):
        main = await asyncio.start_server(server.serve, ALLOWED, 0, ssl=server.tls, limit=_MOST_HEAD, backlog=1024)
        port = main.sockets[0].getsockname()[1]
        try:
            await asyncio.start_server(server.on_canary, CANARY, port)
        except OSError:
            main.close()
            continue
        server.port = port
        return
    raise OSError("no port is free on both loopback addresses")


async def _stop() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _hit(head: bytes, connection: int) -> Hit:
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    pairs = (line.partition(":") for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    host = headers.get("host", "").rpartition("@")[2]
    return Hit(time.monotonic(), connection, method, host.split(":")[0].lower(), rest.rpartition(" ")[0], headers)
