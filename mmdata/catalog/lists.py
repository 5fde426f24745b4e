"""What a list file is to those who read it: named columns, a number of rows, and ranges of them.

Decided here: a file that is damaged is refused whole, by name, before the run; inside a readable file a bad line costs that
line alone and keeps its row number. Rows come in short chunks, so that what is made of them bounds memory and not they.
A file is read on from where the last range ended: formats that cannot be entered in the middle would else be read from the
start for every partition.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmdata.catalog.entry import ALIASES, Entry
from mmdata.errors import ConfigError, did_you_mean

CHUNK_ROWS = 256
WHOLE_BYTES = 1 << 30  # larger files are neither hashed nor checked to their end before a run
_DAMAGE = (EOFError, OSError, zlib.error, pa.ArrowException, UnicodeDecodeError)


class UnreadableError(ConfigError):
    """A list file is damaged, or not what it says it is."""


@dataclass(frozen=True)
class Raw:
    """Rows as the file has them, column by column, and which of them could not be parsed."""

    columns: dict[str, list[Any]]
    bad: list[bool]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.bad)


class ListFile(ABC):
    """One list file of an entry."""

    kind: str

    def __init__(self, entry: Entry, path: Path) -> None:
        self.entry, self.path = entry, path
        self._place: tuple[int, Any] | None = None  # number of the next row, and the rest of the file

    @cached_property
    def names(self) -> list[str]:
        """The names of its columns; none when there is nothing in it."""
        with self._naming():
            names = self._names()
        if len(set(names)) != len(names):
            raise ConfigError(f"{self.path}: two columns have the same name: {names}", hint="rename one of them")
        return names

    @cached_property
    def parts(self) -> dict[str, str]:
        """Which column plays which part; a file that lacks one is refused by column and name."""
        parts: dict[str, str] = {}
        if not self.names:
            return parts
        for part in ("images", "texts", "sample_id") if self.entry.shape == "documents" else ("url", "text", "sample_id"):
            known = ALIASES[part] if self.entry.guess else ()
            name = getattr(self.entry.columns, part) or next((alias for alias in known if alias in self.names), None)
            if name is not None:
                self._require(name)
                parts[part] = name
            elif part in ("url", "images", "texts"):
                has = f"{self.path.name} has {self.names}"
                raise ConfigError(f"{self.path}: no column holds the {part}", hint=f"name it under `columns:`; {has}")
        for name in (*self.entry.columns.captions, *self.entry.carry):
            self._require(name)
        return parts

    @property
    def used(self) -> list[str]:
        """The columns that are read."""
        if not self.names:
            return []
        return list(dict.fromkeys([*self.parts.values(), *self.entry.columns.captions, *self.entry.carry]))

    def count(self) -> int:
        """Return the number of rows, bad ones included; refuse a file that is not what it says."""
        _ = self.parts
        with self._naming():
            rows = self._count()
        if rows and not self.names:
            raise UnreadableError(
                f"{self.path}: none of its {rows} rows can be read as {self.kind}", hint="is the entry's `format` right?"
            )
        return rows

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """Yield the columns that are read, of rows `start..stop`."""
        left = stop - start
        with self._naming():
            for raw in self._read(start, stop):
                left -= raw.num_rows
                yield raw
        if left:
            raise UnreadableError(f"{self.path}: {left} of its rows {start}..{stop} are not there", hint="fetch it again")

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def _read(self, start: int, stop: int) -> Iterator[Raw]: ...

    def _leave_off(self, first: int, start: int) -> tuple[int, Any] | None:
        """Take the place where the last range ended, if it lies in `first..start`."""
        place, self._place = self._place, None
        return place if place is not None and first <= place[0] <= start else None

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise ConfigError(f"{self.path}: has no column `{name}`", hint=did_you_mean(name, self.names))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say of damage which file has it."""
        try:
            yield
        except _DAMAGE as error:
            hint = "fetch it again; it may be cut short or damaged"
            raise UnreadableError(f"{self.path}: not a readable {self.kind} file: {error}", hint=hint) from error


def columns(records: list[dict[str, Any] | None], names: list[str]) -> Raw:
    """Turn records into columns; null is one that could not be parsed."""
    values = {name: [None if record is None else record.get(name) for record in records] for name in names}
    return Raw(values, [record is None for record in records])
