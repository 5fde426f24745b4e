"""What all workers of a machine share about hosts: when the next request may start, who is connected, who rests.

One table of fixed records in a file, mapped into every worker. Connections are counted by locks on bytes of a second file
(POSIX byte-range locks): the kernel frees them when a worker is killed, so nothing has to be cleaned up. Times are seconds
of CLOCK_MONOTONIC, which all processes of a machine read alike; what another boot left is never looked at. Without a
folder the same table lies in the process's own memory.

A full table forgets hosts that were not asked for an hour; where there are none, names share a record, which is stricter.
"""

import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.05  # how often a full host is looked at again, since other processes cannot wake us
MAX_CONNECTIONS = 511
_CAPACITY = 1 << 18
_PROBES = 8
_FORGET_S = 3600.0
# A record: its key; when the next request may start; until when the host asked to be left alone (Retry-After); until when
# the breaker is open; failures in a row.
_RECORD = struct.Struct("<QdddQ")
_NEXT_AT, _ASKED_AT, _OPEN_AT, _FAILURES_AT = 8, 16, 24, 32
_SECONDS, _COUNT = struct.Struct("<d"), struct.Struct("<Q")
_LOCKS = MAX_CONNECTIONS + 1  # bytes of the lock file that a record owns: one for itself, one for each connection


class Place:
    """A name or an address, as this process sees it; `interval_s` may be raised later (Crawl-delay)."""

    __slots__ = ("held", "index", "interval_s", "key", "limit", "name")

    def __init__(self, name: str, limit: int, interval_s: float) -> None:
        self.name, self.limit, self.interval_s = name, min(limit, MAX_CONNECTIONS), interval_s
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.key = int.from_bytes(digest, "little") | 1  # 0 marks a free record
        self.index = self.key % _CAPACITY
        self.held: list[int] = []


class HostTable:
    """The table; one a process, from `open_table`. A call never waits longer than another worker's few stores take."""

    def __init__(self, folder: Path | None = None) -> None:
        self._thread = threading.RLock()
        self._places: dict[str, Place] = {}
        self._file: int | None = None
        if folder is None:
            self._map = mmap.mmap(-1, _CAPACITY * _RECORD.size)
            return
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        table = os.open(folder / "table", flags, 0o600)
        try:
            os.ftruncate(table, _CAPACITY * _RECORD.size)  # sparse: what no host uses takes no space
            self._map = mmap.mmap(table, _CAPACITY * _RECORD.size)
        finally:
            os.close(table)
        self._file = os.open(folder / "locks", flags, 0o600)

    def close(self) -> None:
        """End all requests counted here, and let go of the files."""
        self._map.close()
        if self._file is not None:
            os.close(self._file)

    def place(self, name: str, limit: int, interval_s: float) -> Place:
        """Return the place of a name: at most `limit` requests at once, starts `interval_s` apart."""
        found = self._places.get(name)
        if found is None:
            found = self._places[name] = Place(name, limit, interval_s)
        return found

    def start(self, *places: Place, rest_s: float = 0.0) -> float:
        """Begin a request at all these places together: return 0.0, or the seconds after which to ask again.

        rest_s  once a breaker's rest is over one request tries the place; until that ends the rest goes on for so long
        """
        wait_s = self.wait_s(*places)
        if wait_s > 0:
            return wait_s
        locked = self._lock(places)
        try:
            wait_s = self.wait_s(*places)
            if wait_s > 0 or not self._take_all(places):
                return wait_s if wait_s > 0 else POLL_S
            now = time.monotonic()
            for place in places:
                self._store(place, _NEXT_AT, now + place.interval_s)
                if self._load(place, _OPEN_AT):
                    self._store(place, _OPEN_AT, now + rest_s)
            return 0.0
        finally:
            self._unlock(locked)

    def finish(self, *places: Place) -> None:
        """End a request that was begun at these places."""
        with self._thread:
            for place in places:
                self._give_back(place)

    def rests_s(self, place: Place) -> float:
        """Return for how many seconds a place is to be left alone; 0 or less when it need not be."""
        until = max(self._load(place, _ASKED_AT), self._load(place, _OPEN_AT))
        return until - time.monotonic() if until else 0.0

    def note(self, place: Place, failed: bool, breaker: int, rest_s: float) -> None:
        """Count a failure, or forget those before; after `breaker` in a row the place rests for `rest_s`."""
        if not failed and not self._failures(place):
            return
        locked = self._lock((place,))
        try:
            failures = self._failures(place) + 1 if failed else 0
            _COUNT.pack_into(self._map, self._at(place) + _FAILURES_AT, failures)
            if failures >= breaker:
                self._store(place, _OPEN_AT, time.monotonic() + rest_s)
            elif not failed:
                self._store(place, _OPEN_AT, 0.0)
        finally:
            self._unlock(locked)

    def pause(self, place: Place, seconds: float) -> None:
        """Start nothing at a place for so long: its requests wait."""
        self._push(place, _NEXT_AT, seconds)

    def rest(self, place: Place, seconds: float) -> None:
        """Leave a place alone for so long: its requests end without being sent."""
        self._push(place, _ASKED_AT, seconds)

    def _push(self, place: Place, field: int, seconds: float) -> None:
        locked = self._lock((place,))
        try:
            self._store(place, field, max(self._load(place, field), time.monotonic() + seconds))
        finally:
            self._unlock(locked)

    def wait_s(self, *places: Place) -> float:
        """Return the seconds until the interval of all these places has passed; 0 or less when it has."""
        return max(self._load(place, _NEXT_AT) for place in places) - time.monotonic()

    def _load(self, place: Place, field: int) -> float:
        seconds: float = _SECONDS.unpack_from(self._map, self._at(place) + field)[0]
        return seconds

    def _store(self, place: Place, field: int, seconds: float) -> None:
        _SECONDS.pack_into(self._map, self._at(place) + field, seconds)

    def _failures(self, place: Place) -> int:
        count: int = _COUNT.unpack_from(self._map, self._at(place) + _FAILURES_AT)[0]
        return count

    def _at(self, place: Place) -> int:
        """Return where a place's record lies; it may have been forgotten since it was last looked at."""
        at = place.index * _RECORD.size
        if _COUNT.unpack_from(self._map, at)[0] != place.key:
            place.index = self._find(place.key)
            at = place.index * _RECORD.size
        return at

    def _find(self, key: int) -> int:
        spots = [(key + step) % _CAPACITY for step in range(_PROBES)]
        self._lock_byte(_CAPACITY * _LOCKS)
        try:
            records = [_RECORD.unpack_from(self._map, spot * _RECORD.size) for spot in spots]
            known = next((spot for spot, record in zip(spots, records, strict=True) if record[0] == key), None)
            if known is not None:
                return known
            idle = time.monotonic() - _FORGET_S
            for spot, (holder, *times, _) in zip(spots, records, strict=True):
                if holder == 0 or max(times) < idle:
                    _RECORD.pack_into(self._map, spot * _RECORD.size, key, 0.0, 0.0, 0.0, 0)
                    return spot
        finally:
            self._unlock_byte(_CAPACITY * _LOCKS)
        return spots[0]

    def _take_all(self, places: tuple[Place, ...]) -> bool:
        for number, place in enumerate(places):
            if not self._take(place):
                for taken in places[:number]:
                    self._give_back(taken)
                return False
        return True

    def _take(self, place: Place) -> bool:
        if len(place.held) >= place.limit:
            return False
        first = self._at(place) // _RECORD.size * _LOCKS + 1
        for offset in range(first, first + place.limit):
            if offset not in place.held and self._try_byte(offset):
                place.held.append(offset)
                return True
        return False

    def _give_back(self, place: Place) -> None:
        self._unlock_byte(place.held.pop())

    def _lock(self, places: tuple[Place, ...]) -> list[int]:
        """Keep all others from these records: threads of ours by a lock, processes by bytes, always in one order."""
        self._thread.acquire()
        offsets = sorted({self._at(place) // _RECORD.size * _LOCKS for place in places}) if self._file is not None else []
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
        try:
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError:
            return False
        return True

    def _unlock_byte(self, offset: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, offset)


_OPEN: dict[Path, list[HostTable]] = {}


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
    users = _OPEN.setdefault(path, [])
    users.append(users[0] if users else HostTable(path))
    try:
        yield users[0]
    finally:
        table = users.pop()
        if not users:
            del _OPEN[path]
            table.close()


def boot() -> str:
    """Return a name of this boot of the machine: times of CLOCK_MONOTONIC mean nothing in another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        # Where the kernel gives none, the hour it started: a moved wall clock then costs what was cached, no more.
        return f"boot-{(time.time() - time.monotonic()) // 3600:.0f}"
