"""TLS: a certificate that is not in order is never accepted, and never tried twice."""

import socket
import threading
from pathlib import Path

import pytest

from mmdata.net import Failure, Fetched
from mmdata.net.client import Options
from tests.net.asking import QUICK, ask, outcome
from tests.net.behaviours import jpeg, tunnel
from tests.net.certificates import Authority
from tests.net.hostile import HostileServer, hostile_server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_trusted_name_is_read_over_one_connection(authority: Authority) -> None:
    with hostile_server(authority.server()) as server:
        results = ask(server, [server.url("/ok", host="a")] * 3, options=Options(tls=authority.client()))
        assert [result.body for result in results if isinstance(result, Fetched)] == [jpeg()] * 3
        assert {hit.connection for hit in server.hits} == {1}


@pytest.mark.fault("N33")
@pytest.mark.parametrize(
    ("kind", "words"),
    [("self-signed", "self-signed"), ("expired", "expired"), ("wrong name", "mismatch"), ("unknown", "unable to get")],
)
def test_a_certificate_out_of_order(authority: Authority, kind: str, words: str) -> None:
    context = authority.server(
        "other.test" if kind == "wrong name" else "*.hostile.test",
        age_days=60 if kind == "expired" else 1,
        self_signed=kind == "self-signed",
    )
    with hostile_server(context) as server:
        options = Options() if kind == "unknown" else Options(tls=authority.client())
        (result,) = ask(
            server, server.url("/ok", host="a"), options=options, limits=QUICK.model_copy(update={"retries": 2}), policy=True
        )
        assert isinstance(result, Failure)
        assert result.outcome == "tls"
        assert words in result.detail
        assert not server.hits


@pytest.mark.fault("N33")
def test_a_server_that_knows_only_old_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            visitor, _ = listener.accept()
            with visitor:
                visitor.settimeout(5)
                visitor.recv(4096)
                visitor.sendall(bytes([21, 3, 1, 0, 2, 2, 70]))  # a fatal alert: protocol version

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        server = HostileServer(None)
        server.port = listener.getsockname()[1]
        (result,) = ask(server, "https://a.hostile.test/ok")
        thread.join(5)
    assert isinstance(result, Failure)
    assert result.outcome == "tls"
    assert "PROTOCOL_VERSION" in result.detail


@pytest.mark.fault("N33")
def test_plain_http_where_tls_is_spoken(authority: Authority, hostile: HostileServer) -> None:
    url = hostile.url("/ok", host="a").replace("http:", "https:")
    limits = QUICK.model_copy(update={"connect_s": 0.3})
    (result,) = ask(hostile, url, options=Options(tls=authority.client()), limits=limits)
    assert outcome(result) in ("tls", "conn_reset", "timeout_connect")
    assert not hostile.hits


@pytest.mark.fault("N22")
def test_a_redirect_out_of_tls_is_refused(authority: Authority) -> None:
    with hostile_server(authority.server()) as server:
        url = server.url("/redirect", host="a", to="http://b.hostile.test/ok")
        (result,) = ask(server, url, options=Options(tls=authority.client()), policy=True)
        assert outcome(result) == "bad_response"
        assert len(server.hits) == 1


def test_a_proxy_is_asked_for_a_tunnel_and_sees_no_more(authority: Authority, hostile: HostileServer) -> None:
    with hostile_server(authority.server("example.com")) as server:
        hostile.on("CONNECT", tunnel(server.port))
        options = Options(
            tls=authority.client(),
            proxy=f"http://me:secret@127.0.0.1:{hostile.port}",
            headers={"example.com": {"Authorization": "Bearer key"}},
        )
        results = ask(hostile, ["https://example.com/ok"] * 2, options=options)
        assert [outcome(result) for result in results] == ["ok", "ok"]
        assert [(hit.method, hit.path) for hit in hostile.hits] == [("CONNECT", "example.com:443")]
        assert "authorization" not in hostile.hits[0].headers
        assert [hit.headers["authorization"] for hit in server.hits] == ["Bearer key"] * 2
        assert "proxy-authorization" not in server.hits[0].headers


def test_a_proxy_that_refuses_is_a_bad_response(hostile: HostileServer) -> None:
    hostile.on("CONNECT", b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
    (result,) = ask(hostile, "https://example.com/ok", options=Options(proxy=f"http://127.0.0.1:{hostile.port}"))
    assert isinstance(result, Failure)
    assert (result.outcome, result.detail) == ("bad_response", "the proxy answers HTTP 407 to CONNECT")
