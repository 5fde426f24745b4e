"""A small web on loopback: good images of several kinds, and the ordinary accidents, each under its own path."""

import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def picture(number: int, width: int = 300, height: int = 200, kind: str = "JPEG") -> bytes:
    """Return an image file whose pixels depend on its number."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([(x + number * 7) % 256, (y * 2) % 256, (x + y + number) % 256], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


# path -> (status, headers, body)
PAGES: dict[str, tuple[int, dict[str, str], bytes]] = {
    **{f"/good/{number}.jpg": (200, {"Content-Type": "image/jpeg"}, picture(number)) for number in range(10)},
    "/png": (200, {"Content-Type": "image/png"}, picture(11, 64, 400, "PNG")),
    "/small": (200, {"Content-Type": "image/jpeg"}, picture(12, 20, 20)),
    "/missing": (404, {}, b"not here"),
    "/gone": (410, {}, b"gone"),
    "/broken": (500, {}, b"sorry"),
    "/html": (200, {"Content-Type": "image/jpeg"}, b"<html><body>not an image</body></html>"),
    "/empty": (200, {"Content-Type": "image/jpeg"}, b""),
    "/noai": (200, {"Content-Type": "image/jpeg", "X-Robots-Tag": "noai"}, picture(13)),
}


class Web(ThreadingHTTPServer):
    """Serves PAGES; `requests` counts them by path."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: Counter[str] = Counter()

    @property
    def port(self) -> int:
        """The port that the system chose."""
        return int(self.server_address[1])

    @property
    def allow(self) -> str:
        """The allowance under which this server may be dialled."""
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        """Return the address of a page."""
        return f"http://127.0.0.1:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Web

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        status, headers, body = PAGES.get(self.path.partition("?")[0], (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def web() -> Iterator[Web]:
    """Serve while the context is open."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
