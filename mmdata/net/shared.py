"""Where the workers of one machine keep what they know of hosts, for as long as a run lasts.

The folder lies among the machine's temporary files and is this user's alone; the driver removes its own at the end, and what
killed drivers left is removed by whoever comes a day later.
"""

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_OLD_S = 86_400.0


def hosts_folder(run: str) -> Path | None:
    """Return the folder of a run (its url), or null where no private one can be had: workers are then polite one by one."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    parent = Path(tempfile.gettempdir()) / f"mmdata-hosts-{user}"
    with suppress(OSError):
        parent.mkdir(mode=0o700, exist_ok=True)
        status = parent.lstat()
        if parent.is_symlink() or status.st_uid != user or status.st_mode & 0o077:
            return None
        _clear_old(parent)
        return parent / hashlib.sha256(run.encode()).hexdigest()[:16]
    return None


def forget_hosts(run: str) -> None:
    """Remove what was kept of a run's hosts on this machine."""
    if (folder := hosts_folder(run)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _clear_old(parent: Path) -> None:
    for folder in parent.iterdir():
        with suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > _OLD_S:
                shutil.rmtree(folder, ignore_errors=True)
