"""Opt-outs from training: which headers and files say no. The most restrictive wins, and each is named.

`Content-Usage` (IETF AI preferences), `Content-Signal` and ai.txt are drafts or one party's proposal; they are obeyed all
the same. What a header says is judged before the body is read, so an opt-out costs one request and stores nothing.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from mmdata.config import Model
from mmdata.net.answers import Failure, Fetched
from mmdata.net.robots import PathRules, signal_refusal, usage_refusal

MAX_TDMREP_BYTES = 1 << 20
_MAX_TDMREP_RULES = 1000
_ROBOTS_WORDS = ("noai", "noimageai", "noindex", "noimageindex", "none", "noml")
# What stands before a colon: an agent, or a directive with a value (`unavailable_after`), which then says nothing to us.
_AGENT = re.compile(r"\s*([a-z][a-z0-9_.-]*)\s*:(.*)", re.DOTALL)
_JUDGED = frozenset({"x-robots-tag", "tdm-reservation", "content-usage", "content-signal"})

_LOG = logging.getLogger(__name__)

Refuse = Callable[[Mapping[str, str]], str | None]


class Signals(Model):
    """Which opt-outs are obeyed. Each can be switched off, explicitly; the manifest then says so.

    The first six are words of `X-Robots-Tag`. `ai_txt` asks every host for one more file. `robots_strict` takes 401 and
    403 for robots.txt as `nothing may be fetched`.
    """

    noai: bool = True
    noimageai: bool = True
    noindex: bool = True
    noimageindex: bool = True
    none: bool = True
    noml: bool = True
    tdm_reservation: bool = True
    tdmrep_json: bool = True
    content_usage: bool = True
    content_signal: bool = True
    ai_txt: bool = False
    robots_strict: bool = False

    def switched_off(self) -> tuple[str, ...]:
        """Return the names of the signals that a user chose to ignore."""
        fields = type(self).model_fields
        return tuple(name for name, field in fields.items() if field.default and not getattr(self, name))


DEFAULT_SIGNALS = Signals()


class Judge:
    """Says of the headers of a response whether its owner opts out."""

    def __init__(self, signals: Signals = DEFAULT_SIGNALS, token: str = "mmdata") -> None:
        self.signals, self.token = signals, token.lower()
        self._words = frozenset(word for word in _ROBOTS_WORDS if getattr(signals, word))

    def with_file(self, rule: str) -> Refuse:
        """Return this judge for media that a file (`rule`, "" for none) reserves unless their header says otherwise."""
        return partial(self.refusal, reserved_by=rule) if rule else self.refusal

    def refusal(self, headers: Mapping[str, str], reserved_by: str = "") -> str | None:
        """Return the signal that opts out, or null.

        headers      names in lower case; several of one name joined by a comma or a line feed
        reserved_by  the tdmrep.json rule for this url, "" if none; a TDM-Reservation header beats it
        """
        if _JUDGED.isdisjoint(headers):
            return reserved_by or None
        return (
            self._robots_tag(headers.get("x-robots-tag", ""))
            or self._reservation(headers.get("tdm-reservation", ""), reserved_by)
            or (self.signals.content_usage and _stated("Content-Usage", headers, usage_refusal))
            or (self.signals.content_signal and _stated("Content-Signal", headers, signal_refusal))
            or None
        )

    def _robots_tag(self, value: str) -> str | None:
        # Several header lines come joined, so an `agent:` in front binds its own directive alone: the stricter reading.
        for part in re.split("[,;\n]", value.lower()):
            agent = _AGENT.match(part)
            name, words = (agent[1], agent[2]) if agent else ("", part)
            if name in ("", self.token) and (hit := self._words.intersection(words.split())):
                return f"X-Robots-Tag: {min(hit)}"
        return None

    def _reservation(self, value: str, reserved_by: str) -> str | None:
        stated = {part.strip() for part in re.split("[,\n]", value)}
        if "1" in stated and self.signals.tdm_reservation:
            return "TDM-Reservation: 1"
        return None if "0" in stated else reserved_by or None


def opt_out(headers: Mapping[str, str]) -> str | None:
    """Return the header that opts this media out of training by the default signals, or null."""
    return _DEFAULT.refusal(headers)


class Reservations:
    """A site's tdmrep.json: the first rule whose location matches a path says whether it is reserved."""

    def __init__(self, rules: list[tuple[str, PathRules, bool]]) -> None:
        self.rules = rules

    def rule(self, url: str) -> str:
        """Return the rule that reserves a url, "" where none does."""
        for location, paths, reserved in self.rules:
            if not paths.verdict(url)[0]:
                return f"tdmrep.json: {location}" if reserved else ""
        return ""


def read_tdmrep(answer: Fetched | Failure) -> Reservations:
    """Return what an answer for /.well-known/tdmrep.json says; one that is invalid or huge counts as absent."""
    if isinstance(answer, Failure) or answer.status != 200:
        return Reservations([])
    entries: object = None
    if len(answer.body) <= MAX_TDMREP_BYTES:
        with suppress(ValueError, RecursionError):
            entries = json.loads(answer.body.decode("utf-8-sig"))
    if not isinstance(entries, list):
        _LOG.info("%s: not a list of rules, or above %d bytes; it counts as absent", answer.url, MAX_TDMREP_BYTES)
        return Reservations([])
    rules = (_reservation(entry) for entry in entries[:_MAX_TDMREP_RULES])
    return Reservations([rule for rule in rules if rule])


def _reservation(entry: object) -> tuple[str, PathRules, bool] | None:
    if not isinstance(entry, dict):
        return None
    location, value = entry.get("location"), entry.get("tdm-reservation")
    if not isinstance(location, str) or not location.isprintable() or value not in (0, 1, "0", "1"):
        return None
    return location, PathRules([("Disallow", location)]), value in (1, "1")


def _stated(name: str, headers: Mapping[str, str], refusal: Callable[[str], str | None]) -> str | None:
    said = refusal(headers.get(name.lower(), "").replace("\n", ","))
    return f"{name}: {said}" if said else None


_DEFAULT = Judge()
