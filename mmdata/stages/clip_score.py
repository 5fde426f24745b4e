"""Score how well an image and its caption go together."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.models import ScorerSpec
from mmdata.schema import OUTCOME
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext


class ClipScore(Map):
    """Write `clip_score`, the cosine similarity of image and caption, in [-1, 1] (not multiplied by 100).

    A null or empty caption and a row without an image get null. A score that is not finite is `scorer_error`.
    """

    name: ClassVar[str] = "clip_score"

    resources: Resources = Resources(memory_mib=8192, row_s=10)
    scorer: ScorerSpec = ScorerSpec()
    column: str = "clip_score"

    def reads(self) -> tuple[str, ...]:
        """Read decoded images and captions."""
        return ("image", "text")

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the score."""
        meaning = f"cosine of image and caption by {self.scorer.label()}"
        return (pa.field(self.column, pa.float32(), metadata={"unit": "cosine", "meaning": meaning}),)

    def weights(self) -> tuple[str, ...]:
        """Return the digest of the model's weights."""
        return self.scorer.weights()

    def open(self, ctx: WorkerContext) -> MapFn:
        """Load the model and return the scoring function."""
        scorer = ctx.enter(self.scorer.open(ctx.device, self.resources.cpus))

        def score(batch: Batch) -> pa.Table:
            texts = batch.table.column("text").to_pylist()
            asked = [index for index, text in enumerate(texts) if text]
            found = scorer.score([batch.images[i] for i in asked], [texts[i] for i in asked])
            scores: list[float | None] = [None] * len(texts)
            outcomes: list[str | None] = [None] * len(texts)
            for index, value in zip(asked, found.tolist(), strict=True):
                if np.isfinite(value):
                    scores[index] = value
                else:
                    outcomes[index] = "scorer_error"
            return pa.table({self.column: pa.array(scores, pa.float32()), OUTCOME: pa.array(outcomes, pa.string())})

        return score
