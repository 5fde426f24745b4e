"""What hosts answered for their small files (robots.txt and its like), shared by the workers of a machine for one run.

An answer is kept for at most a day by the monotonic clock, so a moved wall clock neither keeps nor drops it. The store is
SQLite's; it may be lost at any moment, for that costs a second request and nothing else: it never waits for the disk, and
one that cannot be read is an empty one.
"""

import sqlite3
import time
from pathlib import Path

from mmdata.net.answers import Failure, Fetched
from mmdata.net.hosts import boot

DAY_S = 24 * 3600.0
_BUSY_S = 1.0
_MAKE = """CREATE TABLE IF NOT EXISTS answers (
    asked TEXT PRIMARY KEY, until_s REAL, url TEXT, status INTEGER, body BLOB, outcome TEXT, detail TEXT) WITHOUT ROWID"""


class AnswerCache:
    """Answers by url; without a folder there are none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._store: sqlite3.Connection | None = None
        if folder is None:
            return
        path = folder.resolve() / boot() / "answers"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._store.execute("PRAGMA journal_mode=WAL")
            self._store.execute("PRAGMA synchronous=OFF")
            self._store.execute(_MAKE)
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def get(self, url: str) -> Fetched | Failure | None:
        """Return the answer of a url, if it is known and still holds."""
        if self._store is None:
            return None
        find = "SELECT url, status, body, outcome, detail FROM answers WHERE asked = ? AND until_s > ?"
        try:
            found = self._store.execute(find, (url, time.monotonic())).fetchone()
        except (sqlite3.Error, UnicodeError):
            return None
        if found is None:
            return None
        final, status, body, outcome, detail = found
        return Failure(outcome, detail, final) if outcome else Fetched(status, {}, body, final)

    def put(self, url: str, answer: Fetched | Failure, holds_s: float = DAY_S) -> None:
        """Keep an answer for so long; headers are not kept."""
        if self._store is None:
            return
        until_s = time.monotonic() + min(holds_s, DAY_S)
        row: tuple[object, ...]
        if isinstance(answer, Failure):
            row = (url, until_s, answer.url, None, None, answer.outcome, answer.detail)
        else:
            row = (url, until_s, answer.url, answer.status, answer.body, None, None)
        try:
            self._store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        except (sqlite3.Error, UnicodeError):
            return
