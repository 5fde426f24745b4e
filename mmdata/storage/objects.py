"""A folder in an object store whose `mode="create"` fails when the name is taken; S3 is the one that is tested.

A create that did not answer well (409, 412, 500, no answer at all) may have happened: a client library sends again by
itself and then meets its own object. So every trouble is settled the same way, by asking the object itself, and only a
name that is not there is sent again. Listings find names for people and for `delete`; nothing is decided by them.
"""

import errno
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from mmdata.errors import MmdataError, RunError
from mmdata.failpoint import step
from mmdata.storage.store import NO_CREATE_HINT, Store


class ObjectStore(Store):
    """A folder of an fsspec file system."""

    waits_s: ClassVar[tuple[float, ...]] = (0.1, 0.4, 1.6)  # between the tries of one create; clients try again below this

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.root = str(_open(url)[1]).rstrip("/")

    @property
    def fs(self) -> Any:  # noqa: ANN401 - fsspec has no types
        """Return this process's file system: fsspec keeps one a process, and connections do not survive a fork."""
        return _open(self.url)[0]

    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading."""
        with _plainly():
            file: IO[bytes] = self.fs.open(self._path(name), "rb")
        return file

    def create(self, name: str, data: bytes) -> bool:
        """Create `name` by conditional put; say whether it now holds exactly these bytes."""
        return self._create(name, io.BytesIO(data), lambda: self.fs.pipe_file(self._path(name), data, mode="create"))

    def create_from(self, name: str, path: Path) -> bool:
        """Create `name` from a finished local file by conditional put; say whether it now holds exactly the file's bytes."""
        with path.open("rb") as source:
            return self._create(name, source, lambda: self.fs.put_file(str(path), self._path(name), mode="create"))

    def put(self, name: str, data: bytes) -> None:
        """Overwrite `name`."""
        with _plainly():
            self.fs.pipe_file(self._path(name), data)

    def exists(self, name: str) -> bool:
        """Say whether `name` is an object; the object itself is asked."""
        try:
            return bool(self._info(name)["type"] == "file")
        except FileNotFoundError:
            return False

    def size(self, name: str) -> int:
        """Return the bytes that an object has."""
        return int(self._info(name)["size"])

    def list(self, prefix: str) -> list[str]:
        """Return the names directly under a prefix, sorted."""
        folder = self._path(prefix)
        try:
            with _plainly():
                found = self.fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        names = (str(path).removeprefix(f"{folder}/").rstrip("/") for path in found if str(path).startswith(f"{folder}/"))
        return sorted(name for name in names if name)

    def delete(self, name: str) -> None:
        """Remove an object, or all under a prefix; raise when some of it stays."""
        path, found = self._path(name), []
        if self.exists(name):
            with _plainly():
                self.fs.rm_file(path)
        for _ in range(2):
            with _plainly():
                found = self.fs.find(path)
                if not found:
                    return
                self.fs.rm(found)
        if left := [path for path in found if self.fs.exists(path)]:
            raise OSError(errno.EIO, f"{self.url}/{name}: {len(left)} objects could not be deleted, {left[0]} is one")

    def sub(self, name: str) -> "ObjectStore":
        """Return the store of a prefix below this one."""
        return ObjectStore(f"{self.url.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes:
        """Return the bytes of an object."""
        with _plainly():
            return bytes(self.fs.cat_file(self._path(name)))

    def probe(self) -> None:
        """Raise unless names can be created here, exactly once each; what it makes it removes."""
        from fsspec import AbstractFileSystem

        if getattr(self.fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file:  # looks, then overwrites
            raise RunError(f"{self.url}: this kind of store has no conditional create", hint=NO_CREATE_HINT)
        try:
            super().probe()
        except OSError as error:
            raise RunError(
                f"{self.url} cannot be written: {error}",
                hint="check that the bucket exists, and the address and credentials in the environment (AWS_*)",
            ) from error

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _info(self, name: str) -> dict[str, Any]:
        with _plainly():
            found: dict[str, Any] = self.fs.info(self._path(name))
        return found

    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        if not size:  # a range of no bytes cannot be written
            return b""
        try:
            with _plainly():
                return bytes(self.fs.cat_file(self._path(name), start=offset, end=offset + size))
        except OSError as error:
            if error.errno != errno.EINVAL or self.size(name) > offset:
                raise
        return b""  # 416: the range begins past the end

    def _create(self, name: str, source: IO[bytes], send: Callable[[], object]) -> bool:
        for wait_s in (*self.waits_s, None):
            try:
                with step("put"), _plainly():
                    send()
            except PermissionError as error:
                raise RunError(
                    f"{self.url}: this account may not write here ({error})",
                    hint="check the credentials in the environment and the bucket's policy, and run the same command again",
                ) from error
            except OSError:  # taken, or it may have happened
                if self.exists(name):
                    return self.holds(name, source)
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            else:
                return True
        raise AssertionError("the last wait raises")


@contextmanager
def _plainly() -> Iterator[None]:
    """Let errors be OSErrors, whatever family the store's client library gave them."""
    try:
        yield
    except (OSError, MmdataError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


def _open(url: str) -> tuple[Any, Any]:
    import fsspec

    found: tuple[Any, Any] = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return found
