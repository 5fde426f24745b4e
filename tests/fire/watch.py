"""What processes hold, by /proc: memory, descriptors, threads, children, sockets, shared memory; now, or while a run runs.

Never `ru_maxrss`: it survives exec, so a child reports what its parent once had.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Counts:
    """What a process and those below it hold together, memory apart."""

    descriptors: int
    threads: int
    children: int
    sockets: int
    shm: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Sample:
    """A look at a run: how much of it was done, and what its processes held."""

    share: float
    rss_kib: int
    driver_kib: int
    counts: Counts


def family(pid: int) -> list[int]:
    """Return a process and all below it, zombies included."""
    found = [pid]
    for member in found:
        for thread in _names(Path(f"/proc/{member}/task")):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{member}/task/{thread}/children").read_text(encoding="ascii").split())
    return found


def held(pid: int) -> Counts:
    """Count what a process and those below it hold."""
    members = family(pid)
    links = [link for member in members for link in _links(member)]
    threads = sum(len(_names(Path(f"/proc/{member}/task"))) for member in members)
    sockets = sum(link.startswith("socket:") for link in links)
    return Counts(len(links), threads, len(members) - 1, sockets, len(_names(_SHM)))


def rss_kib(pid: int) -> int:
    """Return the resident memory of one process, 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_KIB
    except (OSError, IndexError):
        return 0


def peak_kib(pid: int) -> int:
    """Return the most resident memory that one process ever had, 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


class Watcher:
    """Looks at a run from outside, again and again, until the context ends."""

    def __init__(self, pid: int, share: Callable[[], float], every_s: float = 0.1) -> None:
        self.pid, self.share, self.every_s = pid, share, every_s
        self.samples: list[Sample] = []
        self.peaks_kib: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    @property
    def peak_kib(self) -> int:
        """The most that all processes held at once, as far as was seen."""
        return max(sample.rss_kib for sample in self.samples)

    def slope(self, rows: int, start: float = 0.1) -> float:
        """Return by how many KiB memory grew per 1,000 rows, by least squares, from a share of the run on."""
        late = [sample for sample in self.samples if start <= sample.share <= 1]
        shares, sizes = np.array([[sample.share, sample.rss_kib] for sample in late]).T
        return float(np.polyfit(shares * rows / 1000, sizes, 1)[0])

    def _look(self) -> None:
        while not self._done.wait(self.every_s):
            members = family(self.pid)
            sizes = [rss_kib(member) for member in members]
            self.peaks_kib |= {member: peak for member in members if (peak := peak_kib(member))}
            if sizes[0]:
                self.samples.append(Sample(self.share(), sum(sizes), sizes[0], held(self.pid)))


def tasks_done(run_dir: Path) -> Callable[[], float]:
    """Return a look at a run's `status.json`: the share of its tasks that are done."""

    def share() -> float:
        with suppress(OSError, ValueError, KeyError):
            return float(json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["share"])
        return 0.0

    return share


def settled(look: Callable[[], Counts], like: Counts, within_s: float = 5.0) -> Counts:
    """Look until what is held is no more than before, or time is up: a killed process takes a moment to go."""
    end = time.monotonic() + within_s
    while (now := look()) != like and time.monotonic() < end:
        time.sleep(0.05)
    return now


def _links(pid: int) -> list[str]:
    links = []
    for name in _names(Path(f"/proc/{pid}/fd")):
        with suppress(OSError):
            links.append(str(Path(f"/proc/{pid}/fd/{name}").readlink()))
    return links


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names, of folders that change meanwhile
    except OSError:
        return []
