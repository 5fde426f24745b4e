"""Where an export is written: a folder that has its name only when it is whole.

Decided here: everything is written to `OUT.unfinished`, synced, and renamed, so an export that was killed leaves no OUT. The
next one with the same OUT removes what it left; two at once do not get in each other's way, since the first holds a lock.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdata.errors import BusyError, ConfigError
from mmdata.storage import sync
from mmdata.storage.disk import explained

SUFFIX = ".unfinished"


@contextmanager
def finished_folder(out: str) -> Iterator[Path]:
    """Give an empty folder beside `out`; it becomes `out` when the block ends without an error, and is removed otherwise.

    Raises ConfigError when `out` is not empty or not on a local disk, BusyError when another export is writing there.
    """
    final = _final(out)
    beside = final.with_name(final.name + SUFFIX)
    with explained(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir(exist_ok=True)
        with _alone(beside, out):
            for entry in beside.iterdir():
                _remove(entry)
            try:
                yield beside
                _sync_all(beside)
                beside.replace(final)
                sync(final.parent)
            except BaseException:
                shutil.rmtree(beside, ignore_errors=True)
                raise


def _final(out: str) -> Path:
    if "://" in out:
        raise ConfigError(f"{out}: exports are written to a local disk", hint="write it there, then copy the folder")
    final = Path(out).resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ConfigError(f"{out} is not an empty folder", hint="give a new one: an export is written whole, never added to")
    return final


@contextmanager
def _alone(folder: Path, out: str) -> Iterator[None]:
    """Hold the folder's lock; the kernel gives it back when this process ends, however it does."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.fstat(fd).st_ino == folder.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            raise BusyError(f"{out}: another export is writing there", hint="wait for it, or give another folder")
        yield
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_all(root: Path) -> None:
    """Let everything in a folder reach the disk before its name says that it is whole."""
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
