"""A sample as other formats hold it: one flat record, the same for all of them.

    sample_id  32 hex digits
    text       the caption of a pair; a document's texts are in `blocks`
    json       the sample's JSON, byte for byte
    image      the bytes of a pair's image          (when the corpus has such pairs)
    video      the bytes of a pair's video          (when the corpus has such pairs)
    blocks     the blocks of a document in order, as JSON: those of its JSON, each block of media with where its bytes
               lie in `media`                       (when the corpus has documents)
    media      the media of a document

Decided here: which columns there are follows from the corpus's index, so every sample of an export has the same ones.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from mmdata.errors import RunError
from mmdata.shards.contents import DOCUMENT, PAIR, VIDEO_PAIR, Read, is_document, kinds_of, read_samples
from mmdata.shards.corpus import KINDS, SUFFIXES, Corpus


class Media(NamedTuple):
    """The bytes of an image or a video."""

    kind: str
    suffix: str
    data: bytes


@dataclass(frozen=True)
class Record:
    """A sample. A pair has one item of media and no `blocks`; a block of a document names its media by `media`, a place."""

    sample_id: str
    text: str | None
    json: str
    media: tuple[Media, ...]
    blocks: tuple[dict[str, Any], ...] | None

    def of_pair(self, kind: str) -> Media | None:
        """Return the media of a pair if it is of this kind."""
        return next((media for media in self.media if self.blocks is None and media.kind == kind), None)

    def facts(self) -> dict[str, Any]:
        """Return the sample's JSON as values; empty when it is no object."""
        return _object(self.json)


@dataclass(frozen=True)
class Shape:
    """The kinds of samples that a corpus has, so which columns it needs."""

    images: bool
    videos: bool
    documents: bool

    @classmethod
    def of(cls, corpus: Corpus) -> Self:
        """Return the shape of a corpus."""
        found = set(np.unique(kinds_of(corpus)).tolist())
        return cls(PAIR in found, VIDEO_PAIR in found, DOCUMENT in found)

    def columns(self) -> dict[str, type]:
        """Return the columns of a flat record, each `str` or `bytes`."""
        found: dict[str, type] = {"sample_id": str, "text": str, "json": str}
        found |= {"image": bytes} if self.images else {}
        found |= {"video": bytes} if self.videos else {}
        return found | ({"blocks": str, "media": bytes} if self.documents else {})


def read_records(corpus: Corpus, indexes: Iterable[int]) -> Iterator[Record]:
    """Read samples, verified, in order. Raises RunError for one that is damaged or has no place in a record."""
    for index, read in read_samples(corpus, indexes):
        try:
            yield _record(corpus, index, read.result())
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(
                f"{corpus.where(index)} has no form that other formats know: {error!r}",
                hint="a sample is an image or video with its text and JSON, or a document",
            ) from error


def flat(record: Record, shape: Shape) -> dict[str, str | bytes]:
    """Return a record as texts and bytes alone: what is not given is empty, media of a document lie end to end."""
    row: dict[str, str | bytes] = {"sample_id": record.sample_id, "text": record.text or "", "json": record.json}
    for kind in shape.columns().keys() & {"image", "video"}:
        media = record.of_pair(kind)
        row[kind] = b"" if media is None else media.data
    if shape.documents:
        items = record.media if record.blocks is not None else ()
        starts = np.cumsum([0, *(len(item.data) for item in items)]).tolist()
        places = [{"offset": start, "size": len(item.data)} for start, item in zip(starts, items, strict=False)]
        blocks = [block | places[block["media"]] if "media" in block else block for block in record.blocks or ()]
        row |= {"blocks": json.dumps(blocks), "media": b"".join(item.data for item in items)}
    return {name: row[name] for name in shape.columns()}


def splits_of(corpus: Corpus) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each split that has samples, and their indexes."""
    for number, name in enumerate(corpus.splits):
        indexes = np.flatnonzero(corpus.samples["split"] == number)
        if len(indexes):
            yield name, indexes


def _record(corpus: Corpus, index: int, read: Read) -> Record:
    text, records = read.members.get("json", b"{}").decode(), corpus.blocks_of(index)
    found = {int(record["position"]): _media(record, read) for record in records if record["kind"]}
    caption = read.members["txt"].decode() if "txt" in read.members and (records["kind"] == 0).any() else None
    media = tuple(found.values())
    if not is_document(records):
        return Record(corpus.sample_id(index), caption, text, media, None)
    blocks = _object(text).get("blocks")
    if not isinstance(blocks, list):  # several files of one key, in a stranger's tar
        blocks = [{"type": KINDS[int(record["kind"])], "position": int(record["position"])} for record in records]
        blocks = [block | ({"text": caption} if block["type"] == "text" else {}) for block in blocks]
    places = {position: place for place, position in enumerate(found)}
    marked = tuple(_marked(block, places, media) for block in blocks)
    return Record(corpus.sample_id(index), None, text, media, marked)


def _media(record: np.void, read: Read) -> Media:
    return Media(KINDS[int(record["kind"])], SUFFIXES[int(record["suffix"])], read.media(record))


def _marked(block: dict[str, Any], places: dict[int, int], media: tuple[Media, ...]) -> dict[str, Any]:
    place = places.get(block["position"])
    return block if place is None else block | {"media": place, "suffix": media[place].suffix}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
