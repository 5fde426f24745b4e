"""Samples of WebDataset tars into rows: a pair is one, a document one a block.

Decided here: a document is what our own corpora call so, a `json` with `blocks`, each with its `type` and `position`; the
media of a block lie in the member `POSITION.SUFFIX`. Whatever else is called `blocks` makes no document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from mmdata.shards.foreign import SUFFIXES, VIDEO_SUFFIXES, Sample, media_member
from mmdata.shards.tar import Member

MAX_BLOCKS = 65_535  # what the index of a corpus can count
_BLOCKS = "blocks"
_SUFFIXES = {"image": SUFFIXES, "video": VIDEO_SUFFIXES}
Record = dict[str, Any]


class Row(NamedTuple):
    """A row: the number of its sample, its record, what it is in its sample; without `media` it is a text block."""

    sample: int
    record: Record | None
    position: int
    document: bool
    media: str | None
    member: Member | None


@dataclass(frozen=True)
class Rows:
    """The rows of neighbouring samples."""

    rows: Sequence[Row]

    @property
    def unrolled(self) -> bool:
        """True when a sample has become several rows."""
        return any(row.document for row in self.rows)

    def marked(self, table: pa.Table) -> pa.Table:
        """Return a table of these rows that says what they are."""
        for name in ("position", "document", "media"):
            index = table.schema.get_field_index(name)
            values = pa.array([getattr(row, name) for row in self.rows], table.schema.field(index).type)
            table = table.set_column(index, table.schema.field(index), values)
        return table


def with_blocks(record: Record, blocks: object, carry: Sequence[str]) -> Record:
    """Return a record with a record of each of its blocks, where they make it a document."""
    if not isinstance(blocks, list) or not 0 < len(blocks) <= MAX_BLOCKS or not all(map(_is_block, blocks)):
        return record
    positions = [block["position"] for block in blocks]
    if positions != sorted(set(positions)):  # those that were dropped leave gaps
        return record
    own = [{**block, **{name: block.get(name) for name in ("url", "text", *carry)}} for block in blocks]
    return {**record, "url": None, "text": None, _BLOCKS: own}


def apart(records: Sequence[Record | None]) -> list[Record | None]:
    """Return records of which no two documents have one id: it is what holds the blocks of each together."""
    seen: set[object] = set()
    found: list[Record | None] = []
    for record in records:
        again = record is not None and _BLOCKS in record and record["sample_id"] in seen
        found.append({**record, "sample_id": None} if again and record is not None else record)
        seen.add(None if record is None else record["sample_id"])
    return found


def rows_of(records: Sequence[Record | None], samples: Sequence[Sample]) -> Rows:
    """Return the rows of samples."""
    return Rows([
        row for number, (record, sample) in enumerate(zip(records, samples, strict=True)) for row in _rows(number, record, sample)
    ])  # fmt: skip


def _rows(number: int, record: Record | None, sample: Sample) -> Iterator[Row]:
    if record is None or _BLOCKS not in record:
        video = media_member(sample, suffixes=VIDEO_SUFFIXES) if media_member(sample) is None else None
        yield Row(number, record, 0, False, "image" if video is None else "video", video or media_member(sample))
        return
    for block in record[_BLOCKS]:
        kind, position = block["type"], block["position"]
        if kind == "text":
            yield Row(number, {**block, "url": None}, position, True, None, None)
        else:
            member = media_member(sample, f"{position}.", _SUFFIXES[kind])
            yield Row(number, {**block, "text": None}, position, True, kind, member)


def _is_block(block: object) -> bool:
    if not isinstance(block, dict) or block.get("type") not in ("text", *_SUFFIXES):
        return False
    position = block.get("position")
    texts = [block.get("url"), block.get("text")]
    return type(position) is int and 0 <= position < MAX_BLOCKS and all(text is None or isinstance(text, str) for text in texts)
