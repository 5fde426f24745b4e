"""Keep rows whose column lies in a range."""

from typing import ClassVar, Literal, Self

import pyarrow as pa
from pydantic import model_validator

from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, Resources, WorkerContext, judged


class Keep(Filter):
    """Keep rows with `at_least <= column <= at_most`; both ends belong. A null goes, unless `nulls: keep`."""

    name: ClassVar[str] = "keep"
    cheap: ClassVar[bool] = True

    resources: Resources = QUICK
    column: str
    at_least: float | None = None
    at_most: float | None = None
    nulls: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give `at_least`, `at_most` or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError("`at_least` is above `at_most`: nothing could be kept")
        return self

    def reads(self) -> tuple[str, ...]:
        """Read the judged column."""
        return (self.column,)

    def numeric(self) -> tuple[str, ...]:
        """Return the judged column: ranges are for numbers."""
        return (self.column,)

    def reasons(self) -> tuple[str, ...]:
        """Return below, above and missing, each with the column's name."""
        return (f"{self.column}_below", f"{self.column}_above", f"{self.column}_missing")

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return the judging function."""
        return self._judge

    def _judge(self, batch: Batch) -> pa.Table:
        values = batch.table.column(self.column).to_pylist()
        return judged([self._reason(value) for value in values], values)

    def _reason(self, value: float | None) -> str | None:
        below, above, missing = self.reasons()
        if value is None or value != value:  # noqa: PLR0124 - NaN is not itself
            return None if self.nulls == "keep" else missing
        if self.at_least is not None and value < self.at_least:
            return below
        return above if self.at_most is not None and value > self.at_most else None
