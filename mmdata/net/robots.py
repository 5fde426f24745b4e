"""robots.txt by RFC 9309: which group is ours, what it says of a path, and which line said so.

Decided here: the lines are read as leniently as the large crawlers read them (missing colon, known misspellings, unknown
lines change nothing); all groups of our product token count as one, and `*` only where there is none of ours. Paths are
matched by protego. A host that cannot say what it allows (5xx, timeout) allows nothing; one without the file allows all.
"""

import codecs
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from protego import Protego
from protego._utils import _quote_path

from mmdata.net.answers import Failure, Fetched
from mmdata.net.urls import REDIRECTS

MAX_ROBOTS_BYTES = 512_000
# Trouble on the way to a host: its rows end as that, for `robots` would hide what is wrong.
UNREACHED = (
    "dns",
    "tls",
    "timeout_connect",
    "conn_reset",
    "blocked_address",
    "blocked_port",
    "blocked_scheme",
    "bad_row",
    "throttled",
)

_FIELDS = {
    "user-agent": "agent", "useragent": "agent", "user agent": "agent", "allow": "Allow", "disallow": "Disallow",
    "dissallow": "Disallow", "dissalow": "Disallow", "disalow": "Disallow", "diasllow": "Disallow", "disallaw": "Disallow",
    "crawl-delay": "delay", "crawl delay": "delay", "content-usage": "Content-Usage", "content-signal": "Content-Signal",
}  # fmt: skip
_COLONLESS = re.compile(rf"\s*({'|'.join(sorted(_FIELDS, key=len, reverse=True))})\s+(.*)", re.IGNORECASE)
_TOKEN = re.compile(r"\*|[a-z0-9_-]+", re.IGNORECASE)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class PathRules:
    """Allow and Disallow patterns, with `*` and `$`; the longest that matches rules, Allow among equals."""

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        lines = [f"{kind}: {pattern}" for kind, pattern in rules if pattern]
        self._parsed = Protego.parse("\n".join(["User-agent: *", *lines])) if lines else None
        self._allows = any(line.startswith("Allow") for line in lines)

    def __bool__(self) -> bool:
        return self._parsed is not None

    def verdict(self, url: str) -> tuple[bool, str]:
        """Return whether a url is allowed, and the line that says so ("" when none matches)."""
        if self._parsed is None:
            return True, ""
        allowed = bool(self._parsed.can_fetch(url, "*"))
        if allowed and not self._allows:
            return True, ""
        # Protego says whether, not why; the first of its sorted rules that matches is the one that ruled.
        path, kind, rules = _quote_path(url), "allow" if allowed else "disallow", self._parsed._get_matching_rule_set("*")._rules
        rule = next((rule for rule in rules if rule.field == kind and rule.value.match(path)), None)
        return allowed, f"{kind.title()}: {rule.value._pattern}" if rule else ""


@dataclass(frozen=True)
class Robots:
    """What one robots.txt says to us.

    rule     the name of the answer, e.g. `robots: 404`
    refused  nothing may be fetched, whatever the path
    delay_s  Crawl-delay in seconds, 0 when not given
    usage    `Content-Usage` as Disallow (training refused) and Allow; `signal` the same of `Content-Signal`
    """

    rule: str
    refused: bool = False
    delay_s: float = 0.0
    access: PathRules = field(default_factory=lambda: PathRules(()))
    usage: PathRules = field(default_factory=lambda: PathRules(()))
    signal: PathRules = field(default_factory=lambda: PathRules(()))


def read_robots(answer: Fetched | Failure, token: str, *, strict: bool = False) -> Robots | Failure:
    """Return what an answer for robots.txt means; a Failure where the host could not be reached at all.

    token   our product token, e.g. `mmdata`
    strict  401 and 403 mean that nothing may be fetched; RFC 9309 lets them mean that everything may
    """
    if isinstance(answer, Failure):
        if answer.outcome in UNREACHED:
            return answer
        return Robots(f"robots: {answer.outcome}", refused=True)
    status = answer.status
    if status == 200:
        return parse_robots(answer.body, token)
    refused = status >= 500 or status in (*REDIRECTS, 429) or (strict and status in (401, 403))
    return Robots(f"robots: {status}", refused)


def parse_robots(body: bytes, token: str) -> Robots:
    """Read a robots.txt, whatever its bytes are; only the first 500 KiB count."""
    lines = list(_group_of(_directives(_decoded(body)), token.lower()))
    delays = [delay for kind, value in lines if kind == "delay" and (delay := _seconds(value)) is not None]
    return Robots(
        "robots",
        delay_s=max(delays, default=0.0),
        access=PathRules((kind, value) for kind, value in lines if kind in ("Allow", "Disallow")),
        usage=PathRules(_preferences(lines, "Content-Usage", usage_refusal)),
        signal=PathRules(_preferences(lines, "Content-Signal", signal_refusal)),
    )


def usage_refusal(text: str) -> str | None:
    """Return the part of a `Content-Usage` value that refuses training (`train-ai=n`), "" if one allows it, else null."""
    return _refusal(text, ("train-ai", "train-genai", "bots"), ("n", "?0"))


def signal_refusal(text: str) -> str | None:
    """Return the part of a `Content-Signal` value that refuses training (`ai-train=no`), "" if one allows it, else null."""
    return _refusal(text, ("ai-train",), ("no", "n"))


def _refusal(text: str, categories: tuple[str, ...], no: tuple[str, ...]) -> str | None:
    """Look through `key=value, ...`; parameters after `;` say nothing, quotes are forgiven, the most restrictive wins."""
    said = None
    for item in text.lower().split(","):
        key, _, value = (part.strip() for part in item.partition(";")[0].partition("="))
        value = value.strip("\"' ")
        if key in categories:
            if value in no:
                return f"{key}={value}"
            said = ""
    return said


def _preferences(lines: list[tuple[str, str]], kind: str, refusal: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    """Turn preferences, each for a path or for all, into rules of paths, so that the longest path rules here too."""
    stated: dict[str, bool] = {}
    for found, value in lines:
        if found != kind:
            continue
        path, text = value.split(None, 1) if value.startswith("/") and " " in value else ("/", value)
        said = refusal(text)
        if said is not None:
            stated[path] = stated.get(path, False) or bool(said)
    for path, refused in stated.items():
        yield ("Disallow" if refused else "Allow"), path


def _decoded(body: bytes) -> str:
    body = body[:MAX_ROBOTS_BYTES]
    mark, encoding = next(((mark, name) for mark, name in _BOMS if body.startswith(mark)), (b"", "utf-8"))
    return body[len(mark) :].decode(encoding, errors="replace").replace("\0", "")


def _directives(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        head, colon, value = line.partition("#")[0].partition(":")
        kind = _FIELDS.get(head.strip().lower()) if colon else None
        if kind is not None:
            yield kind, value.strip()
        elif match := _COLONLESS.match(head):
            yield _FIELDS[match[1].lower()], (match[2] + colon + value).strip()


def _group_of(directives: Iterable[tuple[str, str]], token: str) -> list[tuple[str, str]]:
    """Return the lines of all groups of our token, or of `*` where none names us."""
    groups: dict[str, list[tuple[str, str]]] = {}
    agents: set[str] = set()
    open_ = False
    for kind, value in directives:
        if kind == "agent":
            agents = agents if open_ else set()
            open_ = True
            name = _TOKEN.match(value)
            agents.add(name[0].lower() if name else "")
            groups.update({agent: groups.get(agent, []) for agent in agents})
            continue
        # A delay is no rule of the RFC, so it does not end the list of agents that it stands among.
        open_ = open_ and kind == "delay"
        for agent in agents & {token, "*"}:
            groups[agent].append((kind, value))
    return groups.get(token, groups.get("*", []))


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
