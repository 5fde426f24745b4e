"""Stores that give trouble, for tests: below `create`, where a disk or a network would give it.

`MMDATA_FAULTS=SEED:PROBABILITY[:KINDS]` gives it to every store that is opened, in worker processes too; each process draws
its own. A kind is an operation and its trouble, `write-eio`; an operation alone stands for its kinds that pass by themselves.
"""

import errno
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from mmdata.storage.disk import Disk
from mmdata.storage.local import LocalStore
from mmdata.storage.objects import ObjectStore

PASSING = {
    "open-eio": "a temporary file cannot be made",
    "write-eio": "nothing is written",
    "write-short": "some of the bytes are written, and the answer says how many",
    "sync-eio": "a file's bytes may not have reached the disk",
    "close-eio": "the file is closed, its bytes may be lost",
    "link-eio": "no name is made",
    "link-lost": "the name is made, the answer is an error",
    "folder-eio": "a folder's entry may not have reached the disk",
    "replace-eio": "the name keeps what it had",
    "unlink-eio": "a temporary file stays",
    "create-409": "another write to the name is under way, says the store",
    "create-412": "the name is taken, says the store, and it is not",
    "create-cut": "the connection ends before anything has happened, or in the middle of the parts",
    "create-500": "the object is made, the answer is an error",
    "create-lost": "the object is made, no answer comes",
    "create-slow": "the object is made after a while",
    "read-eio": "an object cannot be read this time",
    "read-slow": "an object is read after a while",
}
LASTING = {
    "list-stale": "a listing leaves out the newest half of the names",
    **{f"{operation}-{trouble}": f"see errno.{trouble.upper()}" for operation, troubles in {
        "open": ("enospc", "edquot", "erofs", "eacces", "emfile"), "write": ("enospc", "edquot"), "sync": ("enospc",),
        "close": ("enospc", "edquot"), "link": ("exdev", "eperm", "enotsup", "enospc", "emlink"),
    }.items() for trouble in troubles},
}  # fmt: skip
SLOW_S = 0.2


class Faults:
    """Which calls fail: any, by a probability and a seed, or the nth call of an operation, by kind."""

    def __init__(
        self, seed: object = 0, probability: float = 0.0, kinds: Iterable[str] = PASSING, *, nth: Mapping[str, int] | None = None
    ) -> None:
        self.probability = probability
        self.nth = dict(nth or {})
        self.kinds = sorted({kind for name in kinds for kind in _kinds_of(name)})
        self.calls: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self._random = random.Random(str(seed))
        for kind in self.nth:
            _kinds_of(kind)

    @classmethod
    def parse(cls, text: str) -> "Faults":
        """Read `SEED:PROBABILITY[:KIND,KIND]`; each process draws its own from the seed."""
        seed, probability, *kinds = text.split(":")
        return cls(f"{seed}/{os.getpid()}", float(probability), kinds[0].split(",") if kinds else PASSING)

    def strike(self, operation: str) -> str:
        """Return the trouble that befalls this call of an operation; empty when it goes well."""
        self.calls[operation] += 1
        due = [kind for kind, number in self.nth.items() if self.calls[operation] == number and _is_of(kind, operation)]
        if not due and self._random.random() < self.probability:
            due = [kind for kind in self.kinds if _is_of(kind, operation)]
        if not due:
            return ""
        kind = self._random.choice(due)
        self.struck[kind] += 1
        return kind.partition("-")[2]


class FaultyDisk(Disk):
    """A disk whose calls fail as `faults` says."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def open(self, path: Path) -> int:
        """Make a new file, or fail."""
        self._strike("open")
        return super().open(path)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of the bytes, fewer, or none."""
        trouble = self.faults.strike("write")
        if trouble == "short":
            return super().write(fd, data[: max(1, len(data) // 2)])
        return super().write(fd, data) if not trouble else _fail(trouble)

    def sync(self, fd: int) -> None:
        """Sync a file, or fail."""
        self._strike("sync")
        super().sync(fd)

    def close(self, fd: int) -> None:
        """Close a file; it is closed even when this fails."""
        super().close(fd)
        self._strike("close")

    def link(self, path: Path, final: Path) -> None:
        """Make a name and say so, make it and fail, or only fail."""
        trouble = self.faults.strike("link")
        if trouble in ("", "lost"):
            super().link(path, final)
        if trouble:
            _fail("eio" if trouble == "lost" else trouble)

    def sync_folder(self, folder: Path) -> None:
        """Sync a folder, or fail."""
        self._strike("folder")
        super().sync_folder(folder)

    def replace(self, path: Path, final: Path) -> None:
        """Replace a file, or fail."""
        self._strike("replace")
        super().replace(path, final)

    def unlink(self, path: Path) -> None:
        """Remove a file, or fail."""
        self._strike("unlink")
        super().unlink(path)

    def _strike(self, operation: str) -> None:
        if trouble := self.faults.strike(operation):
            _fail(trouble)


class FaultyFileSystem:
    """An fsspec file system whose answers fail as `faults` says."""

    def __init__(self, inner: Any, faults: Faults) -> None:  # noqa: ANN401 - fsspec has no types
        self.inner = inner
        self.faults = faults

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - fsspec has no types
        return getattr(self.inner, name)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        """Make an object of bytes."""
        self._send(lambda: self.inner.pipe_file(path, data, mode=mode))

    def put_file(self, source: str, path: str, mode: str = "overwrite") -> None:
        """Make an object of a local file."""
        self._send(lambda: self.inner.put_file(source, path, mode=mode))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read an object, or fail."""
        trouble = self.faults.strike("read")
        if trouble == "slow":
            time.sleep(SLOW_S)
        elif trouble:
            _fail(trouble)
        return bytes(self.inner.cat_file(path, start=start, end=end))

    def ls(self, path: str, detail: bool = False) -> list[Any]:
        """List a folder, perhaps as it was a while ago."""
        return self._listed(self.inner.ls(path, detail=detail))

    def find(self, path: str) -> list[str]:
        """List all under a folder, perhaps as it was a while ago."""
        return self._listed(self.inner.find(path))

    def _listed(self, names: list[Any]) -> list[Any]:
        return names[: len(names) // 2] if self.faults.strike("list") else names

    def _send(self, act: Callable[[], object]) -> None:
        trouble = self.faults.strike("create")
        if trouble == "409":
            raise OSError(errno.EIO, "ConditionalRequestConflict")
        if trouble == "412":
            raise FileExistsError("PreconditionFailed")
        if trouble == "cut":
            raise ConnectionResetError(errno.ECONNRESET, "the connection was reset")
        if trouble == "slow":
            time.sleep(SLOW_S)
        act()
        if trouble == "500":
            raise OSError(errno.EREMOTEIO, "InternalError")
        if trouble == "lost":
            raise TimeoutError("no answer came")


class FaultyStore(LocalStore):
    """A folder on a local disk that fails as `faults` says."""

    def __init__(self, url: str, faults: Faults) -> None:
        super().__init__(url, FaultyDisk(faults))


class FaultyObjectStore(ObjectStore):
    """A folder in an object store whose answers fail as `faults` says."""

    def __init__(self, url: str, faults: Faults) -> None:
        super().__init__(url)
        self.faults = faults

    @property
    def fs(self) -> FaultyFileSystem:
        """Return the file system, with its trouble."""
        return FaultyFileSystem(super().fs, self.faults)

    def sub(self, name: str) -> "FaultyObjectStore":
        """Return the store of a prefix below this one."""
        return FaultyObjectStore(f"{self.url.rstrip('/')}/{name}", self.faults)


def faults_of(text: str) -> Faults:
    """Return this process's faults; all its stores draw from the same."""
    return _faults_of(text, os.getpid())


@cache
def _faults_of(text: str, pid: int) -> Faults:
    return Faults.parse(text)


def _is_of(kind: str, operation: str) -> bool:
    return kind.partition("-")[0] == operation


def _kinds_of(name: str) -> list[str]:
    if name in PASSING or name in LASTING:
        return [name]
    found = [kind for kind in PASSING if _is_of(kind, name)]
    if not found:
        raise ValueError(f"no trouble is called `{name}`; known: {', '.join([*PASSING, *LASTING])}")
    return found


def _fail(trouble: str) -> NoReturn:
    number: int = getattr(errno, trouble.upper())
    raise OSError(number, f"{os.strerror(number)}, as asked for by a test")
