"""A small web for the download benchmark: 500 hosts on 127/8, served from memory by a process outside our tree.

Decided here: the second number of an address says how its host behaves, so behaviour costs the server nothing to look up.
The server is not a descendant of whoever starts it (so its CPU time is in nobody's account), and ends with its owner.

    127.1.x.y  answers    127.2.x.y  refuses connections    127.3.x.y  resets every connection once it has been asked
    127.4.x.y  sends its status line at 1 byte/s            127.5.x.y  the same with the body; robots.txt is quick

Which share of the rows is bad is said by `Bad`: tarpits are half of each kind, dead rows a third each refused, reset and 404.
"""

import asyncio
import contextlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

NUM_HOSTS = 500
GOOD, REFUSED, RESET, SLOW_HEAD, SLOW_BODY = KINDS = (1, 2, 3, 4, 5)
GONE = 0  # an address of a good host
_TYPES = {"jpeg": b"image/jpeg", "png": b"image/png", "webp": b"image/webp"}
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_DRIP_S = 1.0
_OWNER_CHECK_S = 2.0


def address(host: int, kind: int = GOOD) -> str:
    """Return the address of a host, 0..499, that behaves in one way."""
    return f"127.{kind}.{host // 250}.{host % 250 + 1}"


class Bad(NamedTuple):
    """How many of 100 hosts have dead rows, and how many are tarpits."""

    dead: int = 0
    tarpits: int = 0

    def kind(self, host: int) -> int:
        """Return how a host behaves; one that is `GONE` answers, but has none of its files."""
        place = host % 100
        if place < self.tarpits:
            return (SLOW_BODY, SLOW_HEAD)[place % 2]
        return (REFUSED, RESET, GONE)[place % 3] if place < self.tarpits + self.dead else GOOD


CLEAN, DIRTY = Bad(), Bad(dead=10, tarpits=5)


class Site:
    """What all connections share: the images, and counts of what was asked."""

    def __init__(self, images: Path) -> None:
        table = pq.read_table(images.with_suffix(".parquet")).to_pydict()
        with images.with_suffix(".bin").open("rb") as file:
            self.bytes = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        self.heads = [
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (_TYPES[kind], size)
            for kind, size in zip(table["kind"], table["size"], strict=True)
        ]
        self.spans = list(zip(table["offset"], table["size"], strict=True))
        self.counts: Counter[str] = Counter()
        self.last_good = 0.0

    def image(self, path: bytes) -> tuple[bytes, memoryview] | None:
        """Return head and body of `/NUMBER.jpg`; null for anything else."""
        name = path[1:].partition(b".")[0]
        if not name.isdigit() or int(name) >= len(self.spans):
            return None
        offset, size = self.spans[int(name)]
        return self.heads[int(name)], self.bytes[offset : offset + size]

    def stats(self) -> bytes:
        """Return the counts as an answer, and begin to count anew."""
        body = json.dumps({**self.counts, "last_good": self.last_good}).encode()
        self.counts.clear()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Connection(asyncio.Protocol):
    """One connection: requests in, answers out, in the manner of its address."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.waiting = b""
        self.slow = memoryview(b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.kind = int(transport.get_extra_info("sockname")[0].split(".")[1])

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while b"\r\n\r\n" in self.waiting:
            request, _, self.waiting = self.waiting.partition(b"\r\n\r\n")
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        path = request.split(b" ", 2)[1]
        if self.kind == RESET:
            self.site.counts["reset"] += 1
            self._reset()
        elif self.kind == SLOW_HEAD:
            self._drip(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nX-Pad: " + b"x" * 4000)
        elif path == b"/_stats":
            self.transport.write(self.site.stats())
        elif (image := self.site.image(path)) is None:
            self.site.counts["robots" if path == b"/robots.txt" else "not_found"] += 1
            self.transport.write(_NOT_FOUND)
        elif self.kind == SLOW_BODY:
            self.transport.write(image[0])
            self._drip(image[1])
        else:
            self.transport.write(image[0])
            self.transport.write(image[1])
            self.site.counts["good"] += 1
            self.site.last_good = time.time()
        if b"connection: close" in request.lower() and not self.slow:
            self.transport.close()

    def _reset(self) -> None:
        # With nothing to linger for, the kernel sends RST in place of FIN.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _drip(self, data: bytes | memoryview) -> None:
        self.site.counts["tarpit"] += 1
        self.slow = memoryview(data)
        self._next_byte()

    def _next_byte(self) -> None:
        if self.slow and not self.transport.is_closing():
            self.transport.write(bytes(self.slow[:1]))
            self.slow = self.slow[1:]
            asyncio.get_running_loop().call_later(_DRIP_S, self._next_byte)


def _listen() -> list[socket.socket]:
    """Listen on every address that answers in some way, on one port that is free on all."""
    places = [address(host, kind) for host in range(NUM_HOSTS) for kind in KINDS if kind != REFUSED]
    for _ in range(20):
        port, made = 0, list[socket.socket]()
        with contextlib.suppress(OSError):
            for place in places:
                made.append(socket.create_server((place, port), backlog=512))
                port = made[0].getsockname()[1]
            return made
        for one in made:
            one.close()
    raise OSError("no port is free on all of 127.1.0.1 to 127.1.1.250")


async def _serve(images: Path, report: Path, owner: int) -> None:
    site, loop, sockets = Site(images), asyncio.get_running_loop(), _listen()
    for sock in sockets:
        await loop.create_server(lambda: Connection(site), sock=sock)
    temp = report.with_suffix(".tmp")
    temp.write_text(json.dumps({"pid": os.getpid(), "port": sockets[0].getsockname()[1]}), encoding="utf-8")
    temp.rename(report)
    while Path(f"/proc/{owner}").exists():
        await asyncio.sleep(_OWNER_CHECK_S)


@dataclass(frozen=True)
class Web:
    """A web that is being served: its port, and the process that serves it."""

    port: int
    pid: int

    def url(self, row: int, num_images: int, bad: Bad = CLEAN) -> str:
        """Return the url of a row; rows go round the hosts."""
        host = row % NUM_HOSTS
        kind = bad.kind(host)
        name = f"gone-{row}" if kind == GONE else str(row % num_images)
        return f"http://{address(host, kind or GOOD)}:{self.port}/{name}.jpg" + (f"?{row}" if row >= num_images else "")

    def allow(self) -> tuple[str, ...]:
        """Return the allowances under which our fetcher may dial all of it."""
        return tuple(f"{address(host, kind)}:{self.port}" for host in range(NUM_HOSTS) for kind in KINDS)

    def stats(self) -> dict[str, float]:
        """Return what was asked since the last call: good, not_found, robots, reset, tarpit, last_good (a time)."""
        with urllib.request.urlopen(f"http://{address(0)}:{self.port}/_stats", timeout=10) as answer:
            found: dict[str, float] = json.load(answer)
        return found


@contextmanager
def serving(images: Path) -> Iterator[Web]:
    """Serve one set of images (its path without suffix) while the context is open."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "web.json"
        subprocess.run([sys.executable, "-m", "benchmarks.web", str(images), str(report), str(os.getpid())], check=True)
        deadline = time.monotonic() + 30
        while not report.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the benchmark's web did not start within 30 s")
            time.sleep(0.05)
        facts = json.loads(report.read_text(encoding="utf-8"))
        try:
            yield Web(**facts)
        finally:
            os.kill(facts["pid"], signal.SIGTERM)


def main() -> None:
    """Leave the process tree, then serve."""
    images, report, owner = sys.argv[1:]
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    asyncio.run(_serve(Path(images), Path(report), int(owner)))


if __name__ == "__main__":
    main()
