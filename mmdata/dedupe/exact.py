"""Exact duplicates: rows with an equal fingerprint.

Decided here: the order in which rows arrive never matters. Copies are ranked by a column (highest first, null last), then
by (sample_id, position, partition, row), so that any split of the work gives the same keeper.
"""

import numpy as np
import pyarrow as pa
import xxhash

from mmdata.schema import PARTITION, ROW, VERDICT_FIELDS


def bucket_of(values: pa.ChunkedArray, num_buckets: int) -> np.ndarray:
    """Return a bucket in 0..num_buckets for each value, by a hash that is the same on every machine.

    values   N texts or numbers
    returns  (N,) int64
    """
    hashes = [xxhash.xxh3_64_intdigest(str(value).encode()) % num_buckets for value in values.to_pylist()]
    return np.asarray(hashes, dtype=np.int64)


def exact_verdicts(table: pa.Table, by: str, best: str | None) -> pa.Table:
    """Judge all rows of a table: one of each group of equal `by` is kept, the others name it as their keeper.

    table    columns `_partition`, `_row`, `sample_id`, `position`, `by`, and `best` if given
    returns  verdicts of the dropped rows, sorted by (`_partition`, `_row`), with the group's rank value
    """
    import polars as pl  # a worker that only downloads does not need it

    frame = pl.DataFrame(pl.from_arrow(table))
    tail = ["sample_id", "position", PARTITION, ROW]
    keys = [by, *([best] if best else []), *tail]
    descending = [False, *([True] if best else []), *([False] * len(tail))]
    ranked = frame.sort(keys, descending=descending, nulls_last=True)
    ranked = ranked.with_columns(
        keeper_id=pl.col("sample_id").first().over(by),
        keeper_position=pl.col("position").first().over(by),
        place=pl.int_range(pl.len()).over(by),
    )
    value = pl.col(best).cast(pl.Float32) if best else pl.lit(None, dtype=pl.Float32)
    dropped = ranked.filter(pl.col("place") > 0).select(
        PARTITION, ROW, "keeper_id", "keeper_position", reason=pl.lit("duplicate"), value=value
    )
    fields = [pa.field(PARTITION, pa.int64()), *VERDICT_FIELDS]
    schema = pa.schema(fields)
    return dropped.sort(PARTITION, ROW).select(schema.names).to_arrow().cast(schema)
