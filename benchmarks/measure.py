"""Run one command and say what it cost: wall time and the CPU time of its whole process tree.

    python -m benchmarks.measure REPORT TIMEOUT_S COMMAND...

Decided here: this process adopts the orphans of the tree and waits for all of them, so that no child's time is lost; what
is still there at the time-out, or a few seconds after the command's own end, is killed, and its time counts too. Memory is
the sum of the peaks (VmHWM) of the processes alive at one moment; a tree that needs more than `MOST_MIB` is stopped.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 5.0
_LOOK_S = 0.1
MOST_MIB = 6144


@dataclass(frozen=True)
class Cost:
    """What a command cost; `ended` is false when it had to be stopped, for its time or its memory."""

    wall_s: float
    cpu_s: float
    code: int
    ended: bool
    started: float
    peak_mib: float


def measure(command: list[str], timeout_s: float, env: dict[str, str] | None = None) -> tuple[Cost, str]:
    """Run a command; return its cost and its standard output."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "cost.json"
        wrapped = [sys.executable, "-m", "benchmarks.measure", str(report), str(timeout_s), *command]
        done = subprocess.run(wrapped, capture_output=True, text=True, check=False, timeout=timeout_s + 60, env=env)
        if not report.exists():
            raise RuntimeError(f"{command[:4]} could not be measured: {done.stderr[-1000:]}")
        cost = Cost(**json.loads(report.read_text(encoding="utf-8")))
    if cost.ended and cost.code:
        raise subprocess.CalledProcessError(cost.code, command, done.stdout, done.stderr[-2000:])
    return cost, done.stdout


def main() -> None:
    report, timeout_s, command = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started, clock = time.time(), time.monotonic()
    child = subprocess.Popen(command)
    peak, ended = _watch(child, clock + timeout_s)
    wall = time.monotonic() - clock
    _reap(_GRACE_S if ended else 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = Cost(wall, used.ru_utime + used.ru_stime, child.returncode if ended else 1, ended, started, peak)
    report.write_text(json.dumps(asdict(cost)), encoding="utf-8")


def _watch(child: subprocess.Popen[bytes], deadline: float) -> tuple[float, bool]:
    """Wait for the command; return the tree's peak in MiB, and whether it ended by itself."""
    peak = 0.0
    while time.monotonic() < deadline and peak < MOST_MIB:
        try:
            child.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            peak = max(peak, sum(_peak_mib(pid) for pid in _descendants(os.getpid())))
        else:
            return peak, True
    return peak, False


def _peak_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended meanwhile
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _reap(grace_s: float) -> None:
    """Wait for every descendant; after the grace kill what is left, generation by generation."""
    deadline = time.monotonic() + grace_s
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() >= deadline:
                for left in _children(os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left, signal.SIGKILL)
            time.sleep(0.02)


def _children(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text(encoding="ascii").split()]
    return found


if __name__ == "__main__":
    main()
