"""Serves the bundled set on loopback: real images under 64 host names, and the accidents of the real web.

A path is answered with the file of that name; `/slow/...` answers one byte at a time; anything else is 404.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = Path(__file__).parent / "data"
HOSTS = "*.demo.localhost"
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
SLOW_S = 30.0


class DemoServer(ThreadingHTTPServer):
    """A server of one folder; `requests` counts what was asked, by path."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, data: Path = DATA) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away: that is their right."""

    @property
    def port(self) -> int:
        """The port that the system chose."""
        return int(self.server_address[1])

    @property
    def allow(self) -> tuple[str, ...]:
        """The allowance under which the fetcher dials the demo's host names here."""
        return (f"{HOSTS}=127.0.0.1:{self.port}",)

    @property
    def num_media_requests(self) -> int:
        """How many requests there were, robots.txt and its like apart."""
        manners = ("robots.txt", "tdmrep.json", "ai.txt")
        return sum(count for path, count in self.requests.items() if not path.endswith(manners))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: DemoServer

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        slow = self.path.startswith("/slow/")
        name = self.path.removeprefix("/slow").lstrip("/")
        file = self.server.data / name
        if ".." in name or not name.startswith("images/") or not file.is_file():
            self._answer(404, "text/plain", b"not here\n")
        elif slow:
            self._drip(file.read_bytes())
        else:
            self._answer(200, _TYPES[file.suffix], file.read_bytes())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drip(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = time.monotonic() + SLOW_S
        for byte in body:
            if time.monotonic() > end or self.server.closing.wait(0.1):
                break
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                break
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the server counts instead."""


@contextmanager
def serving(data: Path = DATA) -> Iterator[DemoServer]:
    """Serve a folder while the context is open."""
    server = DemoServer(data)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
