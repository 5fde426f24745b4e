"""Parquet lists.

Decided here: types are checked before the run, and every page of a file that is also hashed whole is decoded once, with
its checksum, so that damage is named before anything has started. That streams through a few MiB and takes about as long
as the hash. What the footer counts is believed only where it is plausible. Extension types are refused where they would be
read: what they mean is up to code, and a file names no code.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.catalog.lists import CHUNK_ROWS, WHOLE_BYTES, ListFile, Raw, UnreadableError
from mmdata.errors import ConfigError

MAX_ROWS = 1_000_000_000
_BUFFER_BYTES = 1 << 20


class ParquetList(ListFile):
    """A parquet file: refused whole when it is damaged."""

    kind = "parquet"

    def _names(self) -> list[str]:
        with self._open() as file:
            return list(file.schema_arrow.names)

    def _count(self) -> int:
        with self._open() as file:
            self._refuse_types(file.schema_arrow)
            claimed = file.metadata.num_rows
        rows = self._ends[-1] if self._ends else 0
        if not 0 <= rows == claimed <= MAX_ROWS:
            hint = f"fetch it again; a file may have up to {MAX_ROWS:,} rows"
            raise UnreadableError(f"{self.path}: its footer counts {claimed} rows, its row groups {rows}", hint=hint)
        if self.path.stat().st_size <= WHOLE_BYTES:
            found = sum(batch.num_rows for batch in self._batches(0))
            if found != rows:
                raise UnreadableError(f"{self.path}: its footer counts {rows} rows, its pages {found}", hint="fetch it again")
        return rows

    def _read(self, start: int, stop: int) -> Iterator[Raw]:
        group = bisect_right(self._ends, start)
        first = self._ends[group - 1] if group else 0
        row, (held, batches) = self._leave_off(first, start) or (first, (None, self._batches(group)))
        while row < stop and (batch := held or next(batches, None)) is not None:
            low, high = max(start - row, 0), min(stop - row, batch.num_rows)
            held = batch.slice(high) if high < batch.num_rows else None
            row += high
            if low < high:
                yield self._raw(batch.slice(low, high - low))
        self._place = row, (held, batches)

    @cached_property
    def _ends(self) -> list[int]:
        """The number of rows up to the end of each row group."""
        with self._open() as file:
            meta = file.metadata
        return list(accumulate(meta.row_group(group).num_rows for group in range(meta.num_row_groups)))

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER_BYTES)

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from a row group on. Threads and reading ahead would hold whole columns; this holds a page of each."""
        with self._open() as file:
            self._refuse_types(file.schema_arrow)
            used = [name for name in self.used if _is_plain(file.schema_arrow.field(name).type)]
            groups = list(range(group, file.metadata.num_row_groups))
            yield from file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=used, use_threads=False)

    def _raw(self, batch: pa.RecordBatch) -> Raw:
        given = {name: _values(batch.column(name)) for name in batch.schema.names}
        columns = {name: given.get(name, [None] * batch.num_rows) for name in self.used}
        return Raw(columns, [False] * batch.num_rows)

    def _refuse_types(self, schema: pa.Schema) -> None:
        """Refuse a column that cannot hold what is read from it; an id of another type is no id of ours, and is not read."""
        roles = {name: "boxes" if kind == "boxes" else "carry" for name, kind in self.entry.carry.items()}
        roles |= dict.fromkeys(self.entry.columns.captions, "captions")
        roles |= {name: part for part, name in self.parts.items() if part in _ROLES}
        for name, role in roles.items():
            field = schema.field(name)
            wanted, fits = _ROLES[role]
            if _is_extension(field):
                raise UnreadableError(f"{self.path}: column `{name}` has an extension type", hint="write it as a plain column")
            if not fits(field.type):
                raise ConfigError(f"{self.path}: column `{name}` is {field.type}, not {wanted}", hint="name another column")


def _values(array: pa.Array) -> list[Any]:
    """Return values; texts that are no UTF-8 come with lone surrogates in them."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        nested = _is_texts(array.type)
        values = array.cast(pa.list_(pa.binary()) if nested else pa.binary()).to_pylist()
        return [_decoded(value) for value in values]


def _decoded(value: Any) -> Any:  # noqa: ANN401 - bytes, a list of them, or null
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return None if value is None else value.decode("utf-8", errors="surrogateescape")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null))


def _is_texts(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_text(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_number(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal))


def _is_plain(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_texts(kind) or _is_number(kind) or _is_boxes(kind)


def _is_boxes(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type)


def _is_extension(field: pa.Field) -> bool:
    """Say whether a field, or what it holds lists of, is of an extension type, known here or not."""
    if isinstance(field.type, pa.BaseExtensionType) or _EXTENSION in (field.metadata or {}):
        return True
    return _is_list(field.type) and _is_extension(field.type.value_field)


_EXTENSION = b"ARROW:extension:name"
_ROLES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "url": ("text", _is_text),
    "text": ("text", _is_text),
    "images": ("lists of text", _is_texts),
    "texts": ("lists of text", _is_texts),
    "captions": ("text or lists of it", lambda kind: _is_text(kind) or _is_texts(kind)),
    "carry": ("text, a number or a flag", lambda kind: _is_text(kind) or _is_number(kind)),
    "boxes": ("lists of boxes", lambda kind: _is_boxes(kind) or _is_text(kind)),
}
