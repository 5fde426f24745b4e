"""Run one command and say what it cost: wall time and the CPU time of its whole process tree.

    python -m benchmarks.measure REPORT TIMEOUT_S COMMAND...

Decided here: this process adopts the orphans of the tree and waits for all of them, so that no child's time is lost; what
is still there at the time-out, or a few seconds after the command's own end, is killed, and its time counts too.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 5.0


@dataclass(frozen=True)
class Cost:
    """What a command cost; `ended` is false when it had to be stopped."""

    wall_s: float
    cpu_s: float
    code: int
    ended: bool
    started: float


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
    try:
        code, ended = child.wait(timeout_s), True
    except subprocess.TimeoutExpired:
        code, ended = 1, False
    wall = time.monotonic() - clock
    _reap(0 if not ended else _GRACE_S)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "code": code, "ended": ended, "started": started}
    report.write_text(json.dumps(facts), encoding="utf-8")


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
                for left in _children():
                    os.kill(left, signal.SIGKILL)
            time.sleep(0.02)


def _children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text(encoding="ascii").split()]


if __name__ == "__main__":
    main()
