"""One sample of a corpus: its members as bytes, its blocks in order, texts as text, images as pixels.

Decided here: nothing in a shard is ever run. A member that is neither text, JSON nor an image stays bytes, for the transform
to read. Bytes that we did not encode are decoded in the jail.
"""

import atexit
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmdata.errors import RecordError, RunError
from mmdata.loader.lazy import lazy
from mmdata.loader.seeds import keyed
from mmdata.media import Jails, decode
from mmdata.shards import KINDS, Corpus
from mmdata.shards.members import TAR_BLOCK

_JAILS = Jails()
_JSON = "json"
_PLACE = ["kind", "position", "offset", "size"]
_TXT, _NAME = b".txt\0", 100  # how the name of a caption's file ends, in the first bytes of its header


class Block(NamedTuple):
    """One block: a text, an image as (H, W, 3) uint8, or a video as the bytes of its file."""

    kind: str
    text: str | None
    image: np.ndarray | None
    data: bytes | None = None


class Drawing(NamedTuple):
    """How one of several captions is drawn: weights by kind, shared by all captions of the kind, and the seed."""

    weights: Mapping[str, float]
    seed: int


class Sample:
    """One sample: a pair is an image block and a text block, a document any number of both.

    index  place in its corpus        source  its name in the mixture      epoch  how often it was drawn before
    data   the sample's own bytes in its tar, verified

    All else is made of `data` when first asked for.
    """

    __slots__ = ("__dict__", "_members", "corpus", "data", "drawing", "epoch", "index", "source")  # 100,000 a second

    def __init__(
        self, corpus: Corpus, index: int, source: str, epoch: int, data: bytes, drawing: "Drawing | None" = None
    ) -> None:
        self.corpus, self.index, self.source, self.epoch, self.data, self.drawing = corpus, index, source, epoch, data, drawing
        self._members: dict[str, bytes] | None = None

    @property
    def members(self) -> dict[str, bytes]:
        """Every file of the sample by its suffix: `jpg`, `txt`, `json`, and whatever else was stored."""
        if self._members is None:
            self._members = self.corpus.cut(self.index, self.data)
        return self._members

    @lazy
    def sample_id(self) -> str:
        """The sample's id, 32 hex digits."""
        return self.corpus.sample_id(self.index)

    @lazy
    def meta(self) -> dict[str, Any]:
        """What the sample's JSON says; empty without one."""
        found = json.loads(self.members.get(_JSON, b"{}"))
        return found if isinstance(found, dict) else {}

    @lazy
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in order; what goes wrong names the shard and the sample."""
        try:
            return tuple(self._block(*record) for record in self.corpus.blocks_of(self.index)[_PLACE].tolist())
        except (RecordError, LookupError, TypeError, ValueError) as error:
            reason = error.message if isinstance(error, RecordError) else repr(error)
            raise RunError(
                f"{self.corpus.where(self.index)} cannot be decoded: {reason}",
                hint="its bytes are what was written: add a stage that decodes, such as `measure`, and build the corpus anew",
            ) from error

    @lazy
    def texts(self) -> list[str]:
        """The texts alone, without decoding an image."""
        if self._document is not None:
            return [str(block["text"]) for block in self._document if block["type"] == "text"]
        return [self._caption()] if "txt" in self.members else []

    @lazy
    def _document(self) -> list[dict[str, Any]] | None:
        """The blocks of a document as its JSON has them. A pair has a `txt`, whatever a stranger's JSON calls blocks."""
        blocks = None if "txt" in self.members else self.meta.get("blocks")
        known = isinstance(blocks, list) and all(isinstance(block, dict) and "type" in block for block in blocks)
        return blocks if known else None

    def _block(self, number: int, position: int, offset: int, size: int) -> Block:
        kind = KINDS[number]
        if kind == "text":
            # Nothing else has to be read for the caption of a pair: this runs once a sample.
            if self.drawing is None and _TXT in self.data[offset - TAR_BLOCK : offset - TAR_BLOCK + _NAME]:
                return Block(kind, self.data[offset : offset + size].decode(), None)
            # Blocks that a filter dropped leave gaps: a block is found by its position, not by its place in the list.
            texts = {block["position"]: block.get("text") for block in self._document or ()}
            return Block(kind, self._caption() if self._document is None else texts[position], None)
        data = self.data[offset : offset + size]
        if kind == "video":
            return Block(kind, None, None, data)
        return Block(kind, None, decode(data, trusted=True) if self.corpus.trusted else _JAILS.get().decode(data))

    def _caption(self) -> str:
        """Return the sample's text; with weights by kind, one of all its captions, drawn by the sample's own key."""
        text = self.members["txt"].decode()
        if self.drawing is None:
            return text
        weights_by_kind, seed = self.drawing
        others = [caption for caption in self.meta.get("captions") or () if caption.get("text")]
        known = [("text", text), *((str(caption.get("kind") or ""), str(caption["text"])) for caption in others)]
        kinds = [kind for kind, _ in known]
        weights = np.asarray([weights_by_kind.get(kind, 0.0) / kinds.count(kind) for kind in kinds])
        if not weights.sum():
            return text
        place = keyed(seed, self.epoch, self.sample_id, "caption").random() * weights.sum()
        return known[int(np.searchsorted(np.cumsum(weights), place, side="right"))][1]


def read_sample(corpus: Corpus, index: int) -> Sample:
    """Read and verify one sample; what goes wrong names the shard and the sample."""
    return Sample(corpus, index, "corpus", 0, corpus.raw(index))


atexit.register(_JAILS.close)
# A forked process (a worker of torch's DataLoader) must not talk to its parent's children.
os.register_at_fork(after_in_child=_JAILS.forget)
