"""Fail-points: named places around every commit step where a test can end, break or stop the process; compiled in always.

`FAILPOINT=name:nth:kill|raise|stop[:file]` acts at the nth pass of a point. With a file, only the process that creates it
acts: a worker that takes the dead one's place then gets through. The name `any` counts all points together. The tests
enumerate `POINTS`, so a step that is added here without a test fails, and so does one that nobody passes.
"""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEPS = {
    "temp": "a temporary file is made, its attempt in its name",
    "write": "bytes are written to it",
    "tar": "a tar is finished in local scratch",
    "sync": "the bytes of a file reach the disk",
    "link": "an object appears under its final name, or does not because the name is taken",
    "folder": "the folder's entry reaches the disk",
    "unlink": "a temporary file is removed",
    "put": "an object appears in an object store by conditional create",
    "payload": "the files of a payload shard are created",
    "columns": "a column file is created",
    "state": "the fates of a partition are created",
    "record": "the record of a task is created: it is done",
    "media": "media that a pass has sorted are created",
    "pass": "what a unit of a pass made is created",
    "unit": "the record of a shard is created",
    "corpus": "`corpus.json` is created: the shards are a corpus",
    "lease": "a lease is taken",
    "generation": "what a run is asked is created",
    "manifest": "the manifest of a generation is created, last",
    "free": "sorted media that the corpus no longer needs are deleted",
}
# What saving a checkpoint does; a run passes none of these.
TRAINING_STEPS = {
    "weights": "a file of a checkpoint's tensors is written under a temporary name",
    "facts": "what the checkpoint is, with the digests of its files, is written",
    "settle": "its bytes reach the disk",
    "aside": "a damaged checkpoint of the same step is removed",
    "rename": "the checkpoint appears under its own name",
    "drop": "one that is no longer kept is removed",
}
POINTS, TRAINING_POINTS = (
    tuple(f"{when}-{name}" for name in steps for when in ("before", "after")) for steps in (STEPS, TRAINING_STEPS)
)

_hits: dict[str, int] = {}


@contextmanager
def step(name: str) -> Iterator[None]:
    """Surround a commit step with its two fail-points."""
    failpoint(f"before-{name}")
    yield
    failpoint(f"after-{name}")


def failpoint(point: str) -> None:
    """Do what `FAILPOINT` asks at the nth pass of a point; cost one look-up otherwise."""
    wanted = os.environ.get("FAILPOINT")
    if wanted is None:
        return
    if point not in POINTS + TRAINING_POINTS:
        raise ValueError(f"no fail-point is called `{point}`: add it to STEPS")
    name, nth, action, *once = wanted.split(":", 3)
    if name not in (point, "any"):
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] != int(nth) or (once and not _first(once[0])):
        return
    if action == "raise":
        raise OSError(errno.EIO, f"fail-point {point}")
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


def reset() -> None:
    """Count from the start again, for a test in the same process."""
    _hits.clear()


def _first(file: str) -> bool:
    """Say whether this process is the one to act: the one that creates the file."""
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
