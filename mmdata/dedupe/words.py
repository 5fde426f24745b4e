"""Words of texts, and runs of them: what n-grams and shingles are made of.

Decided here: texts are read in NFKC and lower case. A word is a run of letters, marks and digits (Unicode's categories L, M
and N, as Python's tables have them); all else parts words and counts for nothing, so "don't" is two words and an emoji none.
Chinese, Japanese, Thai, Lao, Burmese and Khmer put no spaces between words: each of their letters, with its marks, is a word,
and n words are n characters there, about half as much text as in a script with spaces. A word is known by 64 bits of its first
256 bytes, and a run of words by 64 bits; the same on every machine, and for ever: a reference keeps them.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.dedupe.exact import hashes_of_spans, lowered
from mmdata.storage.digest import mix64

_AT_ONCE = 1 << 22  # bytes: more leaves the processor's caches
_LONGEST = 256  # bytes of a word that are read: one of megabytes is no word
_STEP = np.uint64(0xD1342543DE82EF95)  # runs are polynomials in it (Steele and Vigna's multiplier, 2021): order counts

# Kinds of characters: what parts words; letters of words; letters that are words; marks of the one and of the other.
_GAP, _LETTER, _WORD, _MARK, _MARK_OF_WORD = range(5)
_BEGINS = np.array(  # whether a word begins, by the kind of the character before, and its own
    [
        [0, 1, 1, 1, 1],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0],
    ],
    bool,
).ravel()

_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x323AF),
)  # fmt: skip
_SELECTORS = range(0xFE00, 0xFE10)  # they choose how a character is drawn, an emoji say, and are marks of nothing
_NO_MORE = 0x323B0  # no letters, marks or digits from here on


@dataclass(frozen=True)
class Pieces:
    """Hashes of pieces of texts: those of text i are hash_S[first_N[i] : first_N[i + 1]].

    hash_S   (S,) uint64      first_N   (N + 1,) int64
    """

    hash_S: np.ndarray
    first_N: np.ndarray

    def num_N(self) -> np.ndarray:
        """Return how many each text has, (N,) int64."""
        return np.diff(self.first_N)

    def text_S(self) -> np.ndarray:
        """Return the text of each piece, (S,) int64."""
        return np.repeat(np.arange(len(self.first_N) - 1), self.num_N())


def runs_of(texts: pa.ChunkedArray, num: int) -> Pieces:
    """Return the runs of `num` words in each text, in order; of a text of fewer words the one run of all of them.

    A run of fewer words than `num` is like no run of `num` words, and a null text, or one without words, has none.
    """
    parts = [_runs(_words(*_bytes_of(lowered(part))), num) for part in slices(texts, _AT_ONCE)]
    first = np.concatenate([np.zeros(1, np.int64), *(part.num_N() for part in parts)])
    return Pieces(np.concatenate([np.zeros(0, np.uint64), *(part.hash_S for part in parts)]), np.cumsum(first))


def words_of(texts: pa.ChunkedArray) -> Pieces:
    """Return the words of each text, in order."""
    return runs_of(texts, 1)


def slices(texts: pa.ChunkedArray, num_bytes: int) -> Iterator[pa.Array]:
    """Yield texts in order, as many at a time as have `num_bytes` together, one at least; "" for null."""
    for chunk in texts.chunks:
        array = chunk.cast(pa.large_string()).fill_null("")
        ends, row = _offsets(array), 0
        while row < len(array):
            until = max(int(np.searchsorted(ends, ends[row] + num_bytes, side="right")) - 1, row + 1)
            yield array[row:until]
            row = until


def _bytes_of(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of all texts, (B,) uint8, and where each begins and the last ends, (N + 1,) int64."""
    first, data = _offsets(array), array.buffers()[2]
    text = np.frombuffer(data, np.uint8)[first[0] : first[-1]] if data else np.zeros(0, np.uint8)
    return text, first - first[0]


def _offsets(array: pa.Array) -> np.ndarray:
    """Return where each text begins and the last ends, (N + 1,) int64."""
    if not len(array):
        return np.zeros(1, np.int64)
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]


def _words(data: np.ndarray, first_N: np.ndarray) -> Pieces:
    kind = _kinds(data)
    before = np.empty_like(kind)
    before[1:] = kind[:-1]
    before[first_N[:-1][np.diff(first_N) > 0]] = _GAP  # every text begins anew
    begins = _BEGINS[before * 5 + kind] & ((data & 0xC0) != 0x80)  # the later bytes of a character begin nothing
    edges = np.flatnonzero(begins | (kind == _GAP))
    number = np.flatnonzero(begins[edges])
    start, end = edges[number], np.append(edges, len(data))[number + 1]
    return Pieces(hashes_of_spans(data, start, np.minimum(end - start, _LONGEST)), np.searchsorted(start, first_N))


def _kinds(data: np.ndarray) -> np.ndarray:
    """Return the kind of the character that each byte of some UTF-8 belongs to, (B,) uint8."""
    kind: np.ndarray = _table()[data]  # of ASCII; the others' follow
    lead = np.flatnonzero(data >= 0xC0)
    if not len(lead):
        return kind
    size = 2 + (data[lead] >= 0xE0) + (data[lead] >= 0xF0)
    point = data[lead] & np.array([0, 0, 0x1F, 0x0F, 0x07])[size]
    more = [(size > step, lead[size > step] + step) for step in (1, 2, 3)]
    for longer, at in more:
        point[longer] = point[longer] << 6 | data[at] & 0x3F
    kind[lead] = _table()[point]
    for longer, at in more:
        kind[at] = _table()[point[longer]]
    return kind


@cache
def _table() -> np.ndarray:
    """Return the kind of each character, (all of Unicode,) uint8."""
    table = np.zeros(0x110000, np.uint8)
    first = np.array([ord(unicodedata.category(chr(point))[0]) for point in range(_NO_MORE)])
    unspaced = np.zeros(_NO_MORE, bool)
    for start, last in _UNSPACED:
        unspaced[start : last + 1] = True
    table[:_NO_MORE][(first == ord("L")) | (first == ord("N"))] = _LETTER
    table[:_NO_MORE][(first == ord("L")) & unspaced] = _WORD
    table[:_NO_MORE][first == ord("M")] = _MARK
    table[:_NO_MORE][(first == ord("M")) & unspaced] = _MARK_OF_WORD
    table[_SELECTORS] = _GAP
    return table


def _runs(words: Pieces, num: int) -> Pieces:
    hash_W, first, num_N = words.hash_S, words.first_N[:-1], words.num_N()
    size_N = np.minimum(num_N, num)  # words a run
    runs_N = np.maximum(num_N - num + 1, num_N > 0)
    end_N = np.cumsum(runs_N)
    at_S = np.arange(int(end_N[-1])) + np.repeat(first - (end_N - runs_N), runs_N)
    whole = hash_W[: max(len(hash_W) - num + 1, 0)].copy()
    for step in range(1, num):
        whole *= _STEP
        whole += hash_W[step : step + len(whole)]
    run_S = whole[np.minimum(at_S, len(whole) - 1)] if len(whole) else np.zeros(len(at_S), np.uint64)
    short = np.flatnonzero((num_N > 0) & (num_N < num))
    run_S[end_N[short] - 1] = _short(hash_W, first[short], num_N[short])
    return Pieces(mix64(run_S + np.repeat(size_N, runs_N).astype(np.uint64)), np.append(0, end_N))


def _short(hash_W: np.ndarray, first: np.ndarray, size: np.ndarray) -> np.ndarray:
    run: np.ndarray = hash_W[first]
    for step in range(1, int(size.max(initial=0))):
        longer = size > step
        run[longer] = run[longer] * _STEP + hash_W[first[longer] + step]
    return run


def whole_texts(table: pa.Table) -> pa.Table:
    """Return the text of each sample: the texts of its rows, in `position` order, a newline between two; nulls left out.

    table    `sample_id`, `position`, `text`
    returns  `sample_id`, ascending, and `text`, large_string: null where no row has one
    """
    import polars as pl  # a worker that only downloads does not need it

    frame = pl.DataFrame(pl.from_arrow(table.select(["sample_id", "position", "text"])))
    there = pl.col("text").drop_nulls()
    whole = pl.when(pl.col("text").count() > 0).then(there.str.join("\n")).alias("text")
    found = frame.sort("sample_id", "position", "text").group_by("sample_id", maintain_order=True).agg(whole)
    return found.to_arrow().cast(pa.schema([("sample_id", pa.string()), ("text", pa.large_string())]))


def whole_at_first(table: pa.Table, column: str) -> pa.ChunkedArray:
    """Return `whole_texts` of a column, each at the first row of its sample by `position`, and null at its other rows.

    table    (N rows) `sample_id`, `position`, the column; samples are whole in it
    """
    whole = whole_texts(table.select(["sample_id", "position", column]).rename_columns(["sample_id", "position", "text"]))
    ids = table.column("sample_id").combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((table.column("position").to_numpy(), ids))
    first = order[np.append(True, np.diff(ids[order]) > 0)[: len(order)]]
    place = pc.index_in(table.column("sample_id").take(pa.array(first)), whole.column("sample_id").combine_chunks())
    at_N = np.full(table.num_rows, -1)
    at_N[first] = place.to_numpy()
    return whole.column("text").take(pa.array(at_N, mask=at_N < 0))
