"""Score rows by a scorer of any kind: those of this package, and those that others bring."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from mmdata.models import AnyScorer, Scorer
from mmdata.schema import OUTCOME, PROFILE
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext


class Score(Map):
    """Write one number a row by a scorer, named with its fields: `score: {by: {NAME: {...}}}`.

    A scorer that reads texts gives a null or empty one (blanks count as empty) no score: null. One that reads images gives
    none to rows without. A score that is not finite is `scorer_error`. `column` is the scorer's name unless it is given.
    """

    name: ClassVar[str] = "score"

    resources: Resources = Resources(memory_mib=8192, row_s=10)
    by: AnyScorer
    column: str = ""

    def reads(self) -> tuple[str, ...]:
        """Read what the scorer looks at."""
        return self.by.reads

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the score."""
        about = {"unit": self.by.unit, "meaning": f"{self.by.meaning()}, by {self.by.label()}"}
        return (pa.field(self.column or self.by.name, pa.float32(), metadata=about),)

    def located(self, home: Path) -> Self:
        """Return itself with absolute paths."""
        return self.model_copy(update={"by": self.by.located(home)})

    def weights(self) -> tuple[str, ...]:
        """Return the digests of the scorer's files."""
        return self.by.digests()

    def model_id(self) -> str | None:
        """Return the scorer's id."""
        return self.by.label()

    def asked(self) -> dict[str, Any]:
        """Return its fields without how the scorer computes: that is the profile's."""
        return super().asked() | {"by": self.by.asked()}

    def open(self, ctx: WorkerContext) -> MapFn:
        """Load the scorer and return the scoring function."""
        scorer = ctx.enter(self.by.open(ctx.device, self.resources.cpus))

        def score(batch: Batch) -> pa.Table:
            table = self._score(scorer, batch)
            # Looked at anew: a batch that was too large for the memory is another profile from then on.
            profile = getattr(scorer, "profile", {"device": ctx.device, "threads": self.resources.cpus})
            return table.replace_schema_metadata({PROFILE: json.dumps(profile)})

        return score

    def _score(self, scorer: Scorer, batch: Batch) -> pa.Table:
        num = batch.table.num_rows
        texts = batch.table.column("text").to_pylist() if "text" in self.by.reads else ["."] * num
        asked = [row for row, text in enumerate(texts) if text and text.strip()]
        images = [batch.images[i] for i in asked] if "image" in self.by.reads else []
        found = scorer.score(images, [texts[i] for i in asked] if "text" in self.by.reads else [])
        scores = np.full(num, np.nan, np.float32)
        scores[asked] = found
        broken = np.zeros(num, bool)
        broken[asked] = ~np.isfinite(found)
        outcomes = pa.array(["scorer_error" if bad else None for bad in broken], pa.string())
        values = pa.array(scores, mask=~np.isfinite(scores))
        return pa.table([values, outcomes], pa.schema([*self.writes(), pa.field(OUTCOME, pa.string())]))
