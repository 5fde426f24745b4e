"""Open, list, create once, digest: on a local disk or in an object store that has conditional create.

Decided here: a name is written once and never renamed. `create` either makes the whole object under its final name or
reports that the name is taken, so two writers can never both win and a reader never meets half a file. `put` overwrites
and serves only facts that vary (progress, heartbeats).
"""

import errno
import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from mmdata.errors import ConfigError, RunError
from mmdata.failpoint import step

TEMP_PREFIX = ".tmp-"
_COPY_BYTES = 1 << 20


class Store(ABC):
    """A folder of named objects. Names are relative and use `/`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __reduce__(self) -> tuple[object, ...]:
        return (open_store, (self.url,))

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading; it can seek."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Create `name` whole; return False when the name is taken."""

    @abstractmethod
    def create_from(self, name: str, path: Path) -> bool:
        """Create `name` from a finished local file; return False when the name is taken."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write `name`, replacing what was there."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Say whether `name` is an object."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """Return the names directly under a folder, sorted; empty when there is none."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object or a folder; silent when it is not there."""

    @abstractmethod
    def sub(self, name: str) -> "Store":
        """Return the store of a folder below this one."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an object."""
        with self.open(name) as file:
            return file.read()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`, or raise."""
        with self.open(name) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise RunError(
                f"{self.url}/{name}: {len(data)} of {size} bytes at {offset}: the file was cut short",
                hint="restore the file, or delete its run folder and run again",
            )
        return data

    def create_same(self, name: str, data: bytes) -> None:
        """Create `name`; bytes that differ from what is already there are an error."""
        if not self.create(name, data) and self.read(name) != data:
            raise RunError(
                f"{self.url}/{name} exists with other bytes",
                hint="two different runs wrote here; use a run folder of its own for each",
            )


class LocalStore(Store):
    """A folder on a local disk; create-once is a hard link from a synced temporary file."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.root = Path(url)

    def path(self, name: str) -> Path:
        """Return the file behind a name."""
        return self.root / name

    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading."""
        return self.path(name).open("rb")

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` in one `pread`."""
        fd = os.open(self.path(name), os.O_RDONLY)
        try:
            data = os.pread(fd, size, offset)
        finally:
            os.close(fd)
        return data if len(data) == size else super().read_range(name, offset, size)

    def create(self, name: str, data: bytes) -> bool:
        """Create `name` whole; return False when the name is taken."""
        with self._temp(name) as file:
            file.write(data)
            file.flush()
            return self._publish(file, self.path(name))

    def create_from(self, name: str, path: Path) -> bool:
        """Create `name` from a finished local file; return False when the name is taken."""
        with self._temp(name) as target, path.open("rb") as source:
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)
            target.flush()
            return self._publish(target, self.path(name))

    def put(self, name: str, data: bytes) -> None:
        """Replace `name` in one step."""
        with self._temp(name) as file:
            file.write(data)
            file.flush()
            Path(file.name).replace(self.path(name))

    def exists(self, name: str) -> bool:
        """Say whether `name` is a file."""
        return self.path(name).is_file()

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
        return LocalStore(str(self.root / name))

    @contextmanager
    def _temp(self, name: str) -> Iterator[IO[bytes]]:
        folder = self.path(name).parent
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        try:
            with path.open("xb") as file:
                yield file
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(
                    f"{folder}: the disk is full ({error.strerror})",
                    hint="free some space and run the same command again",
                ) from error
            raise
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, file: IO[bytes], final: Path) -> bool:
        with step("sync"):
            os.fsync(file.fileno())
        try:
            with step("link"):
                os.link(file.name, final)
        except FileExistsError:
            return False
        with step("folder"):
            sync(final.parent)
        return True


class ObjectStore(Store):
    """A folder of an fsspec file system whose `mode="create"` fails when the name is taken."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import fsspec

        self.fs, self.root = fsspec.core.url_to_fs(url)

    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading."""
        file: IO[bytes] = self.fs.open(f"{self.root}/{name}", "rb")
        return file

    def create(self, name: str, data: bytes) -> bool:
        """Create `name` by conditional put."""
        try:
            self.fs.pipe_file(f"{self.root}/{name}", data, mode="create")
        except FileExistsError:
            return False
        return True

    def create_from(self, name: str, path: Path) -> bool:
        """Create `name` from a finished local file by conditional put."""
        try:
            self.fs.put_file(str(path), f"{self.root}/{name}", mode="create")
        except FileExistsError:
            return False
        return True

    def put(self, name: str, data: bytes) -> None:
        """Overwrite `name`."""
        self.fs.pipe_file(f"{self.root}/{name}", data)

    def exists(self, name: str) -> bool:
        """Say whether `name` is an object."""
        return bool(self.fs.exists(f"{self.root}/{name}"))

    def list(self, prefix: str) -> list[str]:
        """Return the names directly under a prefix, sorted."""
        try:
            found = self.fs.ls(f"{self.root}/{prefix}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    def delete(self, name: str) -> None:
        """Remove an object, or all under a prefix."""
        if self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm(f"{self.root}/{name}", recursive=True)

    def sub(self, name: str) -> "ObjectStore":
        """Return the store of a prefix below this one."""
        return ObjectStore(f"{self.url.rstrip('/')}/{name}")


def open_store(url: str) -> Store:
    """Return the store of a folder: a local path, or any URL that fsspec knows."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return LocalStore(str(Path(url).absolute())) if "://" not in url else _open_remote(url)


@cache
def _open_remote(url: str) -> Store:
    scheme = url.split("://", 1)[0]
    try:
        return ObjectStore(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot open {url}: {error}", hint=f"install the extra for `{scheme}`, e.g. mmdata[s3]") from error


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    """Return the SHA-256 of a value in canonical JSON: sorted keys, no spaces."""
    import json

    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk_temps(root: Path) -> Iterator[Path]:
    """Yield the temporary files below a folder: leftovers of writers that were killed."""
    yield from root.rglob(f"{TEMP_PREFIX}*")


def sync(path: Path) -> None:
    """Let a file's or folder's bytes reach the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
