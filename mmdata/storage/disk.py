"""The calls to the operating system by which a local store writes; a test gives it a disk that fails (`faulty`).

A write, a sync or a close that failed says nothing about the bytes: the kernel may drop them and report success the next
time. So nothing here is ever tried again on the same file; whoever wants the object writes another one.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdata.errors import RunError

_AGAIN = "and run the same command again"
_EXPLAINED = {
    errno.ENOSPC: ("the disk is full", f"free some space (or inodes: `df -i`) {_AGAIN}"),
    errno.EDQUOT: ("this user's quota is used up", f"free some space or raise the quota {_AGAIN}"),
    errno.EROFS: ("the file system is read-only", f"mount it for writing, or name another folder, {_AGAIN}"),
    errno.EACCES: ("this user may not write here", f"change the folder's owner or mode {_AGAIN}"),
    errno.EMFILE: ("this process has too many open files", f"raise the limit (`ulimit -n`) {_AGAIN}"),
    errno.ENFILE: ("this machine has too many open files", f"raise the limit (`fs.file-max`) {_AGAIN}"),
}
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class Disk:
    """The disk as it is."""

    def open(self, path: Path) -> int:
        """Make a new file for writing, and its folder when there is none."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o666)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of the bytes; return how many."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Let a file's bytes reach the disk."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a file; it is closed even when this fails."""
        os.close(fd)

    def link(self, path: Path, final: Path) -> None:
        """Give a file its final name, unless that is taken."""
        os.link(path, final)

    def sync_folder(self, folder: Path) -> None:
        """Let a folder's entries reach the disk."""
        sync(folder)

    def replace(self, path: Path, final: Path) -> None:
        """Give a file its final name, whatever had it."""
        path.replace(final)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what only a person can mend into a RunError that says how; other errors may pass by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno not in _EXPLAINED:
            raise
        what, hint = _EXPLAINED[error.errno]
        raise RunError(f"{folder}: {what} ({error.strerror})", hint=hint) from error


@contextmanager
def linking(folder: Path) -> Iterator[None]:
    """Say so when a file system has no hard links."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise RunError(
            f"{folder}: this file system has no hard links, so it cannot make a name exactly once ({error.strerror})",
            hint="put the run folder on a disk with hard links (ext4, xfs, APFS), or in an object store such as S3",
        ) from error


def sync(path: Path) -> None:
    """Let a file's or folder's bytes reach the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
