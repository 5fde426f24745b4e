"""Keep one of all rows that are the same, or are alike, over the whole corpus."""

from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from mmdata.dedupe.alike import REASON, Things
from mmdata.dedupe.exact import bucket_of, column_of, exact_verdicts, hashes_of, values_of
from mmdata.dedupe.groups import LENGTH, ranks, rule_columns, score_columns
from mmdata.errors import ConfigError
from mmdata.schema import PARTITION, PAYLOAD_COLUMN, ROW
from mmdata.stages.likeness import COMPARED, Hashes, SemDeDup, Texts, Vectors, Way
from mmdata.stages.passes import Gather, Pass, Scatter, Share
from mmdata.stages.verbs import GlobalFilter


class Dedupe(GlobalFilter):
    """Of rows that are the same keep one: that with the highest `best`, then by the rules of `keep`, then the smallest id.

    by        a column or several: `raw_sha256`, `sha256` (stored bytes), `pixels` (of `fingerprint`), `normal(url)`,
              `folded(text)`, or any. Rows of which one is null are never duplicates
    likeness  in place of equal `by`: hashes within a radius
    semantic  or embeddings of at least a cosine
    captions  or texts that share most of their words
    semdedup  or SemDeDup's rule on embeddings, which says itself what is kept
    keep      `area`, `caption_length`, `earliest`, COLUMN (highest first), `lowest(COLUMN)`: the first that tells two rows apart
    unit      `row`, or `sample`: of two samples (documents) that are alike all rows of one go
    share     of the hashes or pictures that two rows or samples have together, the like ones counted once, at least this
              share is to be alike; without it one like pair is enough

    Every verdict names its keeper. Where rows are alike its value is their distance: bits, one minus a cosine, or one minus
    the share. A row stays that is near a dropped one but not near that one's keeper (except by `semdedup`).
    """

    name: ClassVar[str] = "dedupe"
    version: ClassVar[int] = 2

    by: str | tuple[str, ...] = "raw_sha256"
    best: str | None = None
    likeness: Hashes | None = None
    semantic: Vectors | None = None
    captions: Texts | None = None
    semdedup: SemDeDup | None = None
    keep: tuple[str, ...] = ()
    unit: Literal["row", "sample"] = "row"
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Dedupe":
        given = [name for name in ("by", "likeness", "semantic", "captions", "semdedup") if name in self.model_fields_set]
        if len(given) > 1:
            told = " and ".join(f"`{name}`" for name in given)
            raise ValueError(f"{told} are ways to compare rows: give one, and a second `dedupe` for the other")
        if self.way is None and (self.unit == "sample" or self.share is not None):
            raise ValueError("`unit` and `share` are for rows that are alike: `likeness: {column: pixels, radius: 0}` is exact")
        if self.semdedup is not None and (self.keep or self.best or self.unit == "sample" or self.share is not None):
            raise ValueError("`semdedup` says itself what is kept: leave `best`, `keep`, `unit` and `share` out")
        return self

    @property
    def way(self) -> Way | None:
        """How rows are compared, if not by equal values."""
        return self.likeness or self.semantic or self.captions or self.semdedup

    @property
    def device(self) -> str | None:
        """Where products are made: on no GPU that was not asked for."""
        return None if self.resources.gpus else "cpu"

    @property
    def _by(self) -> tuple[str, ...]:
        if self.way is not None:
            return (self.way.column,)
        return (self.by,) if isinstance(self.by, str) else self.by

    @property
    def _names(self) -> tuple[str, ...]:
        return ("sample_id", "position", *(["document"] if self.unit == "sample" else []))

    @property
    def _rules(self) -> tuple[str, ...]:
        return (*([self.best] if self.best else []), *self.keep)

    def reads(self) -> tuple[str, ...]:
        """Read what is compared, what ranks the copies, and the identity of the row."""
        return tuple(dict.fromkeys((*map(column_of, self._by), *rule_columns(self._rules), *self._names)))

    def numeric(self) -> tuple[str, ...]:
        """Return the ranking columns."""
        return score_columns(self._rules)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse columns that cannot be compared so."""
        if self.way is not None:
            self.way.check(fields)
            return
        for name in self._by:
            kind = fields[column_of(name)].type
            derived = name != column_of(name)
            if not pa.types.is_string(kind) and (derived or pa.types.is_nested(kind)):
                raise ConfigError(
                    f"`dedupe`: `by: {name}` cannot compare `{column_of(name)}`, which is {kind}",
                    hint="`normal` and `folded` are of texts"
                    if derived
                    else "lists of hashes and embeddings: `likeness`, `semantic`",
                )

    def check_size(self, num: int, fields: dict[str, pa.Field]) -> None:
        """Refuse a likeness that chance alone gives."""
        if self.way is not None:
            self.way.check_size(num, fields)

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("duplicate",) if self.way is None else (REASON,)

    def passes(self) -> tuple[Pass, ...]:
        """Bring together what is the same and choose in each group; or find out together what is alike, then choose."""
        if self.way is None:
            return (Scatter(self._prepare, self._bucket), Gather(self._choose))
        return (Scatter(self._prepare), *self.way.shares(self.device), Share(self._judge, most=1))

    def _prepare(self, table: pa.Table) -> pa.Table:
        needed = dict.fromkeys((*self._names, PARTITION, ROW, *rule_columns(self._rules)))
        columns = {name: table.column(name) for name in needed if name != PAYLOAD_COLUMN}
        # All ids of a corpus are more than one array of short texts can hold; and of captions their length is enough.
        columns["sample_id"] = columns["sample_id"].cast(pa.large_string())
        if LENGTH in self._rules:
            columns[LENGTH] = pc.utf8_length(columns.pop("text"))
        compared = {f"_by{place}": values_of(table, name) for place, name in enumerate(self._by)}
        there = np.logical_and.reduce([column.is_valid().to_numpy() for column in compared.values()])
        if self.unit == "sample":  # what has no picture goes with those that have
            there[:] = True
        records = pa.table(columns | compared).filter(pa.array(there))
        return records if self.way is None else self.way.prepare(records, whole=self.unit == "sample")

    def _bucket(self, table: pa.Table, num_buckets: int) -> np.ndarray:
        if len(self._by) == 1:
            return bucket_of(table.column(COMPARED), num_buckets)
        mixed = np.zeros(table.num_rows, np.uint64)
        for place in range(len(self._by)):
            mixed = mixed * np.uint64(31) + (hashes_of(table.column(f"_by{place}")) >> np.uint64(32))
        return (mixed % np.uint64(num_buckets)).astype(np.int64)

    def _choose(self, table: pa.Table) -> pa.Table:
        return exact_verdicts(table, [f"_by{place}" for place in range(len(self._by))], self.best, self.keep)

    def _judge(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert self.way is not None
        assert found is not None
        of = np.arange(rows.num_rows) if self.unit == "row" else _samples(rows)
        return self.way.judge(rows, found, Things(of, ranks(rows, self._rules)), self.share)


def _samples(rows: pa.Table) -> np.ndarray:
    """Return the number of each row's sample, (N,) int64.

    Published ids repeat: two pairs of one id are two samples, and no document lies in two partitions.
    """
    ids = rows.column("sample_id").combine_chunks().dictionary_encode()
    key = rows.column(PARTITION).to_numpy() * max(len(ids.dictionary), 1) + ids.indices.to_numpy()
    alone = ~rows.column("document").to_numpy()
    key[alone] = key.max(initial=-1) + 1 + np.flatnonzero(alone)
    found: np.ndarray = np.unique(key, return_inverse=True)[1].astype(np.int64)
    return found
