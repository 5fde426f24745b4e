"""Temporary files: each says in its name who makes it, so that only what the dead left is removed.

`.tmp-HOST-PID-START-RANDOM`: a digest of the machine, the process and when the kernel started it, and a random end.
"""

import os
import re
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mmdata.storage.digest import digest_bytes
from mmdata.storage.process import host, started

TEMP_PREFIX = ".tmp-"
_NAME = re.compile(rf"{re.escape(TEMP_PREFIX)}([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]+")


def temp_name() -> str:
    """Return a name for a temporary file of this process."""
    return f"{_maker(os.getpid())}-{secrets.token_hex(6)}"


def walk_temps(root: Path) -> Iterator[Path]:
    """Yield the temporary files below a folder: those being written, and leftovers of writers that were killed."""
    for folder, _, files in os.walk(root):
        yield from (Path(folder, name) for name in sorted(files) if name.startswith(TEMP_PREFIX))


def clear_temps(root: Path, *, everyone: bool = False) -> int:
    """Remove the temporary files below a folder whose process was one of this machine and is dead; return how many.

    everyone  also those of other machines, which may be at work: only for who knows that nobody is
    """
    found = [path for path in walk_temps(root) if abandoned(path.name, everyone=everyone)]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def abandoned(name: str, *, everyone: bool = False) -> bool:
    """Say whether nobody writes what has this name any more; `everyone` also counts those of other machines."""
    match = _NAME.fullmatch(name)
    if match is None:  # from before names said who
        return True
    machine, pid, start = match.groups()
    if machine != _machine():
        return everyone
    return _start(int(pid)) != start


@cache
def _maker(pid: int) -> str:
    return f"{TEMP_PREFIX}{_machine()}-{pid}-{_start(pid)}"


@cache
def _machine() -> str:
    return digest_bytes(host().encode())[:8]


def _start(pid: int) -> str:
    """Return what stands in a name for a live process: 0 where the kernel tells no start, and nothing for a dead one."""
    if start := started(pid):
        return start
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "0"
    return "0"
