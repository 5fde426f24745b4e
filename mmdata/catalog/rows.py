"""Raw rows of a published list into rows: ids, texts made safe, documents unrolled into blocks.

Decided here: `sample_id` is the entry's own id where that is 32 lower-case hex digits (DataComp's uid), else 128 bits of
SHA-256 over entry, file name and row number; another id of the entry's own is data, to be carried. Texts lose NUL
characters, what is no UTF-8 is replaced, and they are cut at 64 KiB on a character boundary; the row says which of that
was needed. A url is never mended: it would be another address.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from mmdata.catalog.entry import Entry
from mmdata.catalog.lists import Raw
from mmdata.schema import BASE_FIELDS, CAPTION, OUTCOME, REPAIRED

MAX_TEXT_BYTES = 64 * 1024
MAX_BLOCKS = 65_535  # what the index of a corpus can count
_HEX32 = re.compile(r"[0-9a-f]{32}")
_NO_URL = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_PYTHON_TYPES: dict[pa.DataType, set[type]] = {
    pa.string(): {str}, pa.bool_(): {bool}, pa.int32(): {int}, pa.int64(): {int},
    pa.float32(): {int, float}, pa.float64(): {int, float},
}  # fmt: skip
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Origin(NamedTuple):
    """Where raw rows come from: entry name, file name, number of the first row."""

    source: str
    file: str
    first_row: int


class _Block(NamedTuple):
    raw_row: int
    position: int
    url: str | None
    text: str | None
    bad: bool
    repairs: set[str]


def to_rows(entry: Entry, chunks: Iterable[Raw], parts: dict[str, str], origin: Origin, *, any_url: bool = False) -> pa.Table:
    """Return rows with the base columns, what was mended in them, the carried columns and `_outcome`.

    With `any_url` a pair whose url cannot be one is no bad row: whoever fetches it will find out.
    """
    schema = pa.schema([*BASE_FIELDS, REPAIRED, *entry.carried(), pa.field(OUTCOME, pa.string())])
    tables, seen = [schema.empty_table()], set[str]()
    for raw in chunks:
        columns = _columns(entry, raw, parts, any_url=any_url)
        picked = columns.pop("raw_row")
        ids = pa.array(_sample_ids(entry, _part(raw, parts, "sample_id"), origin, seen), pa.string())
        source = pa.array([origin.source] * len(picked), pa.string())
        tables.append(pa.table({"sample_id": ids.take(picked), "source": source, **columns}).select(schema.names).cast(schema))
        origin = origin._replace(first_row=origin.first_row + raw.num_rows)
    return pa.concat_tables(tables).combine_chunks()


def _columns(entry: Entry, raw: Raw, parts: dict[str, str], *, any_url: bool) -> dict[str, pa.Array]:
    """Return what a chunk's rows have but their ids and their source; `raw_row` says which row of the chunk each came from."""
    documents = entry.shape == "documents"
    repairs: list[set[str]] = [set() for _ in raw.bad]
    blocks = list(_document_blocks(raw, parts) if documents else _pair_blocks(raw, parts, any_url=any_url))
    captions = _captions(entry, raw, repairs)
    carried, wrong = _carry(entry, raw, repairs)
    picked = pa.array([block.raw_row for block in blocks], pa.int64())
    bad = ["bad_row" if block.bad or block.raw_row in wrong else None for block in blocks]
    mended = [",".join(sorted(block.repairs | repairs[block.raw_row])) or None for block in blocks]
    media = [entry.media if block.url is not None or block.bad else None for block in blocks]
    return {
        "raw_row": picked,
        "position": pa.array([block.position for block in blocks], pa.int32()),
        "document": pa.array([documents] * len(blocks), pa.bool_()),
        "url": pa.array([block.url for block in blocks], pa.string()),
        "text": pa.array([block.text for block in blocks], pa.string()),
        "media": pa.array(media, pa.string()),
        "captions": captions.take(picked),
        REPAIRED.name: pa.array(mended, pa.string()),
        **{name: column.take(picked) for name, column in carried.items()},
        OUTCOME: pa.array(bad, pa.string()),
    }


def _part(raw: Raw, parts: dict[str, str], part: str) -> list[Any]:
    """Return the values of the column that plays a part; nulls when none does."""
    return raw.columns[parts[part]] if part in parts else [None] * raw.num_rows


def _pair_blocks(raw: Raw, parts: dict[str, str], *, any_url: bool) -> Iterator[_Block]:
    columns = (_part(raw, parts, "url"), _part(raw, parts, "text"), raw.bad)
    for row, (url, text, bad) in enumerate(zip(*columns, strict=True)):
        repairs: set[str] = set()
        wrong = bad or not (any_url or _plausible(url)) or not _is_text(text)
        yield _Block(row, 0, _shown(url), clean_text(text, repairs) if isinstance(text, str) else None, wrong, repairs)


def _document_blocks(raw: Raw, parts: dict[str, str]) -> Iterator[_Block]:
    """Unroll `images[i] | texts[i]`, of which exactly one is given, as OBELICS has them."""
    columns = (_part(raw, parts, "images"), _part(raw, parts, "texts"), raw.bad)
    for row, (images, texts, bad) in enumerate(zip(*columns, strict=True)):
        if bad or not _aligned(images, texts):
            yield _Block(row, 0, None, None, True, set())
            continue
        for position, (url, text) in enumerate(zip(images, texts, strict=True)):
            repairs: set[str] = set()
            wrong = url is not None and not _plausible(url)
            yield _Block(row, position, _shown(url), clean_text(text, repairs), wrong, repairs)


def _aligned(images: object, texts: object) -> bool:
    return (
        isinstance(images, list)
        and isinstance(texts, list)
        and 0 < len(images) == len(texts) <= MAX_BLOCKS
        and all((url is None) != (text is None) for url, text in zip(images, texts, strict=True))
        and all(_is_text(value) for value in (*images, *texts))
    )


def clean_text(text: str | None, repairs: set[str]) -> str | None:
    """Return a text without NUL, valid as UTF-8 and at most 64 KiB; null stays null. `repairs` gets what had to be done."""
    if text is None:
        return None
    if "\0" in text:
        text = text.replace("\0", "")
        repairs.add("nul")
    text = _valid(text, repairs)
    if len(data := text.encode()) > MAX_TEXT_BYTES:
        text = data[:MAX_TEXT_BYTES].decode(errors="ignore")
        repairs.add("cut")
    return text


def _valid(text: str, repairs: set[str]) -> str:
    """Return a text that UTF-8 can hold."""
    if _SURROGATE.search(text) is None:
        return text
    repairs.add("utf8")
    return _SURROGATE.sub("\ufffd", text)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _plausible(url: object) -> bool:
    return isinstance(url, str) and 0 < len(url) <= MAX_TEXT_BYTES and _NO_URL.search(url) is None


def _shown(url: object) -> str | None:
    """Return a url as a row can hold it; one that needed mending is a bad row's."""
    return clean_text(url, set()) if isinstance(url, str) else None


def _sample_ids(entry: Entry, own: list[Any], origin: Origin, seen: set[str]) -> list[str]:
    """Return the id of each raw row. Blocks are held together by their document's id, so that may not repeat."""
    ids = []
    for row, value in enumerate(own, start=origin.first_row):
        good = is_hex_id(value) and not (entry.shape == "documents" and value in seen)
        ids.append(value if good else _hash_id(origin, row))
        seen.add(ids[-1])
    return ids


def is_hex_id(value: object) -> bool:
    """Say whether a value is 32 lower-case hex digits: 128 bits that can name a sample."""
    return isinstance(value, str) and _HEX32.fullmatch(value) is not None


def _hash_id(origin: Origin, row: int) -> str:
    return hashlib.sha256(f"{origin.source}\0{origin.file}\0{row}".encode()).hexdigest()[:32]


def _captions(entry: Entry, raw: Raw, repairs: list[set[str]]) -> pa.Array:
    """Return the further captions of each raw row: texts, or lists of texts; what is neither is no caption."""
    rows: list[list[dict[str, str | None]]] = [[] for _ in raw.bad]
    for name in entry.columns.captions:
        for row, mended, value in zip(rows, repairs, raw.columns.get(name, [None] * raw.num_rows), strict=True):
            texts = value if isinstance(value, list) else [value]
            row.extend({"text": clean_text(text, mended), "kind": name} for text in texts if isinstance(text, str))
    return pa.array([row or None for row in rows], pa.list_(CAPTION))


def _carry(entry: Entry, raw: Raw, repairs: list[set[str]]) -> tuple[dict[str, pa.Array], set[int]]:
    """Return the carried columns, and the raw rows of which a value is not of its column's type."""
    columns: dict[str, pa.Array] = {}
    wrong: set[int] = set()
    for field in entry.carried():
        values = raw.columns.get(field.name, [None] * raw.num_rows)
        try:
            columns[field.name] = _typed(values, field.type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            cells = [_cell(value, field.type, mended) for value, mended in zip(values, repairs, strict=True)]
            wrong |= {row for row, (_, good) in enumerate(cells) if not good}
            columns[field.name] = pa.array([value for value, _ in cells], field.type)
    return columns, wrong


def _typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return values as a column, or raise when they are not all of a type that needs no look at each."""
    if pa.types.is_list(kind):
        return pa.array([_boxes(value) for value in values], kind)
    types = set(map(type, values)) - {type(None)}
    if types <= {str} and not pa.types.is_string(kind):  # the cells of a CSV are all texts, and an empty one is null
        return pa.array([value or None for value in values], pa.string()).cast(kind)
    if not types <= _PYTHON_TYPES[kind]:  # Arrow would take 1.5 for 1
        raise pa.ArrowTypeError(f"{types} for {kind}")
    return pa.array(values, kind)


def _cell(value: object, kind: pa.DataType, repairs: set[str]) -> tuple[object, bool]:
    """Return one value as its column wants it, and whether that was possible. An empty cell of a CSV is null."""
    if value is None or (value == "" and not pa.types.is_string(kind)):
        return None, True
    if pa.types.is_list(kind):
        try:
            return _boxes(value), True
        except pa.ArrowException:
            return None, False
    text = _valid(value, repairs) if isinstance(value, str) else value
    try:
        if pa.types.is_string(kind):
            return (None, False) if isinstance(text, list | dict) else (str(text), True)
        number = pa.scalar(text, pa.string()).cast(kind) if isinstance(text, str) else pa.scalar(text).cast(kind)
        return number.as_py(), True
    except (pa.ArrowException, OverflowError, ValueError):
        return None, False


def _boxes(value: object) -> list[list[float]] | None:
    """Return boxes, from lists or their JSON; raise for what is no list of four numbers each: a face must not be overlooked."""
    if value is None or value == "":
        return None
    try:
        boxes: Any = json.loads(value) if isinstance(value, str) else value
        found = [[float(side) for side in box] for box in boxes]
    except (TypeError, ValueError, RecursionError) as error:
        raise pa.ArrowTypeError(f"no boxes: {error}") from None
    if not all(len(box) == 4 and all(map(math.isfinite, box)) for box in found):
        raise pa.ArrowTypeError("a box is four numbers")
    return found
