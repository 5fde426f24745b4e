"""Keep one of all rows that are the same, over the whole corpus."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.dedupe.exact import bucket_of, exact_verdicts
from mmdata.schema import PAYLOAD_COLUMN
from mmdata.stages.verbs import Gather, GlobalFilter, Pass, Scatter


class Dedupe(GlobalFilter):
    """Of rows with equal `by`, keep the one with the highest `best`, then the smallest (sample_id, position).

    Rows whose `by` is null are never duplicates. Every verdict names its keeper.
    """

    name: ClassVar[str] = "dedupe"

    by: str = "raw_sha256"
    best: str | None = None

    def reads(self) -> tuple[str, ...]:
        """Read the fingerprint, what ranks the copies, and the identity of the row."""
        return tuple(dict.fromkeys((self.by, *([self.best] if self.best else []), "sample_id", "position")))

    def numeric(self) -> tuple[str, ...]:
        """Return the ranking column."""
        return (self.best,) if self.best else ()

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("duplicate",)

    def passes(self) -> tuple[Pass, ...]:
        """Bring equal fingerprints together, then choose in each group."""
        return (Scatter(self._prepare, self._bucket), Gather(self._choose))

    def _prepare(self, table: pa.Table) -> pa.Table:
        keep = [name for name in table.column_names if name != PAYLOAD_COLUMN]
        return table.select(keep).filter(table.column(self.by).is_valid())

    def _bucket(self, table: pa.Table, num_buckets: int) -> np.ndarray:
        return bucket_of(table.column(self.by), num_buckets)

    def _choose(self, table: pa.Table) -> pa.Table:
        return exact_verdicts(table, self.by, self.best)
