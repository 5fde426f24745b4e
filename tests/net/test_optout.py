"""Opt-outs from training: every spelling is understood, each names itself, and it costs one request and no bytes."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from mmdata.net import Failure, Fetched, Fetcher, Limits, Policy, ReplayTransport, Signals
from mmdata.net.optout import Judge, Refuse, opt_out, read_tdmrep

AGENT = "mmdata/0.1"
QUICK = Limits(host_interval_s=0, retries=2, backoff_s=0.01)
TDMREP = "http://a/.well-known/tdmrep.json"


class BodyTransport(ReplayTransport):
    """Reads bodies as a real transport does, and counts their bytes."""

    num_bytes = 0

    async def get(
        self, url: str, *, media: bool = True, refuse: Refuse | None = None, headers: Mapping[str, str] | None = None
    ) -> Fetched | Failure:
        answer = await super().get(url)
        if isinstance(answer, Failure) or (media and (refuse or opt_out)(answer.headers)):
            return answer if isinstance(answer, Failure) else Fetched(answer.status, answer.headers)
        self.num_bytes += len(answer.body) if media else 0
        return answer


def fetch(
    media_headers: dict[str, str],
    files: dict[str, Fetched | Failure] | None = None,
    signals: Signals | None = None,
    url: str = "http://a/x",
) -> tuple[Fetched | Failure, BodyTransport]:
    async def run() -> Fetched | Failure:
        return await Fetcher(transport, Policy(QUICK, AGENT, signals=signals or Signals())).fetch(url)

    transport = BodyTransport({url: Fetched(200, media_headers, b"data"), **(files or {})})
    return asyncio.run(run()), transport


def outcome(result: Fetched | Failure) -> str:
    return result.outcome if isinstance(result, Failure) else "ok"


def text(body: str) -> Fetched:
    return Fetched(200, {}, body.encode())


@pytest.mark.fault("R11")
@pytest.mark.parametrize("word", ["noai", "NoAI", "noimageai", "noindex", "noimageindex", "none", "noml"])
def test_every_word_opts_out_names_itself_and_can_be_switched_off(word: str) -> None:
    result, _ = fetch({"x-robots-tag": word})
    assert outcome(result) == "opted_out"
    assert result.rule == f"X-Robots-Tag: {word.lower()}"
    off = Signals.model_validate({word.lower(): False})
    result, transport = fetch({"x-robots-tag": word}, signals=off)
    assert (outcome(result), transport.num_bytes) == ("ok", 4)
    assert off.switched_off() == (word.lower(),)


DATES = ("25 Jun 2030 15:00:00 PST", "Fri, 25 Jun 2030 15:00:00 GMT", "Friday, 25-Jun-30 15:00:00 UTC", "2030-06-25T15:00:00Z")


@pytest.mark.fault("R12")
@pytest.mark.parametrize("date", DATES)
@pytest.mark.parametrize(
    "form", ["noai, unavailable_after: {}", "unavailable_after: {}, noai", "mmdata: unavailable_after: {}\nnoai"]
)
def test_a_date_hides_nothing(form: str, date: str) -> None:
    assert opt_out({"x-robots-tag": form.format(date)}) == "X-Robots-Tag: noai"
    assert opt_out({"x-robots-tag": f"unavailable_after: {date}"}) is None


@pytest.mark.fault("R12")
@pytest.mark.parametrize(
    ("value", "said"),
    [("all, noai", "noai"), ("all\nnoml", "noml"), ("noai noimageai", "noai"), ("nofollow;noindex", "noindex"),
     ("max-snippet: 50, noimageai", "noimageai"), (" none ", "none"), ("all", None), ("", None), ("index, follow", None),
     ("noaiplease", None), ("mmdata: noai", "noai"), ("MMData:noindex", "noindex"), ("otherbot: noindex", None),
     ("otherbot: nofollow, mmdata: noindex", "noindex"), ("otherbot: noindex, noai", "noai"), ("otherbot: noindex\nnone", "none"),
     ("googlebot: nofollow, otherbot: noindex, nofollow", None), ("\tnoai", "noai"), (",,,:::,noai", "noai")],
)  # fmt: skip
def test_lines_agents_and_folds(value: str, said: str | None) -> None:
    assert opt_out({"x-robots-tag": value}) == (said and f"X-Robots-Tag: {said}")


@pytest.mark.fault("R14")
@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", "opted_out"), (" 1 ", "opted_out"), ("0", "ok"), ("2", "ok"), ("yes", "ok"), ("0, 1", "opted_out")],
)
def test_tdm_reservation(value: str, expected: str) -> None:
    result, _ = fetch({"tdm-reservation": value})
    assert outcome(result) == expected
    off, _ = fetch({"tdm-reservation": value}, signals=Signals(tdm_reservation=False))
    assert outcome(off) == "ok"


@pytest.mark.fault("R14")
@pytest.mark.parametrize(("value", "expected"), [("0", "ok"), ("1", "opted_out"), ("2", "opted_out"), (None, "opted_out")])
def test_the_header_beats_the_file_and_one_that_says_nothing_does_not(value: str | None, expected: str) -> None:
    rules = json.dumps([{"location": "/", "tdm-reservation": 1}])
    result, transport = fetch({} if value is None else {"tdm-reservation": value}, {TDMREP: text(rules)})
    assert outcome(result) == expected
    assert transport.requests == ["http://a/robots.txt", TDMREP, "http://a/x"]
    assert transport.num_bytes == (4 if expected == "ok" else 0)


@pytest.mark.fault("R15")
@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [([("/", 1)], "/x", "tdmrep.json: /"), ([("/images/*", 1)], "/images/a.jpg", "tdmrep.json: /images/*"),
     ([("/images/*", 1)], "/x", ""), ([("/images/free/", 0), ("/images/", 1)], "/images/free/a", ""),
     ([("/images/", 1), ("/images/free/", 0)], "/images/free/a", "tdmrep.json: /images/"),
     ([("*.jpg$", 1)], "/a/b.jpg", "tdmrep.json: *.jpg$"), ([("*.jpg$", 1)], "/a/b.jpg?x", ""),
     ([("/a", "1")], "/a", "tdmrep.json: /a"), ([("/a", 2), ("/", 1)], "/a", "tdmrep.json: /"), ([(7, 1)], "/a", "")],
)  # fmt: skip
def test_the_first_rule_of_tdmrep_json_that_matches_counts(rules: list[tuple[object, object]], path: str, expected: str) -> None:
    body = json.dumps([{"location": location, "tdm-reservation": value} for location, value in rules])
    assert read_tdmrep(text(body)).rule(f"http://a{path}") == expected


@pytest.mark.fault("R15")
@pytest.mark.parametrize(
    "answer",
    [text("{"), text("{}"), text("null"), text("[1, null, []]"), text('[{"location": "/\\n", "tdm-reservation": 1}]'),
     text("[" * 100_000), Fetched(200, {}, b"\xff\xfe"), Fetched(404, {}), Fetched(500, {}), Failure("too_large", ""),
     Failure("timeout_total", ""), text(json.dumps([{"location": "/", "tdm-reservation": 1}]) + " " * (2 << 20))],
)  # fmt: skip
def test_an_invalid_huge_or_missing_tdmrep_json_counts_as_absent(answer: Fetched | Failure) -> None:
    result, transport = fetch({}, {TDMREP: answer})
    assert outcome(result) == "ok"
    assert transport.requests.count(TDMREP) == 1


@pytest.mark.fault("R15")
def test_tdmrep_json_can_be_switched_off_and_is_then_not_asked_for() -> None:
    rules = json.dumps([{"location": "/", "tdm-reservation": 1}])
    result, transport = fetch({}, {TDMREP: text(rules)}, Signals(tdmrep_json=False))
    assert outcome(result) == "ok"
    assert TDMREP not in transport.requests


@pytest.mark.fault("R16")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("content-usage", "train-ai=n", "train-ai=n"), ("content-usage", "search=y, Train-AI = n", "train-ai=n"),
     ("content-usage", "train-genai=n;exp=1", "train-genai=n"), ("content-usage", "bots=n", "bots=n"),
     ("content-usage", 'train-ai="n"', "train-ai=n"), ("content-usage", "train-ai=y\ntrain-ai=n", "train-ai=n"),
     ("content-usage", "train-ai=y", None), ("content-usage", "search=n", None), ("content-usage", "=n,,;", None),
     ("content-signal", "search=yes, ai-train=no", "ai-train=no"), ("content-signal", "ai-input=no", None)],
)  # fmt: skip
def test_preferences_in_headers(name: str, value: str, said: str | None) -> None:
    headers = {name: value}
    assert opt_out(headers) == (said and f"{name.title()}: {said}")
    assert Judge(Signals(content_usage=False, content_signal=False)).refusal(headers) is None


@pytest.mark.fault("R16")
@pytest.mark.parametrize(
    ("lines", "path", "rule"),
    [("Content-Usage: train-ai=n", "/x", "robots.txt Content-Usage: Disallow: /"),
     ("Content-Usage: train-ai=n\nContent-Usage: /ok/ train-ai=y", "/ok/x", ""),
     ("Content-Usage: /art/ train-ai=n", "/art/x", "robots.txt Content-Usage: Disallow: /art/"),
     ("Content-Usage: /art/ train-ai=n", "/x", ""),
     ("content-signal: search=yes,ai-train=no", "/x", "robots.txt Content-Signal: Disallow: /"),
     ("Content-Signal: search=yes, ai-train=yes", "/x", ""),
     ("Content-Signal: ai-train=yes\nContent-Signal: ai-train=no", "/x", "robots.txt Content-Signal: Disallow: /")],
)  # fmt: skip
def test_preferences_in_robots_txt(lines: str, path: str, rule: str) -> None:
    files: dict[str, Fetched | Failure] = {"http://a/robots.txt": text(f"User-agent: *\n{lines}\nAllow: /\n")}
    result, transport = fetch({}, files, url=f"http://a{path}")
    assert outcome(result) == ("opted_out" if rule else "ok")
    assert (not rule) or (result.rule == rule and f"http://a{path}" not in transport.requests)
    off, _ = fetch({}, files, Signals(content_usage=False, content_signal=False), f"http://a{path}")
    assert outcome(off) == "ok"


@pytest.mark.fault("R18")
@pytest.mark.parametrize(
    "headers",
    [{"x-robots-tag": "noai"}, {"tdm-reservation": "1"}, {"content-usage": "train-ai=n"}, {"content-signal": "ai-train=no"}],
)
def test_an_opt_out_costs_one_request_and_no_byte_of_the_body(headers: dict[str, str]) -> None:
    result, transport = fetch(headers)
    assert outcome(result) == "opted_out"
    assert isinstance(result, Failure)
    assert result.detail == result.rule
    assert transport.requests.count("http://a/x") == 1
    assert transport.num_bytes == 0


@pytest.mark.fault("R18")
def test_a_missing_page_that_is_not_to_be_indexed_is_missing_not_opted_out() -> None:
    async def run() -> Fetched | Failure:
        transport = ReplayTransport({"http://a/x": Fetched(404, {"x-robots-tag": "noindex"})})
        return await Fetcher(transport, Policy(QUICK, AGENT)).fetch("http://a/x")

    assert outcome(asyncio.run(run())) == "http_4xx"


@pytest.mark.fault("R20")
def test_ai_txt_is_obeyed_when_asked_for_and_not_fetched_otherwise() -> None:
    files: dict[str, Fetched | Failure] = {
        "http://a/ai.txt": text("# Spawning AI\nUser-Agent: *\nDisallow: *.jpg\nAllow: *.txt\n")
    }
    result, transport = fetch({}, files, Signals(ai_txt=True), "http://a/pic.jpg")
    assert (outcome(result), result.rule) == ("opted_out", "ai.txt: Disallow: *.jpg")
    assert "http://a/pic.jpg" not in transport.requests
    assert outcome(fetch({}, files, Signals(ai_txt=True), "http://a/pic.txt")[0]) == "ok"
    result, transport = fetch({}, files, url="http://a/pic.jpg")
    assert outcome(result) == "ok"
    assert "http://a/ai.txt" not in transport.requests
