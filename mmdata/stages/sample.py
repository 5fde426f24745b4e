"""Keep samples at random: which ones depends on the seed and their ids alone."""

from typing import Annotated, ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mmdata.schema import ROW
from mmdata.stages.passes import Judge, Pass
from mmdata.stages.ranks import Keys, Ranks, sample_hashes
from mmdata.stages.verbs import GlobalFilter, verdicts_on


class Sample(GlobalFilter):
    """Keep a random `share` of the samples, or a `count` of them, chosen by a hash of (seed, sample_id).

    A document is one sample and stays whole. A share asks each sample by itself: more rows, a longer list or another order
    change nothing for the others, and a smaller share is a part of a larger one. A count waits for all partitions; it keeps
    as many more as have the same id as the last one.
    """

    name: ClassVar[str] = "sample"

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.share is None) == (self.count is None):
            raise ValueError("give either `share` or `count`")
        return self

    def reads(self) -> tuple[str, ...]:
        """Read the id, and whether the row is a document's."""
        return ("sample_id", "document")

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("not_sampled",)

    def passes(self) -> tuple[Pass, ...]:
        """Judge each row by its hash; a count first finds the last hash that is kept."""
        return (*(() if self.count is None else self._ranks().rounds()), Judge(self._judge))

    def _ranks(self) -> Ranks:
        return Ranks((), self._keys, lambda _: self.count or 0)

    def _keys(self, rows: pa.Table) -> Keys:
        return Keys(sample_hashes(rows.column("sample_id"), self.seed), _heads(rows))

    def _judge(self, rows: pa.Table, value: pa.Table | None) -> pa.Table:
        hashes = sample_hashes(rows.column("sample_id"), self.seed)
        if value is None:
            assert self.share is not None
            stays = hashes < np.uint64(int(self.share * 2.0**64))
        else:
            every = Ranks((), lambda _: Keys(hashes, np.full(len(hashes), True)), lambda _: 0)
            stays = every.chosen(rows, value)
        return verdicts_on(rows.column(ROW), [(self.reasons()[0], ~stays)], None)


def _heads(rows: pa.Table) -> np.ndarray:
    """Say which rows stand for their samples: all pairs, since published ids repeat, and of a document the first row."""
    document = rows.column("document").to_numpy()
    if not document.any():
        return np.asarray(~document)
    places = np.flatnonzero(document)
    ids = rows.column("sample_id").to_numpy(zero_copy_only=False)[places].astype(str)
    heads: np.ndarray = ~document
    heads[places[np.unique(ids, return_index=True)[1]]] = True
    return heads
