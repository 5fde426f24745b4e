"""What a store is: named objects that are created whole, once, and read back."""

import io
import os
import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from mmdata.errors import RunError

COPY_BYTES = 1 << 20


class Store(ABC):
    """A folder of named objects. Names are relative and use `/`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __reduce__(self) -> tuple[object, ...]:
        from mmdata.storage.opening import open_store

        return (open_store, (self.url,))

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading; it can seek."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Create `name` whole; say whether it now holds exactly these bytes, by this call or by one before it."""

    @abstractmethod
    def create_from(self, name: str, path: Path) -> bool:
        """Create `name` from a finished local file; say whether it now holds exactly the file's bytes."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write `name`, replacing what was there."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Say whether `name` is an object."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the bytes that an object has."""

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
        data = self._read_range(name, offset, size)
        if len(data) != size:
            raise RunError(
                f"{self.url}/{name}: {len(data)} of {size} bytes at {offset}: the file was cut short",
                hint="restore the file, or delete its run folder and run again",
            )
        return data

    def holds(self, name: str, source: IO[bytes]) -> bool:
        """Say whether an object has exactly the bytes of a file that can seek."""
        num_bytes = source.seek(0, os.SEEK_END)
        if self.size(name) != num_bytes:
            return False
        source.seek(0)
        with self.open(name) as found:
            return all(found.read(COPY_BYTES) == source.read(COPY_BYTES) for _ in range(0, num_bytes, COPY_BYTES))

    def create_same(self, name: str, data: bytes) -> None:
        """Create `name`; bytes that differ from what is already there are an error."""
        if not self.create(name, data):
            raise RunError(
                f"{self.url}/{name} exists with other bytes",
                hint="two different runs wrote here; use a run folder of its own for each",
            )

    def probe(self) -> None:
        """Raise unless names can be created here, exactly once each; what it makes it removes."""
        name = f"probe/{secrets.token_hex(8)}"
        try:
            made = self.create(name, b"first")
            if not made or self.create(name, b"second") or not self.holds(name, io.BytesIO(b"first")):
                raise RunError(f"{self.url}: a second writer takes a name that the first one made", hint=NO_CREATE_HINT)
        finally:
            self.delete(name)

    @abstractmethod
    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset`."""


NO_CREATE_HINT = "runs need a local disk, or an object store with conditional create, such as S3; this one can only be read"
