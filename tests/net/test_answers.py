"""How each hostile answer ends: the network rows of the fault matrix that are the transport's."""

import asyncio
import resource
import time
from pathlib import Path

import pytest

from mmdata.errors import RecordError
from mmdata.media import Jail, Resize
from mmdata.net import Failure, Fetched, Guard, Limits
from mmdata.net.client import Options, open_transport
from mmdata.net.dns import TableResolver
from tests.net.asking import QUICK, ask, outcome
from tests.net.behaviours import jpeg
from tests.net.hostile import Exchange, HostileServer, full_backlog, http

MIB = 1 << 20


def fault(ident: str, path: str, expected: str, words: str = "") -> object:
    return pytest.param(path, expected, words, marks=pytest.mark.fault(ident), id=f"{ident}{path}")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.fault("N01")
@pytest.mark.parametrize("path", ["/ok", "/chunked", "/no-type", "/as-html"])
def test_a_healthy_picture_arrives_whole(hostile: HostileServer, path: str) -> None:
    (result,) = ask(hostile, hostile.url(path, host="a"))
    assert isinstance(result, Fetched)
    assert (result.status, result.body, result.address) == (200, jpeg(), "127.0.0.1")
    assert 0 < result.elapsed_s < 5
    request = hostile.hits[0]
    assert (request.method, request.headers["host"], request.headers["accept-encoding"]) == ("GET", "a.hostile.test", "identity")
    assert request.headers["user-agent"].startswith("mmdata/0.1 (+mailto:")


@pytest.mark.parametrize(
    ("path", "expected", "words"),
    [
        fault("N07", "/huge-length", "too_large", "Content-Length 10737418240 is above 1048576"),
        fault("N09", "/short", "short_body", "after 1000 bytes of the body"),
        fault("N11", "/two-lengths", "bad_response", "Duplicate Content-Length"),
        fault("N11", "/length-and-chunked", "bad_response", "Content-Length"),
        fault("N11", "/negative-length", "bad_response", "Content-Length"),
        fault("N12", "/chunked-cut", "short_body", "after 4 bytes"),
        fault("N12", "/chunk-overflow", "short_body", ""),
        fault("N12", "/chunk-negative", "bad_response", "chunk size"),
        fault("N12", "/endless-chunk?part=extension", "bad_response", "outweigh the body"),
        fault("N12", "/endless-chunk?part=trailer", "bad_response", "outweigh the body"),
        fault("N12", "/endless-chunk?part=trailers", "bad_response", "outweigh the body"),
        fault("N12", "/crumbs", "bad_response", "outweigh the body"),
        fault("N14", "/reset", "conn_reset", "of the body"),
        fault("N15", "/gzip-bomb", "bad_encoding", "Content-Encoding gzip, identity was asked"),
        fault("N17", "/ten-encodings", "bad_encoding", "gzip, gzip"),
        fault("N18", "/empty-gzip-members", "bad_encoding", "gzip"),
        fault("N24", "/many-headers", "bad_response", "more than"),
        fault("N24", "/many-headers?lines=101", "bad_response", "more than 100 header fields"),
        fault("N24", "/long-header", "bad_response", "65536 bytes"),
        fault("N24", "/header-nul", "bad_response", "control characters in the header X-Nul"),
        fault("N27", "/204", "204", ""),
        fault("N27", "/206", "206", ""),
        fault("N27", "/304", "304", ""),
        fault("N27", "/continues", "bad_response", "more than 10 interim answers"),
        fault("N27", "/switch", "bad_response", "switches protocols"),
        fault("N04", "/reset-at-once", "conn_reset", "before the headers were complete"),
        fault("N04", "/nothing", "conn_reset", "before the headers were complete"),
        fault("N04", "/not-http", "bad_response", "not HTTP: "),
    ],
)
def test_an_answer_that_is_none(hostile: HostileServer, path: str, expected: str, words: str) -> None:
    started, cpu_s = resident_bytes(), time.process_time()
    (result,) = ask(hostile, hostile.url(path))
    assert outcome(result) == expected
    assert isinstance(result, Fetched) or words in result.detail
    assert not isinstance(result, Fetched) or result.body == b""
    assert len(hostile.hits) == 1
    # The server lives in this process and holds the 1 MiB bombs; what a client unpacked would be 1 GiB.
    assert resident_bytes() - started < 64 * MIB
    assert time.process_time() - cpu_s < 1.5


@pytest.mark.fault("N25")
def test_N25_a_page_that_calls_itself_a_picture_is_none(hostile: HostileServer) -> None:
    (result,) = ask(hostile, hostile.url("/soft-404", host="a"))
    assert isinstance(result, Fetched)
    with Jail() as jail, pytest.raises(RecordError) as caught:
        jail.transcode(result.body, Resize(image_size=64))
    assert caught.value.outcome == "not_media"


def test_a_small_body_may_come_in_crumbs(hostile: HostileServer) -> None:
    (result,) = ask(hostile, hostile.url("/crumbs", bytes=20_480))
    assert isinstance(result, Fetched)
    assert result.body == b"x" * 20_480


@pytest.mark.fault("N10")
def test_a_body_without_length_ends_with_the_connection(hostile: HostileServer) -> None:
    (result,) = ask(hostile, hostile.url("/half-jpeg"))
    assert isinstance(result, Fetched)
    assert result.body == jpeg()[: len(jpeg()) // 2]  # that it is half a picture, its decoder says


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        pytest.param("/slow-headers", "?every=0.02", "timeout_headers", marks=pytest.mark.fault("N02")),
        pytest.param("/slow-body", "?every=0.05", "too_slow", marks=pytest.mark.fault("N03")),
        pytest.param("/silence", "", "timeout_headers", marks=pytest.mark.fault("N04")),
        pytest.param("/late-body", "", "timeout_idle", marks=pytest.mark.fault("N03")),
    ],
)
def test_a_slow_server_is_left_in_time(hostile: HostileServer, path: str, query: str, expected: str) -> None:
    started = time.monotonic()
    (result,) = ask(hostile, hostile.url(path + query))
    assert outcome(result) == expected
    assert time.monotonic() - started < QUICK.headers_s + 1
    assert 0.3 < result.elapsed_s < 2


@pytest.mark.fault("N03")
def test_the_total_clock_ends_what_is_just_fast_enough(hostile: HostileServer) -> None:
    limits = QUICK.model_copy(update={"min_bytes_per_s": 1.0, "total_s": 0.8})
    (result,) = ask(hostile, hostile.url("/slow-body", every=0.05), limits=limits)
    assert outcome(result) == "timeout_total"
    assert 0.8 <= result.elapsed_s < 2


@pytest.mark.fault("N05")
def test_a_full_backlog_is_no_connection(hostile: HostileServer) -> None:
    with full_backlog() as port:
        server = HostileServer(None)
        server.port = port
        (result,) = ask(server, server.url("/"), limits=QUICK.model_copy(update={"connect_s": 0.3}))
    assert outcome(result) == "timeout_connect"
    assert 0.25 < result.elapsed_s < 2


@pytest.mark.fault("N06")
def test_an_endless_body_is_read_to_the_cap_alone(hostile: HostileServer) -> None:
    limits = Limits(**{**QUICK.model_dump(), "max_mib": 16, "total_s": 20})
    started = resident_bytes()
    (result,) = ask(hostile, hostile.url("/endless"), limits=limits)
    assert outcome(result) == "too_large"
    assert isinstance(result, Failure)
    assert result.detail == f"more than {16 * MIB} bytes"
    assert resident_bytes() - started < 32 * MIB


@pytest.mark.fault("N06")
def test_no_more_than_the_cap_and_one_buffer_is_counted(hostile: HostileServer) -> None:
    async def work() -> int:
        async with open_transport(Guard(hostile.allow), QUICK, "mmdata/0.1", 1) as transport:
            assert outcome(await transport.get(hostile.url("/endless"))) == "too_large"
            return transport.num_bytes

    assert asyncio.run(work()) <= MIB + (64 << 10)


@pytest.mark.fault("N14")
def test_a_reset_is_tried_again_with_patience(hostile: HostileServer) -> None:
    (result,) = ask(hostile, hostile.url("/reset"), limits=QUICK.model_copy(update={"retries": 2}), policy=True)
    assert outcome(result) == "conn_reset"
    assert len(hostile.hits) == 3
    assert hostile.shortest_gap_s() > 0.1


@pytest.mark.fault("N19")
@pytest.mark.parametrize("path", ["/redirect?to=/redirect%3Fto%3D/ping", "/ping"])
def test_redirects_end(hostile: HostileServer, path: str) -> None:
    (result,) = ask(hostile, hostile.url(path), policy=True)
    assert outcome(result) == "redirect_limit"
    assert len(hostile.hits) <= 6
    assert len({hit.connection for hit in hostile.hits}) == 1  # a redirect's answer is read, and its connection kept


@pytest.mark.fault("N21")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/redirect", "bad_response"),
        ("/redirect?to=", "bad_response"),
        ("/redirect?to=ok%3Fx%3D1", "ok"),
        ("/redirect?to=//a.hostile.test/ok", "ok"),
        ("/redirect?to=http://%5Bx", "bad_response"),
        ("/redirect?to=/ok%0D%0AX-Robots-Tag:%20noai", "ok"),
        ("/location-crlf", "bad_response"),
        ("/location-long", "bad_response"),
    ],
)
def test_where_a_redirect_may_lead(hostile: HostileServer, path: str, expected: str) -> None:
    (result,) = ask(hostile, hostile.url(path), policy=True)
    assert outcome(result) == expected
    assert len(hostile.hits) == (2 if expected == "ok" else 1)


@pytest.mark.fault("N31")
@pytest.mark.parametrize("code", [403, 404, 410, 451])
def test_a_refusal_is_final(hostile: HostileServer, code: int) -> None:
    limits = QUICK.model_copy(update={"retries": 2})
    (result,) = ask(hostile, hostile.url("/status", code=code), limits=limits, policy=True)
    assert outcome(result) == "http_4xx"
    assert len(hostile.hits) == 1


def test_the_body_of_a_refusal_is_not_waited_for(hostile: HostileServer) -> None:
    async def slow_refusal(exchange: Exchange) -> None:
        await exchange.send(http(b"", status="404 Not Found", length=1000))
        await exchange.drip(b"x" * 1000, 0.1)

    hostile.on("/refusal", slow_refusal)
    patient = QUICK.model_copy(update={"idle_s": 30, "total_s": 30, "slow_after_s": 30})
    (result,) = ask(hostile, hostile.url("/refusal"), limits=patient)
    assert outcome(result) == "404"
    assert result.elapsed_s < 5


@pytest.mark.fault("R12")
def test_folded_and_repeated_headers_are_one(hostile: HostileServer) -> None:
    hostile.on("/folded", http(jpeg(), "X-Robots-Tag: all,\r\n  noai"))
    hostile.on("/twice", http(jpeg(), "X-Robots-Tag: all", "x-robots-tag: noai"))
    folded, twice = ask(hostile, [hostile.url("/folded"), hostile.url("/twice")])
    assert isinstance(folded, Fetched)
    assert isinstance(twice, Fetched)
    assert folded.headers["x-robots-tag"].replace(" ", "") == twice.headers["x-robots-tag"].replace(" ", "") == "all,noai"
    assert folded.body == twice.body == b""


def test_what_old_servers_write_is_read(hostile: HostileServer) -> None:
    hostile.on("/feeds", b"HTTP/1.0 200 OK\nContent-Type: image/jpeg\nContent-Length: 4\n\ndata")
    hostile.on("/spaces", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4  \r\ndata\r\n0\r\n\r\n")
    hostile.on("/wordless", b"HTTP/1.1 200\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndata and more")
    for result in ask(hostile, [hostile.url("/feeds"), hostile.url("/spaces"), hostile.url("/wordless")]):
        assert isinstance(result, Fetched), result
        assert result.body == b"data"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a b", "/a%20b"),
        ("/ä?q=ü#part", "/%C3%A4?q=%C3%BC"),
        ("/%41%2f?x=%zz", "/%41%2f?x=%zz"),
        ("?only=query", "/?only=query"),
        ('/a|b"<>^`{}', "/a%7Cb%22%3C%3E%5E%60%7B%7D"),
        ("/x\r\nX-Evil: 1", "/xX-Evil:%201"),
    ],
)
def test_a_path_is_sent_as_its_owner_wrote_it(hostile: HostileServer, path: str, asked: str) -> None:
    ask(hostile, hostile.url(path))
    assert [hit.path for hit in hostile.hits] == [asked]
    assert "x-evil" not in hostile.hits[0].headers


@pytest.mark.parametrize(
    "url",
    ["http://", "http://:80/", "http://a:99999/", "http://a:x/", "http://a b/", "http://a..b/", "http://-a/", "http://a\\b/",
     "http://a%20b/", "http://" + "a" * 300 + "/", "http://a/" + "x" * 20_000, "http://[::1/", "http://\u2100/", "http://\ud800/",
     "http://" + "\u00e4" * 100_000 + "/"],
)  # fmt: skip
def test_a_url_that_leads_nowhere_costs_its_row(hostile: HostileServer, url: str) -> None:
    (result,) = ask(hostile, url)
    assert outcome(result) == "bad_row"
    assert isinstance(result, Failure)
    assert len(result.detail) <= 300


def test_a_name_in_any_script_is_asked_for_in_ascii(hostile: HostileServer) -> None:
    resolver = TableResolver({})
    ask(
        hostile,
        ["http://b\u00fccher.example/", "http://\u4f8b.example/", "http://\u2764.example/"],
        options=Options(resolver=resolver),
    )
    assert resolver.asked == ["xn--bcher-kva.example", "xn--fsq.example", "xn--qei.example"]
