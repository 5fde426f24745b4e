"""Column files: how they are written, read back column by column, and digested.

A digest is of values, wherever they lie in memory: rows that were just computed and the same rows read back have one digest.
The writer notes it in the file, so that nobody who needs all of its rows works it out again.
"""

import errno
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmdata.engine.beside import Beside, named_beside
from mmdata.schema import OUTCOME, REASON, ROW

DIGEST, FIRST = b"digest", b"first_row"  # what a file notes: digest of its rows; the first of them if none is missing after it
_FEW = ("reason", OUTCOME)  # columns of few different texts
_MANY = 32


def read_parquet(data: bytes, columns: Sequence[str] | None = None, coded: Sequence[str] = ()) -> pa.Table:
    """Read a small parquet file in this thread: Arrow's own threads must not hold Python's bytes when a process ends.

    columns  by default all      coded  columns of texts that are wanted as a dictionary and places in it
    """
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(coded), pre_buffer=False)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as a parquet file: row numbers, which grow, as differences, and nothing that takes time without saving."""
    options: dict[str, Any] = {"compression": "zstd"}
    if not any(pa.types.is_nested(field.type) for field in table.schema):  # their parts have names of their own
        measured = {field.name for field in table.schema if pa.types.is_floating(field.type)}  # they hardly ever repeat
        options["compression"] = {name: "none" if name in measured else "zstd" for name in table.column_names}
        options["use_dictionary"] = [name for name in table.column_names if name != ROW and name not in measured]
        options["column_encoding"] = {ROW: "DELTA_BINARY_PACKED"} if ROW in table.column_names else None
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_statistics=False, **options)
    return buffer.getvalue()


def growing(rows: np.ndarray) -> bool:
    """Say whether each row number is above the one before."""
    return bool(np.all(rows[1:] > rows[:-1]))


def dense(rows: np.ndarray) -> bool:
    """Say whether none is missing in between of row numbers that grow."""
    return len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1


def places_in(sorted_: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return where rows stand, or would stand, among sorted ones without repeats."""
    if dense(sorted_):
        return np.asarray(np.clip(rows - sorted_[0], 0, len(sorted_)))
    return np.asarray(np.searchsorted(sorted_, rows))


class ColumnFile:
    """A column file that was opened; its columns are read when they are asked for.

    damaged  gives the error for a file that cannot be read back
    beside   returns the embeddings of a column, of its flags and what the file says of the array that lies beside it
    coded    its columns of type `REASON`
    """

    def __init__(
        self,
        source: Any,  # noqa: ANN401 - a path or bytes of Arrow's
        damaged: Callable[[Exception], Exception],
        beside: Callable[[pa.ChunkedArray, Beside], pa.Array],
        coded: Sequence[str] = (),
    ) -> None:
        self._damaged, self._beside = damaged, beside
        try:
            self._file = pq.ParquetFile(source, read_dictionary=list(coded), pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._told(error) from error
        self.metadata: dict[bytes, bytes] = self._file.schema_arrow.metadata or {}

    def _told(self, error: Exception) -> Exception:
        """Return what is wrong: the file, unless the system says that it could not be read now."""
        passing = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.EINTR, errno.ENOMEM)
        return error if passing else self._damaged(error)

    def named(self, kind: pa.DataType) -> list[str]:
        """Return the names of the columns of a type."""
        return [field.name for field in self._file.schema_arrow if field.type == kind]

    def rows(self) -> np.ndarray:
        """Return the row numbers, (N,) int64, as they lie."""
        if FIRST in self.metadata:
            first = int(self.metadata[FIRST])
            return np.arange(first, first + self._file.metadata.num_rows)
        rows: np.ndarray = self.read([ROW]).column(ROW).to_numpy()
        return rows

    def read(self, names: Sequence[str] | None = None) -> pa.Table:
        """Return columns, by default all."""
        try:
            table = self._file.read(columns=None if names is None else list(names), use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._told(error) from error
        for name, told in named_beside(self.metadata).items():
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, self._beside(table.column(name), told))
        return table.replace_schema_metadata(None)


def digest_table(table: pa.Table) -> str:
    """Return SHA-256 of the names, types and values of a table, as hex."""
    sink = hashlib.sha256(str(table.num_rows).encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        sink.update(f"\0{name}\0{column.type}\0".encode())
        array = column.combine_chunks()
        for leaf in _coded(array) if name in _FEW else _leaves(array):
            _feed(sink, leaf)
    return sink.hexdigest()


def as_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return an array as another type."""
    if kind != REASON:
        return array.cast(kind)
    return array if array.type == kind else array.cast(pa.string()).dictionary_encode()


def _coded(texts: pa.Array) -> Iterator[pa.Array]:
    """Yield the different texts in the order of their first rows, and the place of each row's among them."""
    if texts.null_count == len(texts):
        yield texts.is_valid()
        return
    coded = as_type(texts, REASON)
    codes = coded.indices.fill_null(-1).to_numpy()
    used, first = np.unique(codes, return_index=True) if len(coded.dictionary) > _MANY else _firsts(codes, len(coded.dictionary))
    order = used[np.argsort(first)]
    order = order[order >= 0]
    places = np.full(len(coded.dictionary) + 1, -1, np.int32)
    places[order] = np.arange(len(order))
    yield from (coded.dictionary.take(pa.array(order)), pa.array(places[codes]))


def _firsts(codes: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a few codes there are, and where each stands first."""
    firsts = [(code, int(np.argmax(here))) for code in range(num) if (here := codes == code).any()]
    return np.asarray([code for code, _ in firsts], np.int64), np.asarray([first for _, first in firsts], np.int64)


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """Yield what an array holds as flat ones: who is there, how long lists are, values."""
    if pa.types.is_list(array.type):
        yield from (array.is_valid(), array.value_lengths().fill_null(0))
        yield from _leaves(array.flatten())
    elif pa.types.is_fixed_size_list(array.type):
        yield array.is_valid()
        yield from _leaves(array.flatten())
    elif pa.types.is_struct(array.type):
        yield array.is_valid()
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_nested(array.type):
        yield pa.array(array.to_pylist(), array.type)
    else:
        yield array


def _feed(sink: Any, array: pa.Array) -> None:  # noqa: ANN401 - hashlib names no type
    """Hash a flat array: which values are null, then the others, with zeros or empty texts for nulls."""
    num, kind = len(array), array.type
    sink.update(f"{num} {array.null_count}".encode())
    if array.null_count == num:
        return
    if array.null_count:
        sink.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        _feed_texts(sink, array.fill_null("" if pa.types.is_string(kind) else b"") if array.null_count else array)
    elif pa.types.is_boolean(kind):
        sink.update(np.packbits(array.fill_null(False).to_numpy(zero_copy_only=False)))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        sink.update(_numbers(array))
    else:  # of another package's stage: as Arrow writes it, after a copy that leaves nothing in its gaps
        with pa.ipc.new_stream(stream := pa.BufferOutputStream(), pa.schema([("x", kind)])) as writer:
            writer.write_table(pa.table({"x": array.take(pa.array(np.arange(num)))}))
        sink.update(stream.getvalue())


def _numbers(array: pa.Array) -> bytes | np.ndarray:
    values: np.ndarray = pc.fill_null(array, pa.scalar(0, array.type)).to_numpy() if array.null_count else array.to_numpy()
    if values.dtype == np.int64 and dense(values) and growing(values):
        return f"from {values[0]}".encode()  # as the rows of a partition are, mostly
    return np.ascontiguousarray(values)


def _feed_texts(sink: Any, array: pa.Array) -> None:  # noqa: ANN401 - as above
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    sink.update(np.diff(ends))
    if data is not None:
        sink.update(data.slice(int(ends[0]), int(ends[-1] - ends[0])))
