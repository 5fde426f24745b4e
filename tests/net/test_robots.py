"""robots.txt: whose lines are ours, what they say of a path, and what it means when the file cannot be had."""

import asyncio
import itertools

import pytest

from mmdata.net import Failure, Fetched, Fetcher, Limits, Policy, ReplayTransport, Signals
from mmdata.net.robots import Robots, parse_robots, read_robots
from mmdata.net.target import Target
from mmdata.net.urls import parse_url

AGENT = "mmdata/0.1 (+mail@example.org)"
QUICK = Limits(host_interval_s=0, retries=1, backoff_s=0.01)
MEDIA = Fetched(200, {}, b"data")
NO_FILES = Signals(tdmrep_json=False)


def fetch(
    answers: dict[str, Fetched | Failure], url: str, signals: Signals = NO_FILES, limits: Limits = QUICK
) -> tuple[Fetched | Failure, list[str]]:
    async def run() -> Fetched | Failure:
        return await Fetcher(transport, Policy(limits, AGENT, signals=signals)).fetch(url)

    transport = ReplayTransport({url: MEDIA, **answers})
    return asyncio.run(run()), transport.requests


def outcome(result: Fetched | Failure) -> str:
    return result.outcome if isinstance(result, Failure) else "ok"


def robots(text: str, status: int = 200) -> Fetched:
    return Fetched(status, {}, text.encode())


def allows(text: str, path: str, token: str = "foobot") -> bool:
    return parse_robots(text.encode(), token).access.verdict(f"http://foo.bar{path}")[0]


@pytest.mark.fault("R01")
def test_a_disallowed_path_is_never_asked_for_and_the_line_is_named() -> None:
    result, asked = fetch({"http://a/robots.txt": robots("User-agent: *\nDisallow: /private\n")}, "http://a/private/x.jpg")
    assert isinstance(result, Failure)
    assert (result.outcome, result.rule) == ("robots", "robots: Disallow: /private")
    assert asked == ["http://a/robots.txt"]


@pytest.mark.fault("R01")
def test_what_allowed_a_url_is_recorded() -> None:
    text = "User-agent: *\nDisallow: /\nAllow: /public\n"
    assert fetch({"http://a/robots.txt": robots(text)}, "http://a/public/x")[0].rule == "robots: Allow: /public"
    assert fetch({"http://a/robots.txt": robots("")}, "http://a/x")[0].rule == "robots: no rule"
    assert fetch({}, "http://a/x")[0].rule == "robots: 404"


# Verdicts as published: by RFC 9309, by Google's specification of robots.txt and the cases beside its parser, and by the
# norobots drafts that crawler-commons checks. Where Google and RFC 9309 differ (escapes of unreserved characters) RFC 9309 holds.
PATHS = [
    ("Disallow: /fish", "/fish /fish.html /fish/salmon.html /fishheads /fishheads/yummy.html /fish.php?id=anything",
     "/Fish.asp /catfish /?id=fish /desert/fish"),
    ("Disallow: /fish*", "/fish /fish.html /fish/salmon.html /fishheads /fish.php?id=anything", "/Fish.asp /catfish /?id=fish"),
    ("Disallow: /fish/", "/fish/ /fish/?id=anything /fish/salmon.htm", "/fish /fish.html /animals/fish/ /Fish/Salmon.asp"),
    ("Disallow: /*.php", "/index.php /filename.php /folder/filename.php /folder/filename.php?parameters"
     " /folder/any.php.file.html /filename.php/", "/ /windows.PHP"),
    ("Disallow: /*.php$", "/filename.php /folder/filename.php",
     "/filename.php?parameters /filename.php/ /filename.php5 /windows.PHP"),
    ("Disallow: /fish*.php", "/fish.php /fishheads/catfish.php?parameters", "/Fish.PHP"),
    ("Disallow: /", "/ /x /x/y?z", ""),
    ("Disallow:", "", "/ /x"),
    ("", "", "/ /x"),
    ("Disallow: /\nAllow: /", "", "/ /x"),
    ("Allow: /p\nDisallow: /", "/ /x", "/page"),
    ("Allow: /folder\nDisallow: /folder", "", "/folder/page"),
    ("Allow: /page\nDisallow: /*.htm", "/page.htm /x.htm", "/page"),
    ("Allow: /page\nDisallow: /*.ph", "/x.php5", "/page.php5"),
    ("Allow: /$\nDisallow: /", "/page.htm", "/"),
    ("Disallow: /x/page.html\nAllow: /x/", "/x/page.html", "/x/ /x/y"),
    ("Allow: /x/page.html\nDisallow: /x/", "/x/ /x/y", "/x/page.html"),
    ("Disallow: /x\nAllow: /x/", "/x", "/x/ /x/y"),
    ("Disallow: /x/page.html\nAllow: /x/page.html", "", "/x/page.html"),
    ("Allow: /page\nDisallow: /*.html", "/page.html", "/page"),
    ("Allow: /x/page.\nDisallow: /*.html", "/x/y.html", "/x/page.html"),
    ("Disallow: /foo/bar/quz\nAllow: /foo/*/qux", "/foo/bar/quz", "/foo/quz /foo//quz /foo/bax/quz"),
    ("Disallow: /foo/bar$\nAllow: /foo/bar/qux", "/foo/bar", "/foo/bar/qux /foo/bar/ /foo/bar/baz"),
    ("# Disallow: /\nDisallow: /foo/quz#qux", "/foo/quz", "/foo/bar"),
    ("Allow: /allowed-slash/index.html\nDisallow: /", "/allowed-slash/index.htm /anyother-url",
     "/allowed-slash/ /allowed-slash/index.html"),
    ("Disallow: /tmp", "/tmp /tmp.html /tmp/a.html", "/"),
    ("Disallow: /tmp/", "/tmp/ /tmp/a.html", "/tmp"),
    ("Disallow: /a%3cd.html", "/a%3cd.html /a%3Cd.html", "/a"),
    ("Disallow: /a%3Cd.html", "/a%3cd.html /a%3Cd.html", "/a"),
    ("Disallow: /a%2fb.html", "/a%2fb.html /a%2Fb.html", "/a/b.html"),
    ("Disallow: /a/b.html", "/a/b.html", "/a%2fb.html"),
    ("Disallow: /%7ejoe/index.html", "/~joe/index.html /%7Ejoe/index.html", "/joe"),
    ("Disallow: /~joe/index.html", "/~joe/index.html /%7Ejoe/index.html", "/joe"),
    ("Disallow: /foo/bar?baz=quz", "/foo/bar?baz=quz /foo/bar?baz=quz1", "/foo/bar /foo/bar?x"),
    ("Disallow: /foo/bar/ツ", "/foo/bar/%E3%83%84 /foo/bar/ツ", "/foo/bar/"),
    ("Disallow: /foo/bar/%E3%83%84", "/foo/bar/%E3%83%84 /foo/bar/ツ", "/foo/bar/"),
    ("Disallow: /foo/bar/%62%61%7A", "/foo/bar/%62%61%7A /foo/bar/baz", "/foo/bar/"),
    ("Disallow: /X/", "/X/y", "/x/y"),
    ("Disallow: fish", "", "/fish /x"),
]  # fmt: skip


@pytest.mark.fault("R02")
@pytest.mark.parametrize(("rules", "refused", "allowed"), PATHS)
def test_paths_are_judged_as_published(rules: str, refused: str, allowed: str) -> None:
    text = f"User-agent: FooBot\n{rules}\n"
    assert [path for path in refused.split() if allows(text, path)] == []
    assert [path for path in allowed.split() if not allows(text, path)] == []


GROUPS = """allow: /foo/bar/

user-agent: FooBot
disallow: /
allow: /x/
user-agent: BarBot
disallow: /
allow: /y/


allow: /w/
user-agent: BazBot

user-agent: FooBot
allow: /z/
disallow: /
"""


@pytest.mark.fault("R10")
def test_groups_of_one_token_count_as_one_and_lines_before_any_group_count_for_nobody() -> None:
    paths = ("/x/b", "/z/d", "/y/c", "/w/a", "/foo/bar/")
    assert [allows(GROUPS, path) for path in paths] == [True, True, False, False, False]
    assert [allows(GROUPS, path, "barbot") for path in paths] == [False, False, True, True, False]
    assert [allows(GROUPS, path, "bazbot") for path in paths] == [False, True, False, False, False]


@pytest.mark.fault("R10")
@pytest.mark.parametrize(
    ("text", "token", "refused"),
    [
        ("User-agent: MMDATA\nDisallow: /\n", "mmdata", True),
        ("USER-AGENT: mmdata\nDISALLOW: /\n", "mmdata", True),
        ("User-agent: mmdata/2.0 (crawler)\nDisallow: /\n", "mmdata", True),
        ("User-agent: mmdata crawler\nDisallow: /\n", "mmdata", True),
        ("User-agent: mm\nDisallow: /\n", "mmdata", False),
        ("User-agent: mmdata-news\nDisallow: /\n", "mmdata", False),
        ("User-agent: data\nDisallow: /\n", "mmdata", False),
        ("User-agent: otherbot\nDisallow: /\n", "mmdata", False),
        ("User-agent: otherbot\nUser-agent: mmdata\nDisallow: /\n", "mmdata", True),
        ("User-agent: *\nDisallow: /\nUser-agent: mmdata\nDisallow: /y\n", "mmdata", False),
        ("User-agent: *\nDisallow: /\nUser-agent: mmdata\n", "mmdata", False),
        ("User-agent: mmdata\nSitemap: http://x/s.xml\nUser-agent: *\nDisallow: /\n", "mmdata", True),
        ("User-agent: mmdata\nUnknown-Line: x\nUser-agent: *\nDisallow: /\n", "mmdata", True),
        ("User-agent: mmdata\nCrawl-delay: 2\nUser-agent: *\nDisallow: /\n", "mmdata", True),
        ("user-agent mmdata\ndisallow /\n", "mmdata", True),
        ("  User-Agent :mmdata\n\tDisallow\t:\t/\n", "mmdata", True),
        ("User agent: mmdata\nDissallow: /\n", "mmdata", True),
        ("foo: mmdata\nbar: /\n", "mmdata", False),
    ],
)
def test_whose_group_is_ours(text: str, token: str, refused: bool) -> None:
    assert allows(text, "/x", token) is not refused


@pytest.mark.fault("R03")
@pytest.mark.parametrize(
    "answer",
    [Fetched(500, {}), Fetched(503, {}), Fetched(429, {}), Failure("timeout_headers", ""), Failure("timeout_total", ""),
     Failure("timeout_idle", ""), Failure("short_body", ""), Failure("too_large", ""), Failure("bad_response", "")],
)  # fmt: skip
def test_a_host_that_cannot_say_what_it_allows_is_left_alone(answer: Fetched | Failure) -> None:
    result, asked = fetch({"http://a/robots.txt": answer}, "http://a/x")
    assert outcome(result) == "robots"
    assert result.rule.startswith("robots: ")
    assert "http://a/x" not in asked


@pytest.mark.fault("R03")
@pytest.mark.parametrize("answer", ["conn_reset", "dns", "tls", "timeout_connect", "blocked_address"])
def test_a_host_that_is_not_reached_ends_as_that_and_its_media_are_not_asked_for(answer: str) -> None:
    result, asked = fetch({"http://a/robots.txt": Failure(answer, "")}, "http://a/x")
    assert outcome(result) == answer
    assert "http://a/x" not in asked


@pytest.mark.fault("R03")
def test_a_robots_txt_that_fails_once_is_asked_for_again() -> None:
    class Once(ReplayTransport):
        async def get(self, url: str, **_: object) -> Fetched | Failure:
            self.requests.append(url)
            return Fetched(503, {}) if len(self.requests) == 1 else MEDIA

    async def run() -> Fetched | Failure:
        return await Fetcher(transport, Policy(QUICK, AGENT, signals=NO_FILES)).fetch("http://a/x")

    transport = Once({})
    assert outcome(asyncio.run(run())) == "ok"
    assert transport.requests == ["http://a/robots.txt"] * 2 + ["http://a/x"]


@pytest.mark.fault("R04")
@pytest.mark.parametrize(("status", "strict", "expected"), [
    (404, False, "ok"), (403, False, "ok"), (401, False, "ok"), (410, False, "ok"), (204, False, "ok"),
    (404, True, "ok"), (403, True, "robots"), (401, True, "robots"),
])  # fmt: skip
def test_no_robots_txt_allows_all_but_401_and_403_may_be_taken_strictly(status: int, strict: bool, expected: str) -> None:
    signals = Signals(tdmrep_json=False, robots_strict=strict)
    result, _ = fetch({"http://a/robots.txt": Fetched(status, {})}, "http://a/x", signals)
    assert outcome(result) == expected
    assert result.rule == f"robots: {status}"


@pytest.mark.fault("R06")
@pytest.mark.parametrize(("redirects", "expected"), [(5, "ok"), (6, "robots")])
def test_five_redirects_of_robots_txt_are_followed_to_other_hosts_too(redirects: int, expected: str) -> None:
    hops: dict[str, Fetched | Failure] = {
        "http://a/robots.txt" if n == 0 else f"http://h{n}/r": Fetched(302, {"location": f"http://h{n + 1}/r"})
        for n in range(redirects)
    }
    result, asked = fetch({**hops, f"http://h{redirects}/r": robots("User-agent: *\nDisallow: /y\n")}, "http://a/x")
    assert outcome(result) == expected
    assert len(asked) == 6 + (expected == "ok")


@pytest.mark.fault("R06")
def test_a_redirect_of_robots_txt_to_a_forbidden_address_is_not_followed_into() -> None:
    answers: dict[str, Fetched | Failure] = {
        "http://a/robots.txt": Fetched(302, {"location": "http://169.254.169.254/"}),
        "http://169.254.169.254/": Failure("blocked_address", "169.254.169.254 is not a public address"),
    }
    assert outcome(fetch(answers, "http://a/x")[0]) == "blocked_address"


RULES = "User-agent: *\r\nDisallow: /private\r\n"


@pytest.mark.fault("R08")
@pytest.mark.parametrize(
    "body",
    [RULES.encode(), b"\xef\xbb\xbf" + RULES.encode(), RULES.encode("utf-16"), b"\xfe\xff" + RULES.encode("utf-16-be"),
     RULES.encode("utf-16-le"), RULES.replace("\r\n", "\r").encode(), RULES.replace("D", "\0D").encode(),
     b"\xff\xfe\xfd\r\n\r\n" + RULES.encode(), RULES.encode() + b"\xff" * 1000, RULES.encode() + b"x" * 600_000],
)  # fmt: skip
def test_odd_encodings_are_read(body: bytes) -> None:
    rules = parse_robots(body, "mmdata").access
    assert rules.verdict("http://a/public")[0]
    if not body.startswith(b"\xff\xfe\xfd"):  # a UTF-16 mark before what is not UTF-16: nothing can be read
        assert not rules.verdict("http://a/private")[0]


@pytest.mark.fault("R08")
@pytest.mark.parametrize(
    "body",
    [b"", b"\0" * 1000, bytes(range(256)) * 100, b"<!DOCTYPE html><html><body>404: disallow / all</body></html>",
     b"User-agent", b"User-agent:\nDisallow: /", b"Disallow: /", b"\n" * 100_000, b":" * 100_000, b"\xff\xfe",
     b"User-agent: *\nDisallow: " + b"*a" * 50_000, b"User-agent: *\n" + b"Allow: /%\n" * 1000],
)  # fmt: skip
def test_what_is_no_robots_txt_neither_breaks_nor_forbids(body: bytes) -> None:
    parsed = read_robots(Fetched(200, {}, body), "mmdata")
    assert isinstance(parsed, Robots)
    assert parsed.access.verdict("http://a/x")[0]


@pytest.mark.fault("R09")
@pytest.mark.parametrize(("text", "expected", "rule"), [
    ("2", "ok", "robots: no rule"), ("30", "ok", "robots: no rule"), ("-1", "ok", "robots: no rule"),
    ("nan", "ok", "robots: no rule"), ("inf", "ok", "robots: no rule"), ("soon", "ok", "robots: no rule"),
    ("30.5", "robots", "robots: Crawl-delay: 30.5"), ("1e9", "robots", "robots: Crawl-delay: 1e+09"),
])  # fmt: skip
def test_a_crawl_delay_above_the_limit_costs_the_host_and_nonsense_costs_nothing(text: str, expected: str, rule: str) -> None:
    limits = QUICK.model_copy(update={"retries": 0})
    answers: dict[str, Fetched | Failure] = {"http://a/robots.txt": robots(f"User-agent: *\nCrawl-delay: {text}\n")}

    async def run() -> tuple[Fetched | Failure, float]:
        fetcher = Fetcher(ReplayTransport({"http://a/x": MEDIA, **answers}), Policy(limits, AGENT, signals=NO_FILES))
        result = await fetcher.fetch("http://a/x")
        return result, fetcher.pace.lane("a").place.interval_s

    result, interval_s = asyncio.run(run())
    assert (outcome(result), result.rule) == (expected, rule)
    assert interval_s == (float(text) if text in ("2", "30") else 0)


@pytest.mark.fault("R09")
def test_a_crawl_delay_is_kept_between_requests() -> None:
    times: list[float] = []

    class Timed(ReplayTransport):
        async def get(self, url: str, **_: object) -> Fetched | Failure:
            times.append(asyncio.get_running_loop().time())
            return await super().get(url)

    async def run() -> None:
        text = "User-agent: *\nCrawl-delay: 0.2\n"
        fetcher = Fetcher(Timed({"http://a/robots.txt": robots(text)}), Policy(QUICK, AGENT, signals=NO_FILES))
        await asyncio.gather(*(fetcher.fetch(f"http://a/{n}") for n in range(4)))

    asyncio.run(run())
    assert min(b - a for a, b in itertools.pairwise(times[1:])) >= 0.19


def test_robots_txt_is_asked_for_once_an_origin() -> None:
    async def run() -> list[str]:
        transport = ReplayTransport({})
        fetcher = Fetcher(transport, Policy(QUICK, AGENT, signals=NO_FILES))
        urls = [f"{origin}/{n}" for origin in ("http://a", "https://a", "http://a:8080", "http://A.") for n in range(3)]
        await asyncio.gather(*(fetcher.fetch(url) for url in urls))
        return [url for url in transport.requests if url.endswith("robots.txt")]

    assert sorted(asyncio.run(run())) == ["http://a/robots.txt", "http://a:8080/robots.txt", "https://a/robots.txt"]


def test_robots_may_be_switched_off() -> None:
    async def run() -> tuple[Fetched | Failure, list[str]]:
        transport = ReplayTransport({"http://a/x": MEDIA})
        return await Fetcher(transport, Policy(QUICK, AGENT, robots=False, signals=NO_FILES)).fetch(
            "http://a/x"
        ), transport.requests

    result, asked = asyncio.run(run())
    assert result.rule == "robots: off"
    assert asked == ["http://a/x"]


def test_a_name_in_other_letters_is_paced_asked_and_dialled_by_one_name() -> None:
    target = parse_url("http://STRA\u00dfE.example:80/a b")
    assert isinstance(target, Target)
    assert (target.host, target.origin) == ("xn--strae-oqa.example", "http://xn--strae-oqa.example")
    assert target.request(b"").startswith(b"GET /a%20b HTTP/1.1\r\nHost: xn--strae-oqa.example\r\n")
