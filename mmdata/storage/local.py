"""A folder on a local disk. Create-once is a hard link, under the final name, to a temporary file whose bytes are on the disk."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, ClassVar, TypeVar

from mmdata.failpoint import step
from mmdata.storage.disk import Disk, explained, linking
from mmdata.storage.store import COPY_BYTES, Store
from mmdata.storage.temps import TEMP_PREFIX, temp_name

T = TypeVar("T")
R = TypeVar("R")


class LocalStore(Store):
    """A folder on a local disk. An object whose disk fails is made again, `tries` times in all."""

    tries: ClassVar[int] = 4
    _settled: ClassVar[set[tuple[Path, int]]] = set()

    def __init__(self, url: str, disk: Disk | None = None) -> None:
        super().__init__(url)
        self.root = Path(url)
        self.disk = disk or Disk()

    def path(self, name: str) -> Path:
        """Return the file behind a name."""
        return self.root / name

    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading."""
        return self.path(name).open("rb")

    def create(self, name: str, data: bytes) -> bool:
        """Create `name` whole; say whether it now holds exactly these bytes."""
        return self._again(self._create, name, io.BytesIO(data))

    def create_from(self, name: str, path: Path) -> bool:
        """Create `name` from a finished local file; say whether it now holds exactly the file's bytes."""
        with path.open("rb") as source:
            return self._again(self._create, name, source)

    def put(self, name: str, data: bytes) -> None:
        """Replace `name` in one step."""
        self._again(self._put, name, data)

    def _put(self, name: str, data: bytes) -> None:
        final = self.path(name)
        with explained(final.parent), self._temp(final.parent, io.BytesIO(data), commit=False) as temp:
            self.disk.replace(temp, final)

    def exists(self, name: str) -> bool:
        """Say whether `name` is a file."""
        return self.path(name).is_file()

    def size(self, name: str) -> int:
        """Return the bytes that a file has."""
        return self.path(name).stat().st_size

    def list(self, prefix: str) -> list[str]:
        """Return the names directly under a folder, sorted, without temporary files."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMP_PREFIX))

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with all in it."""
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            for entry in path.iterdir():
                self.delete(f"{name}/{entry.name}")
            path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def sub(self, name: str) -> "LocalStore":
        """Return the store of a folder below this one."""
        return LocalStore(str(self.root / name), self.disk)

    def probe(self) -> None:
        """Raise unless names can be created here, exactly once each; what it makes it removes."""
        super().probe()
        with suppress(OSError):  # another run is probing
            self.path("probe").rmdir()

    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        fd = os.open(self.path(name), os.O_RDONLY)
        try:
            data = os.pread(fd, size, offset)
            while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
                data += more
        finally:
            os.close(fd)
        return data

    def _again(self, work: Callable[[str, T], R], name: str, data: T) -> R:
        """Make an object anew, from a new temporary file, when its disk fails; no single call to the disk is repeated."""
        for _ in range(self.tries - 1):
            try:
                return work(name, data)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
        return work(name, data)

    def _create(self, name: str, source: IO[bytes]) -> bool:
        final = self.path(name)
        with explained(final.parent):
            made = not self.exists(name) and self._make(final, source)
            if not made and not self.holds(name, source):
                return False
            # Also for a name that was there: who made it may have died, or failed, before this.
            with step("folder"):
                self.disk.sync_folder(final.parent)
            self._settle(final.parent)
        return True

    def _settle(self, folder: Path) -> None:
        """Let a folder's own name reach the disk, and those above it up to the root: once a process, for it may be new."""
        known = (folder, folder.stat().st_ino)
        if folder == self.root or known in self._settled:
            return
        for above in folder.parents:
            self.disk.sync_folder(above)
            if above == self.root:
                break
        self._settled.add(known)

    def _make(self, final: Path, source: IO[bytes]) -> bool:
        with self._temp(final.parent, source, commit=True) as temp, linking(final.parent):
            try:
                with step("link"):
                    self.disk.link(temp, final)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _temp(self, folder: Path, source: IO[bytes], *, commit: bool) -> Iterator[Path]:
        # A `put` is no commit: it is not synced, and heartbeats that passed fail-points would upset their count.
        point = step if commit else nullcontext
        path = folder / temp_name()
        try:
            with point("temp"):
                fd = self.disk.open(path)
            try:
                with point("write"):
                    self._fill(fd, source)
                if commit:
                    with step("sync"):
                        self.disk.sync(fd)
            finally:
                self.disk.close(fd)
            yield path
        finally:
            with point("unlink"):
                self.disk.unlink(path)

    def _fill(self, fd: int, source: IO[bytes]) -> None:
        source.seek(0)
        while chunk := source.read(COPY_BYTES):
            left = memoryview(chunk)
            while left:
                num_written = self.disk.write(fd, left)
                if not num_written:
                    raise OSError(errno.EIO, "the disk takes no more bytes and does not say why")
                left = left[num_written:]
