"""What tests of faults share: an undisturbed run, and an S3 on loopback with a hand on the line to it."""

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pytest

from mmdata.demo import DemoServer
from mmdata.storage import Store
from tests.fire.runs import Site, write_site
from tests.flow.small import corpus_digest

BUCKET = "bucket"
_ANSWERS = {
    "404 after": ("404 Not Found", "NoSuchUpload"),  # parts that a lost answer had completed
    "409": ("409 Conflict", "ConditionalRequestConflict"),
    "412": ("412 Precondition Failed", "PreconditionFailed"),  # as MinIO says it: without the element `Condition`
    "500": ("500 Internal Server Error", "InternalError"),
    "500 after": ("500 Internal Server Error", "InternalError"),
}
_numbers = itertools.count()
Answer = Callable[..., Any]


@dataclass
class Meddling:
    """What befalls the next requests of a method: an answer of `_ANSWERS`, `lost`, `cut` or `slow`."""

    method: str
    trouble: str
    times: int = 1
    where: str = ""
    hits: int = 0


class Line:
    """A WSGI application in front of moto; it lets one request through at a time, as moto looks and then writes."""

    def __init__(self, app: Answer) -> None:
        self.app = app
        self.meddling: list[Meddling] = []
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def meddle(self, method: str, trouble: str, times: int = 1, where: str = "") -> Meddling:
        """Give trouble to the next requests of a method whose query has `where` in it."""
        self.meddling.append(Meddling(method, trouble, times, where))
        return self.meddling[-1]

    def __call__(self, environ: dict[str, Any], start: Answer) -> Iterable[bytes]:
        self.seen.append((environ["REQUEST_METHOD"], environ.get("HTTP_RANGE", "")))
        trouble = self._trouble_of(environ)
        if trouble == "slow":
            time.sleep(1)
        if trouble in ("", "slow", "lost") or trouble.endswith("after"):
            with self._lock:
                answer = list(self.app(environ, start if trouble in ("", "slow") else _unheard))
            if trouble in ("", "slow"):
                return answer
        if trouble in ("cut", "lost"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        status, code = _ANSWERS[trouble]
        start(status, [("Content-Type", "application/xml"), ("Connection", "close")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]

    def _trouble_of(self, environ: dict[str, Any]) -> str:
        for item in self.meddling:
            if item.hits < item.times and environ["REQUEST_METHOD"] == item.method and item.where in environ["QUERY_STRING"]:
                item.hits += 1
                return item.trouble
        return ""


def _unheard(*_: object) -> None:
    """Take moto's answer and tell nobody."""


def create_at_last(store: Store, name: str, data: bytes) -> bool:
    """Do as the engine does, a task that failed is done again, and see that nothing partial shows meanwhile."""
    for _ in range(500):
        try:
            return store.create(name, data)
        except OSError:
            with suppress(OSError):
                assert not store.exists(name) or store.size(name) == len(data)
    raise AssertionError(f"{name}: not made in 500 tries")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Site:
    """A run of the plan that nothing befell, and its bytes; it started from nothing, so its hashes have a seed of their own."""
    site = write_site(tmp_path_factory.mktemp("undisturbed"), server)
    done = site.run_fresh()
    assert done.returncode == 0, done.stderr
    return replace(site, digest=corpus_digest(site.home / "run"))


@pytest.fixture(scope="session")
def s3_line() -> Iterator[tuple[Line, str]]:
    """The line to the server, and the server's address."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    line = Line(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, line, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield line, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(s3_line: tuple[Line, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The line to an S3 that this test, and the processes it starts, know by their environment."""
    line, address = s3_line
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _forget_connections()
    fsspec.filesystem("s3", use_listings_cache=False).makedirs(BUCKET, exist_ok=True)
    _forget_connections()
    yield line
    line.meddling.clear()
    _forget_connections()


@pytest.fixture
def s3_url(s3: Line) -> str:
    """A folder of a bucket of its own for each test."""
    return f"s3://{BUCKET}/{next(_numbers)}/run"


def _forget_connections() -> None:
    """Let no test meet the file system of another, whose environment it had."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
