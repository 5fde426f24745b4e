"""What hosts answered for their small files (robots.txt and its like), shared by the workers of a machine for one run.

An answer is kept for at most a day by the monotonic clock, so a moved wall clock neither keeps nor drops it. One file an
answer, written beside and moved into place; a file that cannot be read is an answer that is not there.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from mmdata.net.answers import Failure, Fetched
from mmdata.net.hosts import boot

DAY_S = 24 * 3600.0


class AnswerCache:
    """Answers by url; without a folder there are none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder.resolve() / boot() / "answers" if folder else None

    def get(self, url: str) -> Fetched | Failure | None:
        """Return the answer of a url, if it is known and still holds."""
        until, answer = self._read(url)
        return answer if time.monotonic() < until else None

    def put(self, url: str, answer: Fetched | Failure, holds_s: float = DAY_S) -> None:
        """Keep an answer for so long; headers are not kept."""
        if self._folder is not None:
            self._write(url, time.monotonic() + min(holds_s, DAY_S), answer)

    def _path(self, url: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return self._folder / name[:2] / name

    def _read(self, url: str) -> tuple[float, Fetched | Failure | None]:
        if self._folder is None:
            return 0.0, None
        try:
            head, _, body = self._path(url).read_bytes().partition(b"\n")
            known = json.loads(head)
            if known["for"] != url:
                return 0.0, None
            until_s = float(known["until_s"])
            if "outcome" in known:
                return until_s, Failure(known["outcome"], known["detail"], known["url"])
            return until_s, Fetched(known["status"], {}, body, known["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0, None

    def _write(self, url: str, until_s: float, answer: Fetched | Failure) -> None:
        known: dict[str, object] = {"for": url, "url": answer.url, "until_s": until_s}
        if isinstance(answer, Failure):
            known |= {"outcome": answer.outcome, "detail": answer.detail}
        else:
            known |= {"status": answer.status}
        body = b"" if isinstance(answer, Failure) else answer.body
        path = self._path(url)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):  # a full disk costs a second request, not the row
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(json.dumps(known).encode("ascii") + b"\n" + body)
            beside.replace(path)
