"""Measure the media that was stored: what came over the wire and what lies in the payload."""

from typing import ClassVar

import pyarrow as pa

from mmdata.schema import PAYLOAD_COLUMN
from mmdata.stages.verbs import Batch, Map, MapFn, WorkerContext


class Measure(Map):
    """Write stored size in pixels (upright), bytes, aspect ratio and the SHA-256 of the stored bytes.

    The original size, format and raw SHA-256 are known only while the original bytes are at hand, so `download` writes
    those; together they are the measures of a row.
    """

    name: ClassVar[str] = "measure"

    def reads(self) -> tuple[str, ...]:
        """Read the payload reference and the decoded image."""
        return (PAYLOAD_COLUMN, "image")

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the measures."""
        return (
            pa.field("width", pa.int32(), metadata={"unit": "px", "meaning": "stored width, upright"}),
            pa.field("height", pa.int32(), metadata={"unit": "px", "meaning": "stored height, upright"}),
            pa.field("aspect", pa.float32(), metadata={"unit": "ratio", "meaning": "longer side over shorter side"}),
            pa.field("bytes", pa.int64(), metadata={"unit": "B", "meaning": "stored size"}),
            pa.field("sha256", pa.string(), metadata={"unit": "hex", "meaning": "SHA-256 of the stored bytes"}),
        )

    def open(self, ctx: WorkerContext) -> MapFn:
        """Return the measuring function."""
        return self._measure

    def _measure(self, batch: Batch) -> pa.Table:
        sizes = [image.shape[:2] for image in batch.images]
        payload = batch.table.column(PAYLOAD_COLUMN).to_pylist()
        columns = (
            [width for _, width in sizes],
            [height for height, _ in sizes],
            [max(size) / min(size) for size in sizes],
            [ref["size"] for ref in payload],
            [ref["sha256"] for ref in payload],
        )
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, self.writes(), strict=True)], pa.schema(self.writes()))
