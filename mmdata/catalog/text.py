"""CSV, TSV, JSON lines and JSON lists, and plain lines of urls, compressed or not.

Decided here: what is held of a file is bounded whatever the file says. A line, or a quoted record, of more than 64 Mi
characters is a bad row and is never held; a compressed file may grow to 16 MiB or 100 times its size; a JSON list, which
has to be read whole, may have 512 Mi characters. JSON is strict: NaN and a key given twice make a line bad. Bytes that are
not UTF-8 come as lone surrogates, so that whoever makes the rows can count them.
"""

import csv
import gzip
import io
import json
import math
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mmdata.catalog.entry import Entry
from mmdata.catalog.lists import CHUNK_ROWS, ListFile, Raw, UnreadableError, columns

MAX_LINE_CHARS = 1 << 26
CHUNK_CHARS = 1 << 24
MAX_JSON_CHARS = 1 << 29
GZIP_FREE_BYTES = 16 << 20
GZIP_RATIO = 100
_MAX_DIGITS = 4300  # as Python has it for whole numbers
_NAMING_RECORDS = 100  # keys of JSON objects are looked for in so many of the first

csv.field_size_limit(MAX_LINE_CHARS)


class TextList(ListFile):
    """A file of lines: a bad line costs that line."""

    def __init__(self, entry: Entry, path: Path, kind: str) -> None:
        super().__init__(entry, path)
        self.kind = kind
        self.skip = int(kind not in ("jsonl", "txt") and entry.header is None)

    def _names(self) -> list[str]:
        if self.kind == "txt":
            return ["url"]
        if self.entry.header is not None:
            return list(self.entry.header)
        if self.kind == "jsonl":
            return _keys(map(parse_object, self._entries()))
        return list(next(self._entries(), None) or ())

    def _count(self) -> int:
        return sum(1 for _ in islice(self._entries(), self.skip, None))

    def _read(self, start: int, stop: int) -> Iterator[Raw]:
        row, entries = self._leave_off(0, start) or (0, islice(self._entries(), self.skip, None))
        for chunk in _chunks(islice(entries, start - row, stop - row)):
            yield columns([self._record(entry) for entry in chunk], self.used)
        self._place = stop, entries

    def _record(self, entry: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a line or its cells
        if self.kind == "jsonl":
            return parse_object(entry)
        if self.kind == "txt":
            return {"url": entry}
        return dict(zip(self.names, entry, strict=True)) if entry is not None and len(entry) == len(self.names) else None

    def _entries(self) -> Iterator[Any]:
        """Yield lines of JSON or the cells of records; null for what is too long or no record; empty lines are none."""
        with open_text(self.path) as file:
            lines = _Lines(file)
            entries: Iterator[Any] = map(str.strip, lines)
            if self.kind == "csv":
                entries = csv.reader(lines)
            elif self.kind == "tsv":  # quotation marks are as they are
                entries = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            while True:
                lines.room = MAX_LINE_CHARS
                try:
                    entry = next(entries)
                except StopIteration:
                    return
                except csv.Error:
                    yield None
                else:
                    if entry:
                        yield entry


def _chunks(entries: Iterator[Any]) -> Iterator[list[Any]]:
    """Cut entries into chunks of few rows, and of few characters where lines are long."""
    chunk: list[Any] = []
    num_chars = 0
    for entry in entries:
        chunk.append(entry)
        num_chars += len(entry) if isinstance(entry, str) else sum(map(len, entry or ()))
        if len(chunk) == CHUNK_ROWS or num_chars > CHUNK_CHARS:
            yield chunk
            chunk, num_chars = [], 0
    if chunk:
        yield chunk


class _Lines:
    """The lines of a file while there is `room`; the reader of a record gives it anew. What is too long is read past."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.room = file, MAX_LINE_CHARS

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(self.room)
        if not line and self.room:
            raise StopIteration
        self.room -= len(line)
        if self.room or line.endswith(("\n", "\r")):
            return line
        while rest := self.file.readline(1 << 20):
            if rest.endswith(("\n", "\r")):
                break
        raise csv.Error("too long")


class JsonList(ListFile):
    """A JSON file of one list of objects, or of lists of one length, as SBU has them. It is read whole."""

    kind = "JSON"

    @cached_property
    def _value(self) -> Any:  # noqa: ANN401 - JSON
        with open_text(self.path) as file:
            text = file.read(MAX_JSON_CHARS + 1)
        if len(text) > MAX_JSON_CHARS:
            raise UnreadableError(f"{self.path}: longer than {MAX_JSON_CHARS} characters", hint="JSON lines may be of any length")
        try:
            return _JSON.decode(text)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{self.path}: not valid JSON: {error}") from error

    @cached_property
    def _lists(self) -> dict[str, list[Any]] | None:
        if not isinstance(self._value, dict):
            return None
        lists = {key: column for key, column in self._value.items() if isinstance(column, list)}
        if len({len(column) for column in lists.values()}) != 1:
            raise UnreadableError(f"{self.path}: a JSON list file holds one list of objects, or lists of one length")
        return lists

    @cached_property
    def _records(self) -> list[dict[str, Any] | None]:
        if self._lists is not None:
            return [dict(zip(self._lists, cells, strict=True)) for cells in zip(*self._lists.values(), strict=True)]
        if not isinstance(self._value, list):
            raise UnreadableError(f"{self.path}: a JSON list file holds one list of objects, or lists of one length")
        return [record if isinstance(record, dict) else None for record in self._value]

    def _names(self) -> list[str]:
        return list(self._lists) if self._lists is not None else _keys(iter(self._records))

    def _count(self) -> int:
        return len(self._records)

    def _read(self, start: int, stop: int) -> Iterator[Raw]:
        for row in range(start, stop, CHUNK_ROWS):
            yield columns(self._records[row : min(row + CHUNK_ROWS, stop)], self.used)


class _Gunzip(gzip.GzipFile):
    """A compressed file that may not grow without end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.room = max(GZIP_FREE_BYTES, GZIP_RATIO * path.stat().st_size)

    def read1(self, size: int = -1) -> bytes:
        data = super().read1(size)
        self.room -= len(data)
        if self.room < 0:
            raise gzip.BadGzipFile(
                f"it grows to more than {GZIP_FREE_BYTES >> 20} MiB and {GZIP_RATIO} times its size; unpack it if that is right"
            )
        return data


def open_text(path: Path) -> IO[str]:
    """Open a text file, compressed or not; bytes that are no UTF-8 come as lone surrogates."""
    data = _Gunzip(path) if path.suffix == ".gz" else path.open("rb")
    return io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape", newline="")


def parse_object(line: str | None) -> dict[str, Any] | None:
    """Return the object of a line of strict JSON; null for anything else."""
    try:
        value = None if line is None else _JSON.decode(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _keys(records: Iterator[dict[str, Any] | None]) -> list[str]:
    good = (record for record in records if record is not None)
    return list(dict.fromkeys(key for record in islice(good, _NAMING_RECORDS) for key in record))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or len(text) > _MAX_DIGITS:
        raise ValueError(f"{text:.20} is not a number of JSON, or too long a one")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
