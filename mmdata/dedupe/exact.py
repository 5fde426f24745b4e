"""Exact duplicates: rows of which some values are equal.

Decided here: the order in which rows arrive never matters. Copies are ranked by rules (see `groups.ranks`), then by
(sample_id, position, partition, row), so that any split of the work gives the same keeper. Values themselves are compared;
the hash below only says which task a value goes to, and a collision of it joins nobody.
"""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.dedupe.groups import dropped, ranks
from mmdata.schema import PARTITION, VERDICT_FIELDS

_DERIVED = re.compile(r"(normal|folded)\((.+)\)")
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: multiplying by it spreads low bits upwards
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def column_of(name: str) -> str:
    """Return the column that `by` is made of: itself, or what stands in `normal(...)` or `folded(...)`."""
    match = _DERIVED.fullmatch(name)
    return match[2] if match else name


def values_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return what is compared.

    normal(COLUMN)   urls: scheme and host in lower case, the scheme's own port, the fragment and a lone final slash left out;
                     http counts as https. Path and query stay as they are: servers tell them apart
    folded(COLUMN)   texts: NFKC, lower case, runs of white space as one space, none at the ends
    COLUMN           the value itself
    """
    match = _DERIVED.fullmatch(name)
    column = table.column(column_of(name))
    if match is None:
        return column
    if match[1] == "normal":
        return pa.chunked_array([pa.array([None if url is None else normal_url(url) for url in column.to_pylist()], pa.string())])
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(lowered(column), r"[\s\p{Z}]+", " "))


def lowered(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts in NFKC and lower case."""
    return pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))


def normal_url(url: str) -> str:
    """Return a url as `normal` compares it; one that cannot be read stays as it is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        return url
    user, at, host = parts.netloc.rpartition("@")
    host = host.lower().removesuffix(_DEFAULT_PORTS[scheme])
    path = parts.path if parts.path != "/" or parts.query else ""
    return f"https://{user}{at}{host}{path}" + (f"?{parts.query}" if parts.query else "")


def bucket_of(values: pa.ChunkedArray, num_buckets: int) -> np.ndarray:
    """Return a bucket in 0..num_buckets for each value, by a hash that is the same on every machine.

    values   N texts, bytes, numbers or flags
    returns  (N,) int64
    """
    buckets: np.ndarray = ((hashes_of(values) >> np.uint64(33)) % np.uint64(num_buckets)).astype(np.int64)
    return buckets


def hashes_of(values: pa.ChunkedArray) -> np.ndarray:
    """Return 64 bits for each value, (N,) uint64: of texts eight bytes of all at a time. It keeps no secret, and is no digest."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        parts = [_of_bytes(chunk.cast(pa.large_binary())) for chunk in values.chunks if len(chunk)]
    elif pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        parts = [_mixed(np.asarray(chunk.fill_null(0)).astype(np.int64).view(np.uint64)) for chunk in values.chunks if len(chunk)]
    else:
        if pa.types.is_floating(kind):
            values = pc.add(values, pa.scalar(0, kind))  # -0.0 is 0.0
        parts = [_of_bytes(chunk.cast(pa.string()).cast(pa.large_binary())) for chunk in values.chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _of_bytes(array: pa.Array) -> np.ndarray:
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    base = int(ends[0])
    text = np.frombuffer(data, np.uint8)[base : int(ends[-1])] if data else np.zeros(0, np.uint8)
    return hashes_of_spans(text, ends[:-1] - base, ends[1:] - ends[:-1])


def hashes_of_spans(data: np.ndarray, first_N: np.ndarray, size_N: np.ndarray) -> np.ndarray:
    """Return 64 bits for each stretch of some bytes, (N,) uint64: those that `hashes_of` gives for a value of the same bytes.

    data              (B,) uint8
    first_N, size_N   (N,) int64, where each begins, and how many bytes it has
    """
    text = np.zeros(len(data) + 8, np.uint8)  # a word that starts at the last byte ends in zeros
    text[:-8] = data
    word_at = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))  # a word from every byte on
    hashes = _mixed(size_N.astype(np.uint64))
    at, left, rows = first_N, size_N, np.arange(len(size_N))
    while True:
        more = left > 0
        if not more.all():
            at, left, rows = at[more], left[more], rows[more]
        if not len(rows):
            found: np.ndarray = hashes
            return found
        unused = (8 * np.maximum(8 - left, 0)).astype(np.uint64)
        word = word_at[at] << unused  # of a last word the bytes behind the text fall out
        hashes[rows] = _mixed(hashes[rows] ^ word)
        at, left = at + 8, left - 8


def _mixed(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(32))) * _ODD
    mixed: np.ndarray = words ^ (words >> np.uint64(29))
    return mixed


def exact_verdicts(table: pa.Table, by: str | Sequence[str], best: str | None = None, rules: Sequence[str] = ()) -> pa.Table:
    """Judge all rows of a table: one of each group of equal `by` is kept, the others name it as their keeper.

    table    columns `_partition`, `_row`, `sample_id`, `position`, `by`, and what ranks them: `best`, then the rules
    returns  verdicts of the dropped rows, sorted by (`_partition`, `_row`), with their own `best` as value
    """
    import polars as pl  # a worker that only downloads does not need it

    names = [by] if isinstance(by, str) else list(by)
    frame = pl.DataFrame(pl.from_arrow(table.select(names)))
    # Most rows have no copy: only those that do are ranked.
    copies = pa.array(np.flatnonzero(frame.is_duplicated().to_numpy()))
    table = table.take(copies)
    if not table.num_rows:
        return pa.schema([pa.field(PARTITION, pa.int64()), *VERDICT_FIELDS]).empty_table()
    group = frame[copies.to_numpy()].select(group=pl.struct(names).rank("dense"))["group"].to_numpy().astype(np.int64)
    rank = ranks(table, [*([best] if best else []), *rules])
    order = np.lexsort((rank, group))
    first = np.ones(len(order), bool)
    first[1:] = group[order[1:]] != group[order[:-1]]
    keeper = np.empty(len(order), np.int64)
    keeper[order] = order[np.flatnonzero(first)[np.cumsum(first) - 1]]
    values = table.column(best).cast(pa.float32(), safe=False).combine_chunks() if best else pa.nulls(len(order), pa.float32())
    return dropped(table, keeper, values, "duplicate")
