"""Keep one of all rows that are the same, or look the same, over the whole corpus."""

from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mmdata.config import Model
from mmdata.dedupe.alike import alike_verdicts
from mmdata.dedupe.exact import bucket_of, column_of, exact_verdicts, hashes_of, values_of
from mmdata.dedupe.groups import rule_columns, score_columns
from mmdata.dedupe.hamming import chance_links
from mmdata.errors import ConfigError
from mmdata.schema import PARTITION, PAYLOAD_COLUMN, ROW
from mmdata.stages.verbs import Gather, GlobalFilter, Pass, Scatter

_BASE = ("sample_id", "position", PARTITION, ROW)
_LEAST_CHANCE = 0.1


class Likeness(Model):
    """Which rows look the same.

    column      hashes of `fingerprint`: `phash`, `pdq`, or their `_views`
    radius      in how many bits two of them may differ
    any_chance  allow a radius at which more than a tenth of a link a row comes by chance
    """

    column: str = "phash"
    radius: Annotated[int, Field(ge=0, le=64)] = 4
    any_chance: bool = False


class Dedupe(GlobalFilter):
    """Of rows with equal `by` keep one: that with the highest `best`, then by the rules of `keep`, then the smallest id.

    by        a column or several: `raw_sha256`, `sha256` (stored bytes), `pixels` (of `fingerprint`), `normal(url)`,
              `folded(text)`, or any. Rows of which one is null are never duplicates
    likeness  look for hashes within a radius in place of equal `by`. All hashes come together in one task, which holds
              about 150 bytes a row
    keep      `area`, `caption_length`, `earliest`, COLUMN (highest first), `lowest(COLUMN)`: the first that tells two rows apart

    Every verdict names its keeper. Where rows look alike, its value is the distance in bits; a row stays that is near a
    dropped one but not near that one's keeper.
    """

    name: ClassVar[str] = "dedupe"
    version: ClassVar[int] = 2

    by: str | tuple[str, ...] = "raw_sha256"
    best: str | None = None
    likeness: Likeness | None = None
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "Dedupe":
        if self.likeness is not None and "by" in self.model_fields_set:
            raise ValueError("`by` and `likeness` are two ways to compare rows: give one, and a second `dedupe` for the other")
        return self

    @property
    def _by(self) -> tuple[str, ...]:
        if self.likeness is not None:
            return (self.likeness.column,)
        return (self.by,) if isinstance(self.by, str) else self.by

    @property
    def _rules(self) -> tuple[str, ...]:
        return (*([self.best] if self.best else []), *self.keep)

    def reads(self) -> tuple[str, ...]:
        """Read what is compared, what ranks the copies, and the identity of the row."""
        return tuple(dict.fromkeys((*map(column_of, self._by), *rule_columns(self._rules), "sample_id", "position")))

    def numeric(self) -> tuple[str, ...]:
        """Return the ranking columns."""
        return score_columns(self._rules)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse hashes of another type."""
        if self.likeness is None:
            return
        kind = fields[self.likeness.column].type
        kind = kind.value_type if pa.types.is_list(kind) else kind
        if not (pa.types.is_uint64(kind) or pa.types.is_string(kind)):
            raise ConfigError(
                f"`dedupe`: likeness compares hashes, but `{self.likeness.column}` is {kind}",
                hint="take `phash` or `pdq` of `fingerprint`",
            )

    def chance(self, num: int, kind: pa.DataType) -> float:
        """Return how many of `num` rows look like a row by chance; refuse more than a tenth unless that was asked for."""
        assert self.likeness is not None
        single = kind.value_type if pa.types.is_list(kind) else kind
        bits = 64 if pa.types.is_uint64(single) else 256  # hex is of `pdq`
        links = chance_links(num, self.likeness.radius, bits)
        if links > _LEAST_CHANCE and not self.likeness.any_chance:
            raise ConfigError(
                f"`dedupe`: of {num:,} rows, {links:.2g} are within {self.likeness.radius} of {bits} bits of a row by chance",
                hint="take a smaller radius or `pdq`, or say `any_chance: true`",
            )
        return links

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("duplicate",) if self.likeness is None else ("near_duplicate",)

    def passes(self) -> tuple[Pass, ...]:
        """Bring together what may be alike, then choose in each group."""
        return (Scatter(self._prepare, self._bucket), Gather(self._choose))

    def _prepare(self, table: pa.Table) -> pa.Table:
        needed = dict.fromkeys((*_BASE, *rule_columns(self._rules)))
        columns = {name: table.column(name) for name in needed if name != PAYLOAD_COLUMN}
        compared = {f"_by{place}": values_of(table, name) for place, name in enumerate(self._by)}
        there = np.logical_and.reduce([column.is_valid().to_numpy() for column in compared.values()])
        return pa.table(columns | compared).filter(pa.array(there))

    def _bucket(self, table: pa.Table, num_buckets: int) -> np.ndarray:
        if self.likeness is not None:  # a pair may agree in no bit that one could cut by
            return np.zeros(table.num_rows, np.int64)
        if len(self._by) == 1:
            return bucket_of(table.column("_by0"), num_buckets)
        mixed = np.zeros(table.num_rows, np.uint64)
        for place in range(len(self._by)):
            mixed = mixed * np.uint64(31) + (hashes_of(table.column(f"_by{place}")) >> np.uint64(32))
        return (mixed % np.uint64(num_buckets)).astype(np.int64)

    def _choose(self, table: pa.Table) -> pa.Table:
        if self.likeness is not None:
            self.chance(table.num_rows, table.column("_by0").type)
            return alike_verdicts(table, "_by0", self.likeness.radius, self._rules)
        return exact_verdicts(table, [f"_by{place}" for place in range(len(self._by))], self.best, self.keep)
