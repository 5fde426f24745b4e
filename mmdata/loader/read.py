"""Read one sample of a corpus: its blocks in order, texts as text, images as pixels."""

import atexit
import json
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmdata.errors import RecordError, RunError
from mmdata.media import Jail, decode
from mmdata.shards import KINDS, Corpus
from mmdata.shards.corpus import SUFFIXES

_JAIL, _LOCK = Jail(), threading.Lock()
atexit.register(_JAIL.close)


class Block(NamedTuple):
    """One block: a text, or an image as (H, W, 3) uint8."""

    kind: str
    text: str | None
    image: np.ndarray | None


@dataclass(frozen=True)
class Sample:
    """One sample: a pair is an image block and a text block, a document any number of both."""

    index: int
    sample_id: str
    blocks: tuple[Block, ...]
    meta: dict[str, object]


def read_sample(corpus: Corpus, index: int) -> Sample:
    """Read, verify and decode one sample; what goes wrong names the shard and the sample."""
    members = corpus.read(index)
    try:
        meta = json.loads(members["json"])
        blocks = tuple(_block(record, members, meta, corpus.trusted) for record in corpus.blocks_of(index))
    except (RecordError, LookupError, TypeError, ValueError) as error:
        reason = error.message if isinstance(error, RecordError) else repr(error)
        raise RunError(
            f"{corpus.where(index)} cannot be decoded: {reason}",
            hint="its bytes are what was written: add a stage that decodes, such as `measure`, and build the corpus anew",
        ) from error
    return Sample(index, corpus.sample_id(index), blocks, meta)


def _block(record: np.void, members: dict[str, bytes], meta: dict[str, object], trusted: bool) -> Block:
    kind, position = KINDS[int(record["kind"])], int(record["position"])
    document = meta.get("blocks")
    if kind == "text":
        # Blocks that a filter dropped leave gaps: a block is found by its position, not by its place in the list.
        texts = {block["position"]: block.get("text") for block in document} if isinstance(document, list) else {}
        return Block(kind, texts[position] if isinstance(document, list) else members["txt"].decode(), None)
    suffix = SUFFIXES[int(record["suffix"])]
    data = members[f"{position}.{suffix}" if isinstance(document, list) else suffix]
    return Block(kind, None, decode(data) if trusted else _decode_foreign(data))


def _decode_foreign(data: bytes) -> np.ndarray:
    """Decode bytes that we did not encode (a corpus made of foreign files) in this process's one jail."""
    with _LOCK:
        return _JAIL.decode(data)
