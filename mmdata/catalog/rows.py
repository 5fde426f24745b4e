"""Raw rows of a published list into rows: ids, texts made safe, documents unrolled into blocks.

Decided here: `sample_id` is the entry's own id where that is 32 lower-case hex digits (DataComp's uid), else 128 bits of
SHA-256 over entry, file name and row number. Texts lose NUL characters and are cut at 64 KiB on a character boundary.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mmdata.catalog.entry import Entry
from mmdata.catalog.files import BAD
from mmdata.errors import ConfigError
from mmdata.schema import BASE_FIELDS, CAPTION, OUTCOME

MAX_TEXT_BYTES = 64 * 1024
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


def to_rows(entry: Entry, raw: pa.Table, parts: dict[str, str], origin: Origin) -> pa.Table:
    """Return rows with the base columns, the carried columns and `_outcome`."""
    documents = entry.shape == "documents"
    blocks = list(_document_blocks(raw, parts)) if documents else _pair_blocks(raw, parts, origin)
    picked = pa.array([block.raw_row for block in blocks], pa.int64())
    ids = _sample_ids(raw, parts, origin)
    bad = [block.bad for block in blocks]
    has_media = [block.url is not None or block.bad for block in blocks]
    base = {
        "sample_id": pa.array([ids[block.raw_row] for block in blocks], pa.string()),
        "position": pa.array([block.position for block in blocks], pa.int32()),
        "document": pa.array([entry.shape == "documents"] * len(blocks), pa.bool_()),
        "url": pa.array([block.url for block in blocks], pa.string()),
        "text": pa.array([block.text for block in blocks], pa.string()),
        "media": pa.array([entry.media if has else None for has in has_media], pa.string()),
        "source": pa.array([origin.source] * len(blocks), pa.string()),
        "captions": _captions(entry, raw).take(picked),
    }
    carried = {field.name: _carry(raw, field, origin).take(picked) for field in entry.carried()}
    outcome = pa.array(["bad_row" if flag else None for flag in bad], pa.string())
    schema = pa.schema([*BASE_FIELDS, *entry.carried(), pa.field(OUTCOME, pa.string())])
    return pa.table({**base, **carried, OUTCOME: outcome}, schema=schema)


def _pair_blocks(raw: pa.Table, parts: dict[str, str], origin: Origin) -> list[_Block]:
    urls = _strings(raw, parts["url"], origin)
    texts = _strings(raw, parts["text"], origin) if "text" in parts else [None] * raw.num_rows
    bad = raw.column(BAD).to_pylist()
    return [
        _Block(row, 0, url, clean_text(text), wrong or not _plausible(url))
        for row, (url, text, wrong) in enumerate(zip(urls, texts, bad, strict=True))
    ]


def _document_blocks(raw: pa.Table, parts: dict[str, str]) -> Iterator[_Block]:
    """Unroll `images[i] | texts[i]`, of which exactly one is given, as OBELICS has them."""
    columns = (
        raw.column(parts["images"]).to_pylist(),
        raw.column(parts["texts"]).to_pylist(),
        raw.column(BAD).to_pylist(),
    )
    for row, (images, texts, bad) in enumerate(zip(*columns, strict=True)):
        if bad or not _aligned(images, texts):
            yield _Block(row, 0, None, None, True)
            continue
        for position, (url, text) in enumerate(zip(images, texts, strict=True)):
            yield _Block(row, position, url, clean_text(text), url is not None and not _plausible(url))


def _aligned(images: object, texts: object) -> bool:
    return (
        isinstance(images, list)
        and isinstance(texts, list)
        and len(images) == len(texts) > 0
        and all((url is None) != (text is None) for url, text in zip(images, texts, strict=True))
    )


def clean_text(text: str | None) -> str | None:
    """Return a text without NUL, valid as UTF-8 and at most 64 KiB; null stays null."""
    if text is None:
        return None
    text = text.replace("\0", "")
    data = text.encode("utf-8", errors="replace")
    return data[:MAX_TEXT_BYTES].decode("utf-8", errors="ignore")


def _plausible(url: str | None) -> bool:
    return bool(url) and _CONTROL.search(url or "") is None


def _sample_ids(raw: pa.Table, parts: dict[str, str], origin: Origin) -> list[str]:
    own: Iterable[Any] = raw.column(parts["sample_id"]).to_pylist() if "sample_id" in parts else [None] * raw.num_rows
    return [
        value if isinstance(value, str) and _HEX32.fullmatch(value) else _hash_id(origin, origin.first_row + row)
        for row, value in enumerate(own)
    ]


def _hash_id(origin: Origin, row: int) -> str:
    return hashlib.sha256(f"{origin.source}\0{origin.file}\0{row}".encode()).hexdigest()[:32]


def _strings(raw: pa.Table, name: str, origin: Origin) -> list[Any]:
    column = raw.column(name)
    if pa.types.is_null(column.type):
        return [None] * raw.num_rows
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ConfigError(
            f"{origin.file}: column `{name}` is {column.type}, not text", hint="name another column under `columns:`"
        )
    values: list[Any] = column.to_pylist()
    return values


def _captions(entry: Entry, raw: pa.Table) -> pa.Array:
    rows: list[list[dict[str, str | None]]] = [[] for _ in range(raw.num_rows)]
    for name in entry.columns.captions:
        for row, value in zip(rows, raw.column(name).to_pylist(), strict=True):
            texts = value if isinstance(value, list) else [value]
            row.extend({"text": clean_text(str(text)), "kind": name} for text in texts if text is not None)
    return pa.array([row or None for row in rows], pa.list_(CAPTION))


def _carry(raw: pa.Table, field: pa.Field, origin: Origin) -> pa.Array:
    column = raw.column(field.name).combine_chunks()
    try:
        if pa.types.is_string(column.type) and not pa.types.is_string(field.type):
            column = pc.if_else(pc.equal(column, ""), None, column)  # an empty cell of a CSV is no number
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{origin.file}: column `{field.name}` is not {field.type}: {error}", hint="change its type under `carry:`"
        ) from error
