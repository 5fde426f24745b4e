"""A folder served over real HTTP on loopback with ranges; some answers can be made to fail."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Served(ThreadingHTTPServer):
    """Serves `root`; `faults` is how many of the coming range requests answer 503 or with the wrong bytes."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults: list[str] = []
        self.ranges: list[tuple[str, int]] = []
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Served

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        wanted = _RANGE.match(self.headers.get("Range", ""))
        total = len(data)
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), total - 1)
            data = data[first : last + 1]
            with self.server.lock:
                fault = self.server.faults.pop(0) if self.server.faults and path.suffix == ".tar" else ""
                self.server.ranges.append((path.name, len(data)))
            if fault == "503":
                self.send_error(503)
                return
            if fault == "wrong":
                data = bytes(byte ^ 1 for byte in data)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(root: Path) -> Iterator[tuple[Served, str]]:
    """Serve a folder; yield the server and its address."""
    server = Served(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
