"""What all workers of a machine share about hosts: when the next request may start, who is connected, who rests.

One table of fixed records in a file, mapped into every worker. Connections are counted by locks on bytes of a second file
(POSIX byte-range locks): the kernel frees them when a worker is killed, so nothing has to be cleaned up. Times are seconds
of CLOCK_MONOTONIC, which all processes of a machine read alike; what another boot left is never looked at. Without a
folder the same table lies in the process's own memory.

A full table forgets hosts that were not asked for ten minutes; where there are none, names share a record, which is stricter.
"""

import fcntl
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.05  # how often a full host is looked at again, since other processes cannot wake us
MAX_CONNECTIONS = 511
_CAPACITY = 1 << 19
_PROBES = 8
_FORGET_S = 600.0
# A record is five words: its key; when the next request may start; until when the host asked to be left alone
# (Retry-After); until when the breaker is open; failures in a row. The three in the middle are seconds.
_WORDS = 5
_NEXT, _ASKED, _OPEN, _FAILURES = 1, 2, 3, 4
_SIZE = _CAPACITY * _WORDS * 8
_LOCKS = MAX_CONNECTIONS + 1  # bytes of the lock file that a record owns: one for itself, one for each connection
# Behind those of the records lies the byte for finding places, then one for each claim; two names seldom share one.
_FINDING = _CAPACITY * _LOCKS
_CLAIMS, _NUM_CLAIMS = _FINDING + 1, 1 << 30


class Place:
    """A name or an address, as this process sees it; `interval_s` may be raised later (Crawl-delay)."""

    __slots__ = ("held", "index", "interval_s", "key", "limit", "name")

    def __init__(self, name: str, limit: int, interval_s: float) -> None:
        self.name, self.limit, self.interval_s = name, min(limit, MAX_CONNECTIONS), interval_s
        self.key = _number(name) | 1  # 0 marks a free record
        self.index = self.key % _CAPACITY
        self.held: list[int] = []


class HostTable:
    """The table; one a process, from `open_table`. A call never waits longer than another worker's few stores take."""

    def __init__(self, folder: Path | None = None) -> None:
        self._thread = threading.RLock()
        self._places: dict[str, Place] = {}
        self._claims: set[int] = set()
        self._file: int | None = None
        if folder is None:
            self._map = mmap.mmap(-1, _SIZE)
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            table = os.open(folder / "table", flags, 0o600)
            try:
                os.ftruncate(table, _SIZE)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(table, 0, _SIZE)  # a full disk is an error here, not a SIGBUS at some later store
                self._map = mmap.mmap(table, _SIZE)
            finally:
                os.close(table)
            self._file = os.open(folder / "locks", flags, 0o600)
        self._counts, self._seconds = memoryview(self._map).cast("Q"), memoryview(self._map).cast("d")

    def close(self) -> None:
        """End all requests counted here, and let go of the files."""
        self._counts.release()
        self._seconds.release()
        self._map.close()
        if self._file is not None:
            os.close(self._file)

    def place(self, name: str, limit: int, interval_s: float) -> Place:
        """Return the place of a name: at most `limit` requests at once, starts `interval_s` apart."""
        found = self._places.get(name)
        if found is None:
            found = self._places[name] = Place(name, limit, interval_s)
        return found

    def claim(self, name: str) -> int | None:
        """Take a work that one worker does for all; null while another has it. `give_up` ends what this returns."""
        claim = _CLAIMS + _number(name) % _NUM_CLAIMS
        with self._thread:
            if claim in self._claims or not self._try_byte(claim):
                return None
            self._claims.add(claim)
        return claim

    def give_up(self, claim: int) -> None:
        """End a claim."""
        with self._thread:
            self._claims.discard(claim)
            self._unlock_byte(claim)

    def wait_s(self, place: Place) -> float:
        """Return the seconds until a place's interval has passed; 0 or less when it has."""
        return self._seconds[self._at(place) + _NEXT] - time.monotonic()

    def rests_s(self, place: Place) -> float:
        """Return for how many seconds a place is to be left alone; 0 or less when it need not be."""
        at = self._at(place)
        until = max(self._seconds[at + _ASKED], self._seconds[at + _OPEN])
        return until - time.monotonic() if until else 0.0

    def start(self, *places: Place, rest_s: float = 0.0) -> float:
        """Begin a request at all these places together: return 0.0, or the seconds after which to ask again.

        rest_s  once a breaker's rest is over one request tries the place; until that ends the rest goes on for so long
        """
        offsets = self._lock(places)
        try:
            found, now = [self._at(place) for place in places], time.monotonic()
            wait_s = max([self._seconds[at + _NEXT] for at in found]) - now
            if wait_s > 0 or not self._take_all(places):
                return wait_s if wait_s > 0 else POLL_S
            for at, place in zip(found, places, strict=True):
                self._seconds[at + _NEXT] = now + place.interval_s
                if self._seconds[at + _OPEN]:
                    self._seconds[at + _OPEN] = now + rest_s
            return 0.0
        finally:
            self._unlock(offsets)

    def finish(self, *places: Place) -> None:
        """End a request that was begun at these places."""
        with self._thread:
            for place in places:
                self._unlock_byte(place.held.pop())

    def note(self, place: Place, failed: bool, breaker: int, rest_s: float) -> None:
        """Count a failure, or forget those before; after `breaker` in a row the place rests for `rest_s`."""
        if not failed and not self._counts[self._at(place) + _FAILURES]:
            return
        offsets = self._lock((place,))
        try:
            at = self._at(place)
            failures = self._counts[at + _FAILURES] + 1 if failed else 0
            self._counts[at + _FAILURES] = failures
            if failures >= breaker:
                self._seconds[at + _OPEN] = time.monotonic() + rest_s
            elif not failed:
                self._seconds[at + _OPEN] = 0.0
        finally:
            self._unlock(offsets)

    def pause(self, place: Place, seconds: float) -> None:
        """Start nothing at a place for so long: its requests wait."""
        self._push(place, _NEXT, seconds)

    def rest(self, place: Place, seconds: float) -> None:
        """Leave a place alone for so long: its requests end without being sent."""
        self._push(place, _ASKED, seconds)

    def _push(self, place: Place, word: int, seconds: float) -> None:
        offsets = self._lock((place,))
        try:
            at = self._at(place) + word
            self._seconds[at] = max(self._seconds[at], time.monotonic() + seconds)
        finally:
            self._unlock(offsets)

    def _at(self, place: Place) -> int:
        """Return the first word of a place's record, which may have been forgotten since it was last looked at."""
        if self._counts[place.index * _WORDS] != place.key:
            place.index = self._find(place.key)
        return place.index * _WORDS

    def _find(self, key: int) -> int:
        spots = [(key + step) % _CAPACITY for step in range(_PROBES)]
        with self._thread:
            self._lock_byte(_FINDING)
            try:
                for spot in spots:
                    if self._counts[spot * _WORDS] == key:
                        return spot
                for spot in spots:
                    if self._is_free(spot * _WORDS):
                        self._counts[spot * _WORDS] = key
                        self._counts[spot * _WORDS + _FAILURES] = 0
                        self._seconds[spot * _WORDS + _OPEN] = 0.0
                        return spot
            finally:
                self._unlock_byte(_CAPACITY * _LOCKS)
        return spots[0]

    def _is_free(self, at: int) -> bool:
        latest = max(self._seconds[at + _NEXT], self._seconds[at + _ASKED], self._seconds[at + _OPEN])
        return self._counts[at] == 0 or latest < time.monotonic() - _FORGET_S

    def _take_all(self, places: tuple[Place, ...]) -> bool:
        for number, place in enumerate(places):
            if not self._take(place):
                for taken in places[:number]:
                    self._unlock_byte(taken.held.pop())
                return False
        return True

    def _take(self, place: Place) -> bool:
        held = place.held
        if len(held) >= place.limit:
            return False
        first = place.index * _LOCKS + 1
        for offset in range(first, first + place.limit):
            if offset not in held and self._try_byte(offset):
                held.append(offset)
                return True
        return False

    def _lock(self, places: tuple[Place, ...]) -> list[int]:
        """Keep all others from these records: threads of ours by a lock, processes by bytes, always in one order."""
        self._thread.acquire()
        if self._file is None:
            return []
        offsets = sorted({self._at(place) // _WORDS * _LOCKS for place in places})
        for offset in offsets:
            self._lock_byte(offset)
        return offsets

    def _unlock(self, offsets: list[int]) -> None:
        for offset in offsets:
            self._unlock_byte(offset)
        self._thread.release()

    def _lock_byte(self, offset: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, offset)

    def _try_byte(self, offset: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError:
            return False
        return True

    def _unlock_byte(self, offset: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, offset)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


_TABLES: dict[Path, list[HostTable]] = {}


@contextmanager
def open_table(folder: Path | None) -> Iterator[HostTable]:
    """Open the table that the workers of one run on one machine share; in memory where no folder is given.

    folder  on a local disk, the same for all workers of the run. A process opens it once: closing a second descriptor
            of the lock file would drop the locks of the first
    """
    if folder is None:
        table = HostTable()
        try:
            yield table
        finally:
            table.close()
        return
    path = folder.resolve() / boot()
    users = _TABLES.setdefault(path, [])
    users.append(users[0] if users else HostTable(path))
    try:
        yield users[0]
    finally:
        table = users.pop()
        if not users:
            del _TABLES[path]
            table.close()


def boot() -> str:
    """Return a name of this boot of the machine: times of CLOCK_MONOTONIC mean nothing in another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        # Where the kernel gives none, the hour it started: a moved wall clock then costs what was cached, no more.
        return f"boot-{(time.time() - time.monotonic()) // 3600:.0f}"
