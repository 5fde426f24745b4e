"""Which addresses are dialled: the S rows of the fault matrix. A canary on 127.0.0.2 must never be reached."""

import random
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from mmdata.net import Failure, Fetched, Guard
from mmdata.net.client import Options
from mmdata.net.dns import TableResolver
from mmdata.net.guard import Blocked, is_public
from tests.net.asking import QUICK, ask, outcome
from tests.net.hostile import HostileServer, hostile_server

IPV4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
)  # fmt: skip
IPV6 = (
    "::/128", "::1/128", "fe80::/10", "fc00::/7", "fec0::/10", "ff00::/8", "::ffff:0:0/96", "::/96", "64:ff9b::/96",
    "64:ff9b:1::/48", "2001::/32", "2002::/16", "2001:db8::/32",
)  # fmt: skip


def samples(network: str) -> Iterator[str]:
    """Return the first address, the last, and 255 in between."""
    block, draw = ip_network(network), random.Random(network)
    first, last = int(block.network_address), int(block.broadcast_address)
    kind = type(block.network_address)
    for number in (first, last, *(draw.randint(first, last) for _ in range(255))):
        yield str(kind(number))


@pytest.mark.fault("S02")
@pytest.mark.parametrize("network", IPV4)
def test_no_address_of_a_special_network_is_dialled(network: str) -> None:
    for address in samples(network):
        with pytest.raises(Blocked, match="not a public address") as caught:
            Guard().check(address, 80)
        assert caught.value.outcome == "blocked_address"


@pytest.mark.fault("S03")
@pytest.mark.parametrize("network", IPV6)
def test_no_address_of_a_special_ipv6_network_is_dialled(network: str) -> None:
    for address in samples(network):
        assert not is_public(address), address


@pytest.mark.fault("S03")
@pytest.mark.parametrize("inner", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "8.8.8.8"])
def test_an_address_wrapped_in_ipv6_is_judged_by_what_it_wraps(inner: str) -> None:
    number = int(ip_address(inner))
    for middle in (0x5EFE, 0x2005EFE):
        isatap = ip_address((0x2A00 << 112) | (middle << 32) | number)
        assert is_public(str(isatap)) == (inner == "8.8.8.8")
    assert not is_public(str(ip_address((0xFFFF << 32) | number)))
    assert not is_public(str(ip_address((0x2002 << 112) | (number << 80))))


@pytest.mark.fault("S01")
def test_without_an_allowance_nothing_on_loopback_is_dialled() -> None:
    with hostile_server() as server:
        stranger = HostileServer(None)  # its allowances are for port 0
        urls = [server.url("/ok"), server.canary(), "http://127.0.0.1/", "http://localhost/", f"http://localhost:{server.port}/",
                "http://[::1]/", f"http://[::1]:{server.port}/"]  # fmt: skip
        results = ask(stranger, urls)
        assert {outcome(result) for result in results} <= {"blocked_address", "blocked_port"}
        assert outcome(results[0]) == outcome(results[1]) == "blocked_address"
        assert not server.hits
        assert server.canary_hits == server.num_open == 0


@pytest.mark.fault("S04")
@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "127.2", "127.0.2", "2130706434", "0x7f.0.0.2", "0x7f000002", "0177.0.0.2", "127.0.0.2.", "①②⑦.⓪.⓪.②",
     "127。0。0。2", "%31%32%37.0.0.2", "user@127.0.0.2", "user:8.8.8.8@127.0.0.2", "8.8.8.8@127.0.0.2", "[::ffff:127.0.0.2]",
     "[::127.0.0.2]", "[::ffff:7f00:2]", "[fe80::1%25lo]", "[::1%25lo]", "[::1%lo]", "127.0.0.2%00.example.com", "127.0.0.256",
     "0x7g.0.0.2", "[64:ff9b::7f00:2]"],
)  # fmt: skip
def test_no_spelling_of_an_address_gets_around_the_guard(hostile: HostileServer, host: str) -> None:
    (result,) = ask(hostile, f"http://{host}:{hostile.port}/")
    assert outcome(result) in ("blocked_address", "bad_row")
    assert not hostile.hits


@pytest.mark.fault("S05")
@pytest.mark.parametrize("address", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.2"])
def test_a_name_does_not_lead_where_its_address_may_not(hostile: HostileServer, address: str) -> None:
    resolver = TableResolver({"bad.example": [[address]]})
    options = Options(resolver=resolver)
    urls = ["http://bad.example/x", f"http://bad.example:{hostile.port}/x", "http://BAD.example./x"]
    for result in ask(hostile, urls, options=options):
        assert isinstance(result, Failure)
        assert result.outcome == "blocked_address"
        assert address in result.detail
    assert resolver.asked == ["bad.example"]


@pytest.mark.fault("S07")
def test_a_name_that_changes_its_mind_is_judged_each_time(hostile: HostileServer) -> None:
    resolver = TableResolver({"rebind.example": [["127.0.0.1"], ["127.0.0.2"]], "mixed.example": [["127.0.0.2", "127.0.0.1"]]})
    options = Options(resolver=resolver)
    url = f"http://rebind.example:{hostile.port}/ok"
    (before,) = ask(hostile, url, options=options)
    assert isinstance(before, Fetched)
    assert before.address == "127.0.0.1"
    (after,) = ask(hostile, url, options=options)
    assert outcome(after) == "blocked_address"
    (mixed,) = ask(hostile, f"http://mixed.example:{hostile.port}/ok", options=options)
    assert isinstance(mixed, Fetched)
    assert mixed.address == "127.0.0.1"


@pytest.mark.fault("S08", "S17")
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_judged_like_a_row(hostile: HostileServer, code: int) -> None:
    to = [hostile.canary(), "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "//127.0.0.2/"]
    results = ask(hostile, [hostile.url("/redirect", code=code, to=url) for url in to], policy=True)
    assert [outcome(result) for result in results] == ["blocked_address"] * 4
    assert len(hostile.hits) == 4


@pytest.mark.fault("S08")
def test_a_refresh_leads_nowhere(hostile: HostileServer) -> None:
    (result,) = ask(hostile, hostile.url("/refresh", to=hostile.canary()), policy=True)
    assert outcome(result) == "ok"
    assert len(hostile.hits) == 1


@pytest.mark.fault("S10")
@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "data:,x", "ftp://a/", "s3://a/b", "pipe:cat", "/etc/passwd", "\\\\a\\b", "//a/b", "gopher://a/"],
)
def test_only_http_is_fetched(hostile: HostileServer, url: str) -> None:
    (followed,) = ask(hostile, url, policy=True)
    assert outcome(followed) == "blocked_scheme"
    (direct,) = ask(hostile, url)  # the transport does not rely on whoever calls it
    assert outcome(direct) == "bad_row"
    (hop,) = (
        ask(hostile, hostile.url("/redirect", to=url), policy=True) if "//a/b" not in url and url[0] not in "/\\" else (followed,)
    )
    assert outcome(hop) == "blocked_scheme"


@pytest.mark.fault("S11")
@pytest.mark.parametrize("port", [22, 25, 6379, 8265, 11211])
def test_only_the_ports_of_the_web_are_dialled(hostile: HostileServer, port: int) -> None:
    options = Options(resolver=TableResolver({"a.example": [["8.8.8.8"]]}))
    results = ask(hostile, [f"http://8.8.8.8:{port}/", f"http://a.example:{port}/"], options=options)
    assert [outcome(result) for result in results] == ["blocked_port"] * 2


@pytest.mark.fault("S15")
@pytest.mark.parametrize(
    "host",
    ["metadata.google.internal", "METADATA.google.internal.", "metadata", "instance-data", "instance-data.ec2.internal",
     "metadata.azure.internal", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "169.254.169.254",
     "100.100.100.200", "[fd00:ec2::254]"],
)  # fmt: skip
def test_metadata_services_are_refused_by_name_and_by_address(hostile: HostileServer, host: str) -> None:
    resolver = TableResolver({})
    (result,) = ask(hostile, f"http://{host}/latest/meta-data/", options=Options(resolver=resolver))
    assert outcome(result) == "blocked_address"
    assert not resolver.asked


def test_a_proxy_is_judged_in_place_of_the_target(hostile: HostileServer) -> None:
    proxy = f"http://me:secret@127.0.0.1:{hostile.port}"
    (result,) = ask(hostile, "http://example.com/ok?x=1", options=Options(proxy=proxy))
    assert outcome(result) == "ok"
    assert hostile.hits[0].path == "http://example.com/ok?x=1"
    assert hostile.hits[0].headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert "secret" not in repr(Options(proxy=proxy))
    (refused,) = ask(hostile, "http://example.com/ok", options=Options(proxy=f"http://127.0.0.2:{hostile.port}"))
    assert outcome(refused) == "blocked_address"


def test_a_proxy_is_not_asked_for_what_we_would_not_dial(hostile: HostileServer) -> None:
    options = Options(proxy=f"http://127.0.0.1:{hostile.port}")
    urls = [
        "http://10.0.0.1/",
        "http://2130706434/",
        "http://metadata.google.internal/",
        "http://example.com:22/",
        hostile.canary(),
    ]
    results = ask(hostile, urls, options=options)
    assert [outcome(result) for result in results] == [*["blocked_address"] * 3, "blocked_port", "blocked_address"]
    assert not hostile.hits


def test_the_environment_names_no_proxy(hostile: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, hostile.canary())
    monkeypatch.setenv("no_proxy", "")
    (result,) = ask(hostile, hostile.url("/ok", host="a"), limits=QUICK)
    assert outcome(result) == "ok"
