"""Keep the best rows by a column, over all partitions."""

from fractions import Fraction
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from mmdata.errors import ConfigError
from mmdata.schema import ROW
from mmdata.stages.passes import Judge, Pass
from mmdata.stages.ranks import Keys, Ranks, sample_hashes, score_keys
from mmdata.stages.verbs import GlobalFilter, verdicts_on


class Top(GlobalFilter):
    """Keep the rows with the highest `column`: a `fraction` of those that have one, or a `count` of them; exactly.

    per    columns (texts, whole numbers or flags): the best of each group of equal values; null is a value like others
    lowest keep the lowest instead
    over   `kept`: of the rows that are left here; `all`: of all that have the column, whatever became of them since
    ties   `keep`: rows that equal the last one kept are kept too. `hash`: of these as many as are wanted, by a hash of
           (seed, sample_id), so that only rows with one id and one value stay together. `datacomp`: of N rows in descending
           order all that are at least as high as row int(N * fraction), counted from 0: one more than the fraction, and ties
    nulls  what becomes of a row whose column is null or NaN. It is not counted

    A fraction of N rows is rounded down.
    """

    name: ClassVar[str] = "top"

    column: str
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Annotated[int, Field(ge=0)] | None = None
    per: tuple[str, ...] = ()
    lowest: bool = False
    ties: Literal["keep", "hash", "datacomp"] = "keep"
    seed: int = 0
    nulls: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either `fraction` or `count`")
        if self.ties == "datacomp" and (self.fraction is None or self.lowest):
            raise ValueError("`ties: datacomp` is a rule for the highest `fraction`")
        return self

    def reads(self) -> tuple[str, ...]:
        """Read the score, what makes groups, and the id where it breaks ties."""
        return tuple(dict.fromkeys((self.column, *self.per, *(("sample_id",) if self.ties == "hash" else ()))))

    def numeric(self) -> tuple[str, ...]:
        """Return the score."""
        return (self.column,)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse groups by what has no few equal values."""
        refuse_groups(self.name, self.per, fields)

    def reasons(self) -> tuple[str, ...]:
        """Return below the top (above the bottom) and missing, each with the column's name."""
        return (f"{self.column}_{'above_bottom' if self.lowest else 'below_top'}", f"{self.column}_missing")

    def passes(self) -> tuple[Pass, ...]:
        """Find the last row that is kept in rounds of counts, then judge every row by it."""
        return (*self._ranks().rounds(), Judge(self._judge))

    def _ranks(self) -> Ranks:
        return Ranks(self.per, self._keys, self._wanted, self.ties == "hash")

    def _keys(self, rows: pa.Table) -> Keys:
        keys = score_keys(rows.column(self.column))
        tie = sample_hashes(rows.column("sample_id"), self.seed) if self.ties == "hash" else None
        unused = np.uint64(64 - keys.bits)
        key = ~keys.key >> unused << unused if self.lowest else keys.key
        return Keys(key, keys.counted, tie, keys.bits)

    def _wanted(self, total: int) -> int:
        if self.count is not None:
            return self.count
        assert self.fraction is not None
        if self.ties == "datacomp":
            return int(total * self.fraction) + 1
        return int(total * Fraction(repr(self.fraction)))

    def _judge(self, rows: pa.Table, value: pa.Table | None) -> pa.Table:
        assert value is not None
        beyond, missing = self.reasons()
        column = rows.column(self.column)
        lacking = pc.is_nan(column) if pa.types.is_floating(column.type) else column.is_null()
        lacks = lacking.fill_null(True).to_numpy()
        others = ~self._ranks().chosen(rows, value) & ~lacks
        rules = [(missing, lacks & (self.nulls == "drop")), (beyond, others)]
        return verdicts_on(rows.column(ROW), rules, pc.cast(column, pa.float32(), safe=False))


def refuse_groups(name: str, per: tuple[str, ...], fields: dict[str, pa.Field]) -> None:
    """Raise ConfigError for a column whose values make no groups."""
    for column in per:
        kind = fields[column].type
        if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            hint = "name columns of texts, whole numbers or flags"
            raise ConfigError(f"`{name}` groups by `{column}`, which is {kind}", hint=hint)
