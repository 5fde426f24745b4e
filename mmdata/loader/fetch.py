"""Reading: the bytes of many samples at once, verified, with retries.

Decided here: the quick way is one `pread` a sample on an open file, and its xxh3. Whatever goes wrong on it goes the slow way,
sample by sample: tried again, and in the end an error that names the shard and the sample. A remote store is asked for ranges;
when the order keeps neighbours together (`shuffle: blocks`, `none`), for whole blocks of them, held until the next ones come.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from mmdata.clock import Clock
from mmdata.errors import RunError
from mmdata.loader.cache import Cache
from mmdata.shards import Corpus
from mmdata.shards.members import TAR_BLOCK
from mmdata.storage import LocalStore

WAITS_S = (0.1, 0.4, 1.6)  # between the tries of one sample
MOST_OPEN = 64  # files that a thread holds open
MOST_BLOCKS = 32  # blocks of neighbours held in memory, for all threads


@dataclass
class Fetcher:
    """Reads samples of several corpora; threads may share it.

    cache     where shards of remote corpora are kept, or null
    block     how many neighbours are asked for at once from a remote store; 1 where the order does not keep them together
    verify    compare what was read with its xxh3
    """

    corpora: Sequence[Corpus]
    cache: Cache | None = None
    block: int = 1
    verify: bool = True
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._local = threading.local()
        self._blocks = _Blocks()
        self._all: list[_Files] = []
        self._plain = [isinstance(corpus.store, LocalStore) for corpus in self.corpora]

    def read(self, corpus_D: np.ndarray, index_D: np.ndarray) -> list[bytes | RunError]:
        """Return the tar bytes of samples, in order; a damaged one is an error in its place.

        corpus_D, index_D  (D,) int64: which corpus, and which index in it
        """
        if len(self.corpora) == 1:
            return self._of(0, index_D)
        found: list[bytes | RunError] = [b""] * len(index_D)
        for number in np.unique(corpus_D):
            mine = np.flatnonzero(corpus_D == number)
            for place, data in zip(mine.tolist(), self._of(int(number), index_D[mine]), strict=True):
                found[place] = data
        return found

    def close(self) -> None:
        """Close all files."""
        for files in self._all:
            files.close()

    def _of(self, number: int, index_D: np.ndarray) -> list[bytes | RunError]:
        corpus, files = self.corpora[number], self._files()
        records = corpus.samples[index_D]
        shards, sums = records["shard"].tolist(), records["xxh3"].tolist()
        starts, sizes = (records[name].astype(np.int64) * TAR_BLOCK for name in ("start", "length"))
        found: list[bytes | RunError] = []
        checked = self.verify and corpus.sealed
        waits = () if self._plain[number] else WAITS_S
        for index, shard, start, size, xxh3 in zip(index_D.tolist(), shards, starts.tolist(), sizes.tolist(), sums, strict=True):
            try:
                fd = files.get((number, shard))
                fd = self._open(files, number, shard) if fd is None else fd
                data = self._remote(number, index, start, size) if fd is None else os.pread(fd, size, start)
            except (OSError, RunError):
                data = b""
            good = len(data) == size and (not checked or xxh3_64_intdigest(data) == xxh3)
            found.append(data if good else self._again(number, index, waits))
            if isinstance(found[-1], RunError):
                waits = ()  # what did not get well for this one is not waited for again by the others
        return found

    def _open(self, files: "_Files", number: int, shard: int) -> int | None:
        """Return the file of a shard, or null where it can only be asked for ranges; its end is checked the first time."""
        corpus = self.corpora[number]
        path: Path | None = None
        if self._plain[number]:
            path = corpus.store.path(corpus.shards[shard])  # type: ignore[attr-defined]
        elif self.cache is not None:
            path = self.cache.path(corpus, shard)
        corpus.admit(shard)
        return files.open((number, shard), path) if path is not None else None

    def _remote(self, number: int, index: int, start: int, size: int) -> bytes:
        if self.block == 1:
            return self.corpora[number].raw(index)
        shard = int(self.corpora[number].samples[index]["shard"])
        first, data = self._blocks.get((number, shard, index // self.block), lambda: self._block(number, shard, index))
        return data[start - first : start - first + size]

    def _block(self, number: int, shard: int, index: int) -> tuple[int, bytes]:
        """Return the neighbours of a sample that lie in its shard, and where they start there."""
        corpus = self.corpora[number]
        low = max(index // self.block * self.block, int(corpus.first_samples[shard]))
        high = min((index // self.block + 1) * self.block, int(corpus.first_samples[shard + 1])) - 1
        first = int(corpus.samples[low]["start"]) * TAR_BLOCK
        last = (int(corpus.samples[high]["start"]) + int(corpus.samples[high]["length"])) * TAR_BLOCK
        return first, corpus.store.read_range(corpus.shards[shard], first, last - first)

    def _again(self, number: int, index: int, waits: Sequence[float]) -> bytes | RunError:
        """Read one sample anew, from where it came from first; what does not get well is an error."""
        for wait_s in (*waits, None):
            try:
                return self.corpora[number].raw(index)
            except RunError as error:
                if wait_s is None:
                    return error
                self.clock.sleep(wait_s)
        raise AssertionError("the last try returns")

    def _files(self) -> "_Files":
        found: _Files | None = getattr(self._local, "files", None)
        if found is None:
            found = self._local.files = _Files()
            self._all.append(found)
        return found


class _Files(OrderedDict[tuple[int, int], int]):
    """The open files of one thread, those opened last."""

    def open(self, key: tuple[int, int], path: Path) -> int:
        fd = os.open(path, os.O_RDONLY)
        self[key] = fd
        if len(self) > MOST_OPEN:
            os.close(self.popitem(last=False)[1])
        return fd

    def close(self) -> None:
        while self:
            os.close(self.popitem()[1])


class _Blocks:
    """Blocks of neighbours in memory; one that is asked for by several threads is fetched once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[object, Future[tuple[int, bytes]]] = OrderedDict()

    def get(self, key: object, fetch: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        with self._lock:
            future = self._held.get(key)
            mine = future is None
            if future is None:
                future = self._held[key] = Future()
                if len(self._held) > MOST_BLOCKS:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
        if mine:
            try:
                future.set_result(fetch())
            except BaseException as error:  # noqa: BLE001 - it is raised in every thread that waits
                with self._lock:
                    self._held.pop(key, None)
                future.set_exception(error)
        return future.result()
