"""One row a caption: the row's own text first, then its further captions."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.stages.verbs import QUICK, Batch, Resources, Split, SplitFn, WorkerContext


class SplitCaptions(Split):
    """Make a row of each caption of a media item; empty and repeated captions make none.

    A row with one caption or none, and every block of a document, becomes one row with its text unchanged.
    """

    name: ClassVar[str] = "split_captions"

    resources: Resources = QUICK

    def reads(self) -> tuple[str, ...]:
        """Read the text, the further captions, and whether the row is a block of a document."""
        return ("text", "captions", "document")

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the text anew, and which caption it is."""
        return (pa.field("text", pa.string()), pa.field("caption_kind", pa.string()))

    def open(self, ctx: WorkerContext) -> SplitFn:
        """Return the function that unrolls a batch."""
        return self._split

    def _split(self, batch: Batch) -> tuple[np.ndarray, pa.Table]:
        parents: list[int] = []
        texts: list[str | None] = []
        kinds: list[str | None] = []
        columns = (batch.table.column(name).to_pylist() for name in self.reads())
        for index, (text, captions, document) in enumerate(zip(*columns, strict=True)):
            seen = {text}
            parents.append(index)
            texts.append(text)
            kinds.append(None)
            for caption in () if document else captions or ():
                if caption["text"] and caption["text"] not in seen:
                    seen.add(caption["text"])
                    parents.append(index)
                    texts.append(caption["text"])
                    kinds.append(caption["kind"])
        table = pa.table({"text": pa.array(texts, pa.string()), "caption_kind": pa.array(kinds, pa.string())})
        return np.asarray(parents, dtype=np.int64), table
