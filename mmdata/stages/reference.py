"""The sink that keeps of rows only what others can be compared with: the reference of an eval set."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from mmdata.dedupe.kept import check_kept, columns_kept, source_of
from mmdata.failpoint import step
from mmdata.schema import PARTITION, ROW
from mmdata.shards.manifest import Finish
from mmdata.shards.reference_files import check_names
from mmdata.shards.units import EmitPlace
from mmdata.stages.kept import KEPT, facts_json, finish_kept, write_rows
from mmdata.stages.passes import Emit, Fold, Pass, Scatter
from mmdata.stages.verbs import Sink
from mmdata.storage import Store


class ReferenceSink(Sink):
    """Write `reference/`: ids, hashes, embeddings and digests of what was kept, for `against` and `decontaminate`; no media.

    columns   `phash`, `pdq` or their `_views`, embeddings, and of all else digests: `raw_sha256`, `pixels`, `folded(text)`, ...
    """

    name: ClassVar[str] = "reference"

    columns: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("columns")
    @classmethod
    def _files(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        check_names(columns)
        return columns

    def reads(self, fields: dict[str, pa.Field]) -> tuple[str, ...]:
        """Read the rows' names and what is kept of them."""
        check_kept(self.columns, fields)
        return tuple(dict.fromkeys(("sample_id", "position", *map(source_of, self.columns))))

    def passes(self) -> tuple[Pass, ...]:
        """Rows by partitions, what they hold, then one task and one part for some of them."""
        return (
            Scatter(self._records, self._bucket),
            Fold(self._count, self._counts),
            Emit(lambda value: value.num_rows, self._needs, lambda _value, _unit, records: records, self._write),
        )

    def _records(self, table: pa.Table) -> pa.Table:
        kept = columns_kept(table, self.columns)
        return kept.append_column(PARTITION, table.column(PARTITION)).append_column(ROW, table.column(ROW))

    def _bucket(self, records: pa.Table, num_buckets: int) -> np.ndarray:
        buckets: np.ndarray = records.column(PARTITION).to_numpy() % num_buckets
        return buckets

    def _count(self, records: pa.Table) -> pa.Table:
        kept = records.schema.remove(records.schema.get_field_index(ROW))
        kept = kept.remove(kept.get_field_index(PARTITION))
        return pa.table({"rows": pa.array([records.num_rows], pa.int64())}).replace_schema_metadata({KEPT: facts_json(kept)})

    def _counts(self, parts: list[pa.Table]) -> pa.Table:
        return pa.concat_tables(parts)  # with the metadata of the first

    def _needs(self, value: pa.Table, unit: int, num_buckets: int) -> Sequence[int]:
        return (unit,)

    def _write(self, place: EmitPlace, value: pa.Table, records: pa.Table) -> dict[str, str]:
        records = records.combine_chunks().sort_by([(PARTITION, "ascending"), (ROW, "ascending")])
        return write_rows(place, records.drop_columns([PARTITION, ROW]))

    def finish(self, store: Store, folder: str, value: pa.Table, facts: Finish) -> None:
        """Write what the reference is."""
        with step("corpus"):
            finish_kept(store, folder, (value.schema.metadata or {})[KEPT], facts)
