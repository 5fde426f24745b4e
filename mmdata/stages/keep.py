"""Keep rows whose column lies in a range, or of which an expression over columns is true."""

import math
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from mmdata.stages import expression
from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, Resources, WorkerContext, first_reason


class Keep(Filter):
    """Keep rows with `at_least <= column <= at_most` (both ends belong), or rows of which `where` is true.

    where  an expression over columns in SQL, `clip_score >= 0.28 and (width >= 200 or source = 'laion')`; of one row: no
           aggregates, no window functions. Texts stand in single quotes, odd names of columns in double quotes
    named  what reasons and the flag of `tag: true` call an expression
    nulls  what becomes of a row whose column, or of which what `where` says, is null: it goes unless this is `keep`. A NaN
           is null. `where` is null where it depends on a null: `x > 1 or y > 1` is true if either is, whatever the other

    A bound is compared in the column's own precision (of float16: in float32), so that `at_most: 0.3` keeps what a float32 column
    holds for 0.3.
    """

    name: ClassVar[str] = "keep"
    version: ClassVar[int] = 2
    cheap: ClassVar[bool] = True

    resources: Resources = QUICK
    column: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    where: str | None = None
    named: str = "where"
    nulls: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _range(self) -> Self:
        if (self.column is None) == (self.where is None):
            raise ValueError("give either `column`, with a range, or `where`, an expression")
        if self.where is not None and (self.at_least is not None or self.at_most is not None):
            raise ValueError("`where` says its bounds itself")
        if self.column is not None and self.at_least is None and self.at_most is None:
            raise ValueError("give `at_least`, `at_most` or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError("`at_least` is above `at_most`: nothing could be kept")
        if not self.named.isidentifier():
            raise ValueError("`named` is letters, digits and _")
        return self

    def reads(self) -> tuple[str, ...]:
        """Read the judged column, or those that the expression names."""
        return expression.columns_of(self.where) if self.column is None else (self.column,)  # type: ignore[arg-type]

    def numeric(self) -> tuple[str, ...]:
        """Return the judged column: ranges are for numbers."""
        return () if self.column is None else (self.column,)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse an expression that is not true or false of each row."""
        if self.where is not None:
            expression.check(self.where, fields)

    def reasons(self) -> tuple[str, ...]:
        """Return below, above and missing, each with the column's name; or false and null, with that of the expression."""
        if self.column is None:
            return (f"{self.named}_false", f"{self.named}_null")
        return (f"{self.column}_below", f"{self.column}_above", f"{self.column}_missing")

    def flag(self) -> str:
        """Return the column of `tag: true`."""
        return f"keep_{self.named if self.column is None else self.column}"

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return the judging function."""
        return self._where if self.column is None else self._in_range

    def _where(self, batch: Batch) -> pa.Table:
        assert self.where is not None
        said = expression.evaluate(self.where, batch.table)
        unknown = said.is_null().to_numpy(zero_copy_only=False)
        untrue = ~said.fill_null(True).to_numpy(zero_copy_only=False)
        false, null = self.reasons()
        rules = [(false, untrue), (null, unknown & (self.nulls == "drop"))]
        return pa.table({"reason": first_reason(rules, len(said)), "value": pa.nulls(len(said), pa.float32())})

    def _in_range(self, batch: Batch) -> pa.Table:
        column = batch.table.column(self.column).combine_chunks()
        column = column.cast(pa.float32()) if pa.types.is_null(column.type) else column
        values = pc.fill_null(column, pa.scalar(0, column.type)).to_numpy(zero_copy_only=False)
        whole = np.issubdtype(values.dtype, np.integer)
        values = values if whole or values.dtype != np.float16 else values.astype(np.float32)
        missing = column.is_null().to_numpy(zero_copy_only=False) | (False if whole else np.isnan(values))
        below, above, lacking = self.reasons()
        rules = [(lacking, missing & (self.nulls == "drop"))]
        if self.at_least is not None:
            rules.append((below, (values < (math.ceil(self.at_least) if whole else self.at_least)) & ~missing))
        if self.at_most is not None:
            rules.append((above, (values > (math.floor(self.at_most) if whole else self.at_most)) & ~missing))
        return pa.table({"reason": first_reason(rules, len(values)), "value": pc.cast(column, pa.float32(), safe=False)})
