"""The test equipment itself: what it says of its visitors is true."""

import socket
import time
import urllib.request

import pytest

from tests.net.behaviours import gzip_bomb, jpeg
from tests.net.hostile import CANARY, full_backlog, hostile_server, http


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def test_it_answers_and_keeps_a_log() -> None:
    with hostile_server() as server:
        assert read(server.url("/ok")) == jpeg()
        server.on("/x", [http(b"one"), http(b"two")])
        assert [read(server.url("/x")) for _ in range(3)] == [b"one", b"two", b"two"]
        assert [hit.path for hit in server.hits] == ["/ok", "/x", "/x", "/x"]
        assert len(server.asked("/x", host="127.0.0.1")) == 3
        assert server.peak() == 1
        assert 0 < server.shortest_gap_s() < 10


def test_the_canary_counts_connections() -> None:
    with hostile_server() as server:
        assert server.canary_hits == 0
        with socket.create_connection((CANARY, server.port), 5) as visitor:
            assert visitor.recv(1) == b""
        assert server.canary_hits == 1


def test_a_full_backlog_lets_nobody_in() -> None:
    with full_backlog() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), 0.3)


def test_it_ends_with_answers_under_way() -> None:
    with hostile_server() as server:
        visitors = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(20)]
        for visitor in visitors:
            visitor.sendall(b"GET /slow-body HTTP/1.1\r\nHost: x\r\n\r\n")
        assert visitors[-1].recv(15) == b"HTTP/1.1 200 OK"
        started = time.monotonic()
    assert time.monotonic() - started < 5
    for visitor in visitors:
        visitor.close()


def test_the_bomb_is_small() -> None:
    assert len(gzip_bomb()) < 2 << 20
