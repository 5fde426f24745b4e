"""Ends what this process started should it be killed: a shell of its own session holds a pipe, and acts when that closes.

Ray ties its servers to the life of their driver, but its agents look for their dead head for a minute before they end.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reaping(since: set[int]) -> Iterator[None]:
    """While the context is open, let the death of this process be that of its children and theirs, but for those in `since`."""
    servers = children(os.getpid()) - since
    pids = servers | {child for server in servers for child in children(server)}
    shell = ["sh", "-c", 'read _; kill -9 "$@" 2>/dev/null', "sh", *map(str, sorted(pids))]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, start_new_session=True) as reaper:
        try:
            yield
        finally:
            reaper.kill()


def children(pid: int) -> set[int]:
    """Return the children of a process, where the kernel tells."""
    if not sys.platform.startswith("linux"):
        return set()
    lists = [task / "children" for task in Path(f"/proc/{pid}/task").glob("*")]
    return {int(child) for file in lists if file.exists() for child in file.read_text(encoding="ascii").split()}
