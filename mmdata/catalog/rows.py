"""Raw rows of a published list into rows: ids, texts made safe, documents unrolled into blocks.

Decided here: `sample_id` is the entry's own id where that is 32 lower-case hex digits (DataComp's uid), else 128 bits of
SHA-256 over entry, file name and row number. Texts lose NUL characters and are cut at 64 KiB on a character boundary.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from mmdata.catalog.entry import Entry
from mmdata.catalog.files import Raw
from mmdata.schema import BASE_FIELDS, CAPTION, OUTCOME

MAX_TEXT_BYTES = 64 * 1024
MAX_BLOCKS = 65_535  # what the index of a corpus can count
_HEX32 = re.compile(r"[0-9a-f]{32}")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


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


def to_rows(entry: Entry, raw: Raw, parts: dict[str, str], origin: Origin) -> pa.Table:
    """Return rows with the base columns, the carried columns and `_outcome`."""
    documents = entry.shape == "documents"
    blocks = list(_document_blocks(raw, parts)) if documents else _pair_blocks(raw, parts)
    ids = _sample_ids(raw, parts, origin, unique=documents)
    captions = _captions(entry, raw)
    carried, wrong = _carry(entry, raw)
    bad = [block.bad or block.raw_row in wrong for block in blocks]
    picked = pa.array([block.raw_row for block in blocks], pa.int64())
    base = {
        "sample_id": pa.array([ids[block.raw_row] for block in blocks], pa.string()),
        "position": pa.array([block.position for block in blocks], pa.int32()),
        "document": pa.array([documents] * len(blocks), pa.bool_()),
        "url": pa.array([block.url for block in blocks], pa.string()),
        "text": pa.array([block.text for block in blocks], pa.string()),
        "media": pa.array([entry.media if block.url is not None or block.bad else None for block in blocks], pa.string()),
        "source": pa.array([origin.source] * len(blocks), pa.string()),
        "captions": captions.take(picked),
    }
    outcome = pa.array(["bad_row" if flag else None for flag in bad], pa.string())
    schema = pa.schema([*BASE_FIELDS, *entry.carried(), pa.field(OUTCOME, pa.string())])
    return pa.table({**base, **{name: column.take(picked) for name, column in carried.items()}, OUTCOME: outcome}, schema=schema)


def _pair_blocks(raw: Raw, parts: dict[str, str]) -> list[_Block]:
    urls = raw.columns[parts["url"]]
    texts = raw.columns[parts["text"]] if "text" in parts else [None] * raw.num_rows
    return [
        _Block(row, 0, _safe(url), clean_text(_safe(text)), wrong or not _plausible(url) or not _is_text(text))
        for row, (url, text, wrong) in enumerate(zip(urls, texts, raw.bad, strict=True))
    ]


def _document_blocks(raw: Raw, parts: dict[str, str]) -> Iterator[_Block]:
    """Unroll `images[i] | texts[i]`, of which exactly one is given, as OBELICS has them."""
    columns = (raw.columns[parts["images"]], raw.columns[parts["texts"]], raw.bad)
    for row, (images, texts, bad) in enumerate(zip(*columns, strict=True)):
        if bad or not _aligned(images, texts):
            yield _Block(row, 0, None, None, True)
            continue
        for position, (url, text) in enumerate(zip(images, texts, strict=True)):
            yield _Block(row, position, _safe(url), clean_text(text), url is not None and not _plausible(url))


def _aligned(images: object, texts: object) -> bool:
    return (
        isinstance(images, list)
        and isinstance(texts, list)
        and 0 < len(images) == len(texts) <= MAX_BLOCKS
        and all((url is None) != (text is None) for url, text in zip(images, texts, strict=True))
        and all(_is_text(value) for value in (*images, *texts))
    )


def clean_text(text: str | None) -> str | None:
    """Return a text without NUL, valid as UTF-8 and at most 64 KiB; null stays null."""
    if text is None:
        return None
    data = text.replace("\0", "").encode("utf-8", errors="replace")
    return data[:MAX_TEXT_BYTES].decode("utf-8", errors="ignore")


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _safe(value: object) -> str | None:
    """Return a value if it is text, with what UTF-8 cannot hold replaced."""
    return value.encode("utf-8", errors="replace").decode() if isinstance(value, str) else None


def _plausible(url: object) -> bool:
    return isinstance(url, str) and bool(url) and _CONTROL.search(url) is None


def _sample_ids(raw: Raw, parts: dict[str, str], origin: Origin, *, unique: bool) -> list[str]:
    """Return the id of each raw row. Blocks are held together by their document's id, so that may not repeat."""
    own = raw.columns[parts["sample_id"]] if "sample_id" in parts else [None] * raw.num_rows
    ids, seen = [], set()
    for row, value in enumerate(own):
        good = isinstance(value, str) and _HEX32.fullmatch(value) and not (unique and value in seen)
        ids.append(value if good else _hash_id(origin, origin.first_row + row))
        seen.add(value if isinstance(value, str) else None)
    return ids


def _hash_id(origin: Origin, row: int) -> str:
    return hashlib.sha256(f"{origin.source}\0{origin.file}\0{row}".encode()).hexdigest()[:32]


def _captions(entry: Entry, raw: Raw) -> pa.Array:
    """Return the further captions of each raw row: texts, or lists of texts; what is neither is no caption."""
    rows: list[list[dict[str, str | None]]] = [[] for _ in range(raw.num_rows)]
    for name in entry.columns.captions:
        for row, value in zip(rows, raw.columns[name], strict=True):
            texts = value if isinstance(value, list) else [value]
            row.extend({"text": clean_text(text), "kind": name} for text in texts if isinstance(text, str))
    return pa.array([row or None for row in rows], pa.list_(CAPTION))


def _carry(entry: Entry, raw: Raw) -> tuple[dict[str, pa.Array], set[int]]:
    """Return the carried columns, and the raw rows of which a value is not of its column's type."""
    columns: dict[str, pa.Array] = {}
    wrong: set[int] = set()
    for field in entry.carried():
        values = raw.columns[field.name]
        try:
            columns[field.name] = pa.array(values, field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError):
            cells = [_cell(value, field.type) for value in values]
            wrong |= {row for row, (_, good) in enumerate(cells) if not good}
            columns[field.name] = pa.array([value for value, _ in cells], field.type)
    return columns, wrong


def _cell(value: object, kind: pa.DataType) -> tuple[object, bool]:
    """Return one value as its column wants it, and whether that was possible. An empty cell of a CSV is null."""
    if value is None or (value == "" and not pa.types.is_string(kind)):
        return None, True
    try:
        text = _safe(value) if isinstance(value, str) else value
        if pa.types.is_string(kind):
            return str(text), True
        number = pa.scalar(text, pa.string()).cast(kind) if isinstance(text, str) else pa.scalar(text).cast(kind)
        return number.as_py(), True
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError):
        return None, False
