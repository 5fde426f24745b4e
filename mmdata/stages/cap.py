"""Keep at most so many rows of each group, over all partitions."""

import json
import re
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field, field_validator

from mmdata.errors import ConfigError
from mmdata.schema import PARTITION, ROW, VERDICT_FIELDS
from mmdata.stages.hosts import domain_of, each_host, hosts_of
from mmdata.stages.passes import Gather, Pass, Scatter
from mmdata.stages.ranks import sample_hashes, score_keys
from mmdata.stages.top import refuse_groups
from mmdata.stages.verbs import GlobalFilter

_OF_URLS = re.compile(r"(host|domain)\((.+)\)")


class Cap(GlobalFilter):
    """Keep at most `rows` rows of each group, those with the highest `best`; without that any, by a hash of (seed, sample_id).

    per   what makes a group: columns (texts, whole numbers or flags), `host(url)` or `domain(url)`. A row of which one is null
          is in no group, and stays. A domain is the last two labels of a host, three below such names as `co.uk`
    best  the column that ranks the rows of a group; null and NaN come last, and equal values are ranked by the hash

    Rows of one hash stand in the order of `position`, and at last in that of their partitions. Each group comes together in one
    task: of few and very large groups `top` with `per` and `count` takes less memory.
    """

    name: ClassVar[str] = "cap"

    per: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Annotated[int, Field(ge=1)]
    best: str | None = None
    seed: int = 0

    @field_validator("per")
    @classmethod
    def _known(cls, per: tuple[str, ...]) -> tuple[str, ...]:
        for name in per:
            if "(" in name and not _OF_URLS.fullmatch(name):
                raise ValueError("a group is a column, `host(COLUMN)` or `domain(COLUMN)`")
        return per

    def reads(self) -> tuple[str, ...]:
        """Read what makes groups, what ranks rows, and the identity of the row."""
        return tuple(dict.fromkeys((*map(_column, self.per), *([self.best] if self.best else []), "sample_id", "position")))

    def numeric(self) -> tuple[str, ...]:
        """Return the ranking column."""
        return (self.best,) if self.best else ()

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse groups by what has no few equal values, and hosts of what is no text."""
        refuse_groups(self.name, tuple(map(_column, self.per)), fields)
        for name in self.per:
            if _OF_URLS.fullmatch(name) and not pa.types.is_string(fields[_column(name)].type):
                raise ConfigError(f"`cap`: `{name}` is of texts, but `{_column(name)}` is {fields[_column(name)].type}")

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("over_cap",)

    def passes(self) -> tuple[Pass, ...]:
        """Bring groups together, then rank the rows of each."""
        return (Scatter(self._records, self._bucket), Gather(self._choose))

    def _records(self, table: pa.Table) -> pa.Table:
        """Return what is needed of each row, of one size: a group is 128 bits of a hash of its values."""
        names = [_values(table, name) for name in self.per]
        inside = np.logical_and.reduce([name.is_valid().to_numpy(zero_copy_only=False) for name in names])
        codes = pa.table(names, [str(place) for place in range(len(names))]).combine_chunks()
        high, low = _group_hashes(codes)
        best = np.zeros(table.num_rows, np.uint64)
        value = pa.nulls(table.num_rows, pa.float32())
        if self.best is not None:
            keys = score_keys(table.column(self.best))
            best = np.where(keys.counted, np.maximum(keys.key, np.uint64(1)), np.uint64(0))
            value = table.column(self.best).cast(pa.float32(), safe=False)
        hashes = sample_hashes(table.column("sample_id"), self.seed)
        columns = {
            "high": high, "low": low, "best": best, "hash": hashes, "value": value,
            **{name: table.column(name) for name in ("position", PARTITION, ROW)},
        }  # fmt: skip
        return pa.table(columns).filter(pa.array(inside))

    def _bucket(self, records: pa.Table, num_buckets: int) -> np.ndarray:
        buckets: np.ndarray = (records.column("low").to_numpy() % np.uint64(num_buckets)).astype(np.int64)
        return buckets

    def _choose(self, records: pa.Table) -> pa.Table:
        import polars as pl

        frame = pl.DataFrame(pl.from_arrow(records))
        order = ["high", "low", "best", "hash", "position", PARTITION, ROW]
        ranked = frame.sort(order, descending=[False, False, True, False, False, False, False])
        over = ranked.with_columns(place=pl.int_range(pl.len()).over("high", "low")).filter(pl.col("place") >= self.rows)
        reason, nobody = pl.lit("over_cap"), pl.lit(None, dtype=pl.String)
        verdicts = over.sort(PARTITION, ROW).with_columns(
            reason=reason, keeper_id=nobody, keeper_position=pl.lit(None, dtype=pl.Int32)
        )
        schema = pa.schema([pa.field(PARTITION, pa.int64()), *VERDICT_FIELDS])
        return verdicts.select(schema.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def _column(name: str) -> str:
    """Return the column that a part of a group is made of."""
    match = _OF_URLS.fullmatch(name)
    return match[2] if match else name


def _values(table: pa.Table, name: str) -> pa.Array:
    """Return what a part of a group is in each row, as text; null where it is not given."""
    match = _OF_URLS.fullmatch(name)
    if match is None:
        return table.column(name).combine_chunks().cast(pa.string())
    return each_host(hosts_of(table.column(match[2])), domain_of if match[1] == "domain" else str)


def _group_hashes(values: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return 128 bits for the values of each row; each combination that there is is hashed once."""
    import polars as pl

    frame = pl.DataFrame(pl.from_arrow(values))
    groups = frame.unique(maintain_order=True).with_row_index("_group")
    texts = (json.dumps(row[1:]).encode() for row in groups.iter_rows())
    hashes = [xxhash.xxh3_128_intdigest(text) for text in texts]
    halves = np.asarray([(number >> 64, number & 0xFFFFFFFFFFFFFFFF) for number in hashes], np.uint64).reshape(-1, 2)
    at = frame.join(groups, on=frame.columns, how="left", nulls_equal=True, maintain_order="left")["_group"].to_numpy()
    return halves[at, 0], halves[at, 1]
