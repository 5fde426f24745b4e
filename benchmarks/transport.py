"""What one request costs: CPU time of our transport and of bare aiohttp, against a server in another process.

    python -m benchmarks.transport [--requests 2000] [--rounds 5]

Both clients ask in turn over 32 connections; of each, the cheapest round counts, since whatever else the machine does only
adds. aiohttp is bare: no limits, no clocks, no guard, no cookies. It writes `benchmarks/results/transport.md`.
"""

import argparse
import asyncio
import multiprocessing
import os
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from mmdata.net import Fetched, Guard, Limits
from mmdata.net.client import open_transport

PAGE = Path(__file__).parent / "results/transport.md"
CONNECTIONS = 32
Get = Callable[[int], Awaitable[int]]


@dataclass(frozen=True)
class Case:
    """What is asked for."""

    name: str
    body_bytes: int
    close: bool

    @property
    def answer(self) -> bytes:
        lines = ["HTTP/1.1 200 OK", "Content-Type: image/jpeg", "Date: Fri, 27 Nov 2026 17:00:00 GMT", "Server: x", "ETag: x"]
        lines += [f"Content-Length: {self.body_bytes}", *(["Connection: close"] if self.close else [])]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + bytes(self.body_bytes)


CASES = (
    Case("8 KiB, kept connection", 8192, False),
    Case("8 KiB, new connection", 8192, True),
    Case("200 KiB, kept", 200 << 10, False),
)


class Server(asyncio.Protocol):
    """Gives every request the same bytes."""

    def __init__(self, case: Case) -> None:
        self.answer, self.close = case.answer, case.close

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.answer)
        if self.close:
            self.transport.close()


def serve(case: Case, pipe: Connection) -> None:
    """Serve until the process is ended."""

    async def work() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Server(case), "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(work())


async def cpu_us(get: Get, num: int) -> float:
    """Return microseconds of CPU time a request, after a warm-up."""

    async def worker(numbers: "list[int]") -> None:
        for number in numbers:
            await get(number)

    await asyncio.gather(*(get(number) for number in range(CONNECTIONS)))
    started_s = time.process_time()
    await asyncio.gather(*(worker(list(range(first, num, CONNECTIONS))) for first in range(CONNECTIONS)))
    return (time.process_time() - started_s) / num * 1e6


async def ours(port: int, num: int) -> float:
    async with open_transport(Guard((f"127.0.0.1:{port}",)), Limits(), "mmdata/0.1", CONNECTIONS) as transport:

        async def get(number: int) -> int:
            result = await transport.get(f"http://127.0.0.1:{port}/images/{number}.jpg")
            assert isinstance(result, Fetched), result
            return len(result.body)

        return await cpu_us(get, num)


async def bare_aiohttp(port: int, num: int) -> float:
    options = {"cookie_jar": aiohttp.DummyCookieJar(), "timeout": aiohttp.ClientTimeout(total=None), "auto_decompress": False}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS), **options) as session:  # type: ignore[arg-type]

        async def get(number: int) -> int:
            async with session.get(f"http://127.0.0.1:{port}/images/{number}.jpg", allow_redirects=False) as answer:
                return len(await answer.read())

        return await cpu_us(get, num)


def measure(case: Case, num: int, rounds: int) -> tuple[float, float]:
    """Return the cheapest round of each."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(case, there), daemon=True)
    server.start()
    port = here.recv()
    results = [(asyncio.run(ours(port, num)), asyncio.run(bare_aiohttp(port, num))) for _ in range(rounds)]
    server.terminate()
    server.join(10)
    return min(mine for mine, _ in results), min(theirs for _, theirs in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = [(case.name, *measure(case, args.requests, args.rounds)) for case in CASES]
    lines = [
        "# What one request costs",
        "",
        f"CPU µs a request, the cheapest of {args.rounds} rounds of {args.requests}. Python {platform.python_version()}, "
        f"aiohttp {version('aiohttp')}, httptools {version('httptools')}, {os.cpu_count()} cores, {platform.machine()}.",
        "`python -m benchmarks.transport` writes this page.",
        "",
        "| case | ours | bare aiohttp | ratio |",
        "|---|---|---|---|",
        *(f"| {name} | {mine:.0f} | {theirs:.0f} | {theirs / mine:.1f} |" for name, mine, theirs in rows),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
