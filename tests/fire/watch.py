"""What processes hold, by /proc: memory, descriptors, threads, children, sockets, shared memory; now, or while a run runs.

Never `ru_maxrss`: it survives exec, so a child reports what its parent once had.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mmdata.storage import started

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_SHM = "/dev/shm"


@dataclass(frozen=True)
class Counts:
    """What a process and those below it hold together; `shm` are objects in shared memory that no process of all has open."""

    descriptors: int
    threads: int
    children: int
    sockets: int
    shm: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Sample:
    """A look at a run: the share of its rows that are done, the KiB resident in each of its processes, what they hold."""

    share: float
    sizes: dict[int, int]
    counts: Counts

    @property
    def rss_kib(self) -> int:
        """All processes together; pages that they share are counted once for each."""
        return sum(self.sizes.values())


def family(pid: int) -> list[int]:
    """Return a process and all below it, zombies included."""
    found = [pid]
    for member in found:
        for thread in _names(f"/proc/{member}/task"):
            found += map(int, _text(f"/proc/{member}/task/{thread}/children").split())
    return found


def held(pid: int) -> Counts:
    """Count what a process and those below it hold."""
    members = family(pid)
    links = [link for member in members for link in _links(member)]
    threads = sum(len(_names(f"/proc/{member}/task")) for member in members)
    sockets = sum(link.startswith("socket:") for link in links)
    return Counts(len(links), threads, len(members) - 1, sockets)


def left(pid: int) -> Counts:
    """Count what a process holds, and the shared memory that is nobody's. It looks at every process of the machine."""
    everyone = [int(name) for name in _names("/proc") if name.isdecimal()]
    used = {link for member in everyone for link in _links(member) if link.startswith(_SHM)}
    maps = "\n".join(line for member in everyone for line in _text(f"/proc/{member}/maps").splitlines() if _SHM in line)
    nobodys = [name for name in _names(_SHM) if f"{_SHM}/{name}" not in used and f"{_SHM}/{name}" not in maps]
    return replace(held(pid), shm=len(nobodys))


def settled(pid: int, like: Counts | None = None, within_s: float = 10.0) -> Counts:
    """Count what is left once it is as before, or else once time is up: connections and killed processes take a moment."""
    end = time.monotonic() + within_s
    while (now := left(pid)) != like and time.monotonic() < end:
        time.sleep(0.1)
        if like is None and left(pid) == now:
            break
    return now


def rss_kib(pid: int) -> int:
    """Return the resident memory of one process, 0 when it has ended."""
    sizes = _text(f"/proc/{pid}/statm").split()
    return int(sizes[1]) * _PAGE_KIB if sizes else 0


def peak_kib(pid: int) -> int:
    """Return the most resident memory that one process ever had, 0 when it has ended."""
    lines = [line for line in _text(f"/proc/{pid}/status").splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) if lines else 0


class Watcher:
    """Looks at a run from outside, again and again, until the context ends."""

    def __init__(self, pid: int, share: Callable[[], float], every_s: float = 0.1) -> None:
        self.pid, self.share, self.every_s = pid, share, every_s
        self.samples: list[Sample] = []
        self.peaks_kib: dict[int, int] = {}
        self._starts: dict[int, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def peak_kib(self) -> int:
        """Return the most that all processes held at once, as far as was seen."""
        return max(sample.rss_kib for sample in self.samples)

    def steady(self, start: float = 0.1, stop: float = 1.0) -> list[Sample]:
        """Return what was seen between two shares of the run, of the processes that lived all that time."""
        seen = [sample for sample in self.samples if start <= sample.share < stop]
        lasting = set.intersection(*(set(sample.sizes) for sample in self.samples if 0.1 <= sample.share < 1))
        return [Sample(s.share, {pid: s.sizes[pid] for pid in lasting}, s.counts) for s in seen]

    def growth_kib(self) -> float:
        """Return by how much memory grew from a tenth of the run to its end: least squares over the floor of each tenth.

        The floor is what a tenth of the looks are below: what a batch of images takes for a moment is no growth.
        """
        looks = [self.steady(tenth / 10, tenth / 10 + 0.1) for tenth in range(1, 10)]
        points = [(place, np.percentile([look.rss_kib for look in some], 10)) for place, some in enumerate(looks) if some]
        places, floors = np.array(points).T
        return float(np.polyfit(places, floors, 1)[0] * 9)

    def most(self, start: float, stop: float) -> Counts:
        """Return the most of each that was held between two shares of the run."""
        seen = np.array([astuple(sample.counts) for sample in self.samples if start <= sample.share < stop])
        return Counts(*seen.max(axis=0).tolist())

    def alive(self) -> list[int]:
        """Return the processes of the run that are still there."""
        return [pid for pid, start in self._starts.items() if start and started(pid) == start]

    def _look(self) -> None:
        while not self._done.wait(self.every_s):
            members = family(self.pid)
            self._starts |= {member: started(member) for member in members if member not in self._starts}
            sizes = {member: size for member in members if (size := rss_kib(member))}
            self.peaks_kib |= {member: peak for member in members if (peak := peak_kib(member))}
            if self.pid in sizes:
                self.samples.append(Sample(self.share(), sizes, held(self.pid)))


def records_done(run_dir: Path, total: int) -> Callable[[], float]:
    """Return a look at how much of a run's row-wise work is done: the share of its records, which are made to the last."""
    return lambda: sum(name.endswith(".json") for name in _names(str(run_dir / "tasks"))) / total


def _links(pid: int) -> list[str]:
    links = []
    for name in _names(f"/proc/{pid}/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115 - not a path: `socket:[1]`
    return links


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names, of folders that go meanwhile
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
