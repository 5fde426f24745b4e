"""One shard in img2dataset's `webdataset` layout: `00000.tar`, `00000.parquet`, `00000_stats.json`.

Two departures, both so that the same responses give the same bytes: all times are zero, and members are in key order.
Rows that failed are in the parquet and not in the tar, as there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, log10
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.errors import PartitionError
from mmdata.failpoint import step
from mmdata.shards.tar import Member, TarFile
from mmdata.storage import Store

SHARD_DIGITS = 5
ROW_GROUP = 100
MAX_LEFTOVERS = 1000

_RESULT_FIELDS = (
    pa.field("key", pa.string()), pa.field("status", pa.string()), pa.field("error_message", pa.string()),
    pa.field("width", pa.int32()), pa.field("height", pa.int32()), pa.field("original_width", pa.int32()),
    pa.field("original_height", pa.int32()), pa.field("exif", pa.string()), pa.field("sha256", pa.string()),
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What happened to one row: `data` is what is stored, null for a failure."""

    columns: dict[str, object]
    status: str
    error_message: str | None
    data: bytes | None = None
    suffix: str = "jpg"
    sizes: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)
    exif: str | None = None
    sha256: str | None = None


@dataclass
class Shard:
    """A shard being written in a scratch folder; `commit` puts its three files into a store."""

    scratch: Path
    number: int
    rows: int
    columns: tuple[pa.Field, ...]
    members: dict[int, Member] = field(default_factory=dict)
    records: list[dict[str, object]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The shard's name: its number in five digits."""
        return f"{self.number:0{SHARD_DIGITS}d}"

    def key(self, index: int) -> str:
        """Return the key of a row: shard number and row number, as img2dataset counts them."""
        digits = ceil(log10(self.rows)) if self.rows > 1 else 0
        return f"{10**digits * self.number + index:0{digits + SHARD_DIGITS}d}"

    def write(self, items: Iterable[tuple[int, Item]]) -> None:
        """Write rows in order."""
        with TarFile(self.scratch / f"{self.name}.tar") as tar:
            for index, item in items:
                record = self._record(index, item)
                self.records.append(record)
                if item.data is not None:
                    placed = tar.write(str(record["key"]), self._members(item, record, item.data))
                    self.members[index] = next(member for member in placed if member.name.endswith(f".{item.suffix}"))

    def _members(self, item: Item, record: dict[str, object], data: bytes) -> dict[str, bytes]:
        members = {item.suffix: data, "json": json.dumps(record, indent=4).encode()}
        if "caption" in item.columns:
            members["txt"] = str(item.columns["caption"] or "").encode()
        return members

    def commit(self, store: Store, folder: str) -> str:
        """Create the tar, the parquet and, last, the stats file whose presence marks the shard as done; return the folder.

        Where an attempt that was killed has left other bytes the shard goes to `folder.a1`, and so on: nothing is ever
        taken away from under a writer that may still live.
        """
        schema = pa.schema([*self.columns, *_RESULT_FIELDS])
        path = self.scratch / f"{self.name}.parquet"
        pq.write_table(pa.Table.from_pylist(self.records, schema=schema), path, row_group_size=ROW_GROUP)
        stats = self.scratch / f"{self.name}_stats.json"
        stats.write_text(json.dumps(self._stats(), indent=4), encoding="utf-8")
        files = (self.scratch / f"{self.name}.tar", path, stats)
        for place in (folder, *(f"{folder}.a{number}" for number in range(1, MAX_LEFTOVERS + 1))):
            with step("payload"):
                if all(store.create_from(f"{place}/{file.name}", file) for file in files):
                    return place
        raise PartitionError(
            f"{store.url}/{folder}: {MAX_LEFTOVERS} killed attempts have left shard {self.name} with other bytes",
            hint="`mmdata gc` frees them",
        )

    def _record(self, index: int, item: Item) -> dict[str, object]:
        width, height, original_width, original_height = item.sizes
        return {
            **item.columns, "key": self.key(index), "status": item.status, "error_message": item.error_message,
            "width": width, "height": height, "original_width": original_width, "original_height": original_height,
            "exif": item.exif, "sha256": item.sha256,
        }  # fmt: skip

    def _stats(self) -> dict[str, object]:
        statuses = [str(record["status"]) for record in self.records]
        messages = ["success" if r["status"] == "success" else str(r["error_message"]) for r in self.records]
        return {
            "count": len(self.records), "successes": statuses.count("success"),
            "failed_to_download": statuses.count("failed_to_download"),
            "failed_to_resize": statuses.count("failed_to_resize"),
            "duration": 0.0, "start_time": 0.0, "end_time": 0.0,
            "status_dict": {message: messages.count(message) for message in dict.fromkeys(messages)},
        }  # fmt: skip
