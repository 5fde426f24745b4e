"""A folder on a local disk that holds shards of remote corpora, up to a number of bytes.

A shard is fetched whole the first time a sample of it is asked for, compared with the manifest's SHA-256, and renamed into place:
a name in the folder is a whole shard. When room is needed those that were not used for longest go. Several processes may
share a folder; a lock lets one fetch at a time. Who has an evicted file open still reads it.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmdata.errors import ConfigError, RunError
from mmdata.shards import Corpus
from mmdata.storage import TEMP_PREFIX, digest_json

COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Cache:
    """A folder of at most `max_bytes`; a shard that is larger than that is read by ranges from where it is."""

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes <= 0:
            raise ConfigError(f"a cache of {self.max_bytes} bytes", hint="give the bytes that may be used, such as 100 << 30")
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, corpus: Corpus, shard: int) -> Path | None:
        """Return the local file of a shard, fetched if need be; null for one that is too large. Raises OSError and RunError."""
        facts = corpus.manifest.shards[shard]
        if facts.bytes > self.max_bytes:
            return None
        path = self.folder / f"{digest_json([corpus.digest, facts.name])[:32]}.tar"
        if not _touched(path):
            with self._lock():
                if not _touched(path):
                    self._fetch(corpus, shard, path)
        return path

    def _fetch(self, corpus: Corpus, shard: int, path: Path) -> None:
        facts = corpus.manifest.shards[shard]
        self._make_room(facts.bytes)
        temp = path.with_name(f"{TEMP_PREFIX}{path.name}")
        found = hashlib.sha256()
        try:
            with temp.open("wb") as target:
                for first in range(0, facts.bytes, COPY_BYTES):
                    chunk = corpus.store.read_range(facts.name, first, min(COPY_BYTES, facts.bytes - first))
                    found.update(chunk)
                    target.write(chunk)
            if facts.sha256 is not None and found.hexdigest() != facts.sha256:
                raise RunError("what was fetched is not the manifest's shard")
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        held = sorted(self._held(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in held)
        for path, _, size in held:
            if total + needed <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{self.folder}: {free:,} bytes are free, the next shard needs {needed:,}")

    def _held(self) -> Iterator[tuple[Path, float, int]]:
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                facts = path.stat()
                yield path, facts.st_mtime, facts.st_size

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _touched(path: Path) -> bool:
    """Say whether a shard is there, and note that it was used."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
