"""Where a loader stands: a few numbers, the same on every rank, whatever reads ahead and however many read.

A state holds where its window starts, the row in it, a digest of the window's next 1,024 sample ids, and what the order depends
on. All of it is checked when it comes back: a state that was cut, edited, or saved under another seed, corpus or mixture is
refused by name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdata.errors import ConfigError
from mmdata.loader.plan import Cursor, Start
from mmdata.storage import digest_json

VERSION = 2
PEEK = 1024
_HINT = "go on from an earlier state, or start anew"
_FIELDS = {"version", "config", "past", "window", "first_row", "cursors", "row", "upcoming", "check"}


@dataclass(frozen=True)
class LoaderState:
    """Where a loader stands.

    config    what the order depends on, by name        past      digest of the mixture's weights that were used so far
    start     where the window starts                   row       the next row in it
    upcoming  digest of the window's next 1,024 sample ids
    """

    config: dict[str, Any]
    past: str
    start: Start
    row: int
    upcoming: str

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain values, sealed by their digest."""
        facts = {
            "version": VERSION, "config": self.config, "past": self.past, "window": self.start.window,
            "first_row": self.start.first_row, "cursors": [list(cursor) for cursor in self.start.cursors], "row": self.row,
            "upcoming": self.upcoming,
        }  # fmt: skip
        return {**facts, "check": digest_json(facts)}

    @classmethod
    def from_json(cls, value: object) -> "LoaderState":
        """Read plain values, or their JSON as text or bytes; ConfigError where they are not what `to_json` returned."""
        facts = _parsed(value)
        if facts.get("version") != VERSION:
            raise ConfigError(
                f"a loader's state of version {facts.get('version')!r:.20}, not {VERSION}",
                hint="restore it with the mmdata that saved it",
            )
        body = {key: item for key, item in facts.items() if key != "check"}
        if set(facts) != _FIELDS or facts["check"] != digest_json(body):
            raise ConfigError("a loader's state does not match its own digest: it was cut short, edited or damaged", hint=_HINT)
        cursors = tuple(Cursor(*cursor) for cursor in facts["cursors"])
        start = Start(facts["window"], facts["first_row"], cursors)
        return cls(facts["config"], facts["past"], start, facts["row"], facts["upcoming"])

    def to_bytes(self) -> bytes:
        """Return the state as JSON."""
        return json.dumps(self.to_json(), separators=(",", ":")).encode()

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise ConfigError, naming each field, when the order depends on something else now."""
        names = sorted({*self.config, *config})
        changed = [name for name in names if self.config.get(name) != config.get(name)]
        if changed:
            told = "; ".join(
                f"`{name}` was {_short(self.config.get(name))}, now it is {_short(config.get(name))}" for name in changed
            )
            raise ConfigError(
                f"the loader's state was saved with other settings: {told}",
                hint="give what it was saved with, or start anew; rank, world, threads and cache may change",
            )


def _parsed(value: object) -> dict[str, Any]:
    if isinstance(value, LoaderState):
        value = value.to_json()
    if isinstance(value, str | bytes | bytearray):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"a loader's state is not valid JSON: {error}; it was cut short or damaged", hint=_HINT) from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"a loader's state is a {type(value).__name__}, not an object", hint=_HINT)
    return dict(value)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
