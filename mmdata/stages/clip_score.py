"""Score how well an image and its caption go together, and keep what the model saw of each."""

import json
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from mmdata.models import Towers
from mmdata.schema import OUTCOME, PROFILE, embedding, embedding_array
from mmdata.stages.by_towers import ByTowers
from mmdata.stages.verbs import Batch, ImageWork, MapFn, WorkerContext

Kept = Literal["image", "text"]


class ClipScore(ByTowers):
    """Write `clip_score`, the cosine similarity of image and caption, in [-1, 1] (not multiplied by 100).

    A null or empty caption (blanks count as empty) and a row without an image get null. A caption beyond the model's context
    is cut there by the model's own tokenizer, as open_clip does it: what follows has no say. A score that is not finite is
    `scorer_error`.

    column      name of the score; several models in one plan each need their own
    embeddings  `image`, `text` or both are kept as `COLUMN_image_embedding` and `COLUMN_text_embedding`, float16 of length 1,
                null where there is no image, or no caption. With `image` rows without a caption are embedded, too: blocks of
                documents are
    """

    name: ClassVar[str] = "clip_score"
    version: ClassVar[int] = 2

    column: str = "clip_score"
    embeddings: tuple[Kept, ...] = ()

    def reads(self) -> tuple[str, ...]:
        """Read decoded images and captions."""
        return ("image", "text")

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the score, and the embeddings that are to be kept."""
        label = self.scorer.label()
        score = {"unit": "cosine", "meaning": f"cosine of image and caption by {label}"}
        kept = [
            pa.field(f"{self.column}_{what}_embedding", embedding(self.scorer.dim()),
                     metadata={"unit": "float16, length 1", "meaning": f"embedding of the {what} by {label}"})
            for what in self.embeddings
        ]  # fmt: skip
        return (pa.field(self.column, pa.float32(), metadata=score), *kept)

    def rows_at_once(self) -> int:
        """Return two batches: where some rows have no caption, the last of two has less to pad than the last of one."""
        return 2 * self.scorer.batch

    def open(self, ctx: WorkerContext) -> MapFn:
        """Load the model and return the scoring function; images are prepared ahead of it."""
        towers = ctx.enter(self.scorer.open(ctx.device, self.resources.cpus))
        return ImageWork(towers.prepare, lambda batch: self._score(towers, batch))

    def _score(self, towers: Towers, batch: Batch) -> pa.Table:
        texts = batch.table.column("text").to_pylist()
        num = len(texts)
        captioned = np.flatnonzero([bool(text and text.strip()) for text in texts])
        seen = np.arange(num) if "image" in self.embeddings else captioned
        assert batch.prepared is not None
        left, right = towers.embed([batch.prepared[i] for i in seen.tolist()], [texts[i] for i in captioned])
        # Row by row in one order: a BLAS may sum otherwise for another number of rows.
        cosines = (left[np.searchsorted(seen, captioned)] * right).sum(axis=1) if len(captioned) else right[:, 0]
        scores = np.full(num, np.nan, np.float32)
        scores[captioned] = cosines
        broken = np.zeros(num, bool)
        for rows, vectors in ((captioned, cosines[:, None]), (seen, left)):
            broken[rows] |= ~np.isfinite(vectors).all(axis=1)
        found = {"image": (seen, left), "text": (captioned, right)}
        kept = [_column(num, *found[what], broken, self.scorer.dim()) for what in self.embeddings]
        outcomes = pa.array(["scorer_error" if bad else None for bad in broken], pa.string())
        fields = [*self.writes(), pa.field(OUTCOME, pa.string())]
        schema = pa.schema(fields, metadata={PROFILE: json.dumps(towers.profile)})
        return pa.table([pa.array(scores, mask=~np.isfinite(scores)), *kept, outcomes], schema)


def _column(num: int, rows: np.ndarray, vectors: np.ndarray, broken: np.ndarray, dim: int) -> pa.Array:
    """Return embeddings of some of `num` rows as a column, null for the others."""
    lines, missing = np.zeros((num, dim), np.float16), np.ones(num, bool)
    if len(rows):
        lines[rows], missing[rows] = vectors, broken[rows]
    return embedding_array(lines, missing)
