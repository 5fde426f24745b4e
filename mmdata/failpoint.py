"""Fail-points: named places at commit steps where a test can end the process, compiled in always."""

import errno
import os
import signal

_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Do what `FAILPOINT=name:nth:kill|raise|stop` asks at the nth pass of a commit step; cost one look-up otherwise."""
    wanted = os.environ.get("FAILPOINT")
    if wanted is None:
        return
    point, nth, action = wanted.split(":")
    if point not in (name, "any"):
        return
    _hits[point] = _hits.get(point, 0) + 1
    if _hits[point] != int(nth):
        return
    if action == "raise":
        raise OSError(errno.EIO, f"fail-point {name}")
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
