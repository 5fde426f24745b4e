"""Shards in img2dataset's layouts: `00000.tar` (or a folder `00000/` of files, or neither), `00000.parquet`, `00000_stats.json`.

Two departures, both so that the same responses give the same bytes: all times are zero, and members are in key order.
Rows that failed are in the parquet and not among the members, as there.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, log10
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mmdata.config import Model
from mmdata.errors import PartitionError
from mmdata.failpoint import step
from mmdata.shards.tar import Member, TarFile
from mmdata.storage import Store

FORMATS = ("webdataset", "files", "parquet")
ROW_GROUP = 100
MAX_LEFTOVERS = 1000
SAMPLES_PER_SHARD = 10_000
# Names of columns that the layout itself has; img2dataset refuses a list's own columns of these names, too.
RESERVED = (
    "key", "caption", "url", "width", "height", "original_width", "original_height", "status", "error_message", "exif", "md5",
    "sha256", "sha512",
)  # fmt: skip

Keep = Callable[[str, dict[str, bytes]], Iterable[Member]]


class Layout(Model):
    """What img2dataset lets its users choose of the layout, under its names."""

    output_format: Literal["webdataset", "files", "parquet"] = "webdataset"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    oom_shard_count: Annotated[int, Field(ge=1, le=12)] = 5
    extract_exif: bool = True
    compute_hash: Literal["md5", "sha256", "sha512"] | None = "sha256"

    def fields(self, columns: tuple[pa.Field, ...]) -> tuple[pa.Field, ...]:
        """Return the parquet's fields: the list's own columns, then what became of each row."""
        own = [name for name, _ in _RESULTS if not (name == "exif" and not self.extract_exif)]
        own += [self.compute_hash] if self.compute_hash and self.compute_hash not in {c.name for c in columns} else []
        kinds = dict(_RESULTS)
        result = [pa.field(name, kinds.get(name, pa.string())) for name in own]
        image = [pa.field(self.encode_format, pa.binary())] if self.output_format == "parquet" else []
        return (*columns, *result, *image)


_RESULTS = (
    ("key", pa.string()), ("status", pa.string()), ("error_message", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
    ("original_width", pa.int32()), ("original_height", pa.int32()), ("exif", pa.string()),
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What happened to one row: `data` is what is stored, null for a failure; `sha256` is the layout's hash, if another."""

    columns: dict[str, object]
    status: str
    error_message: str | None
    data: bytes | None = None
    suffix: str = "jpg"
    sizes: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)
    exif: str | None = None
    sha256: str | None = None


def counted_in(rows: int) -> int:
    """Return the `number_sample_per_shard` by which the keys of a shard of `rows` rows are counted.

    It is img2dataset's default where that suffices: the last shard of a list, which is short, has keys as wide as the others.
    """
    return max(SAMPLES_PER_SHARD, rows)


@dataclass
class Shard:
    """A shard being written in a scratch folder; `commit` or `replace` puts its files into a store.

    rows     number_sample_per_shard, which says how wide keys are
    columns  the list's own columns, in order; `caption` among them means that samples have a text
    marks    key-value pairs for the parquet's footer
    """

    scratch: Path
    number: int
    rows: int
    columns: tuple[pa.Field, ...]
    layout: Layout = field(default_factory=Layout)
    marks: dict[str, str] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The shard's name: its number in five digits, or as many as the layout says."""
        return f"{self.number:0{self.layout.oom_shard_count}d}"

    def key(self, index: int) -> str:
        """Return the key of a row: shard number and row number, as img2dataset counts them."""
        digits = ceil(log10(self.rows)) if self.rows > 1 else 0
        return f"{10**digits * self.number + index:0{digits + self.layout.oom_shard_count}d}"

    def write(self, items: Iterable[tuple[int, Item]]) -> None:
        """Write rows in order: (row number in the shard, what happened to it)."""
        schema = pa.schema(self.layout.fields(self.columns), metadata=self.marks or None)
        group: list[dict[str, object]] = []
        with pq.ParquetWriter(self.scratch / f"{self.name}.parquet", schema) as parquet, self._keeping() as keep:
            for index, item in items:
                group.append(self._row(index, item, keep))
                if len(group) == ROW_GROUP:
                    parquet.write_table(pa.Table.from_pylist(group, schema=schema))
                    group = []
            if group:
                parquet.write_table(pa.Table.from_pylist(group, schema=schema))
        stats = self.scratch / f"{self.name}_stats.json"
        stats.write_text(json.dumps(self._stats(), indent=4), encoding="utf-8")
        self.files += [f"{self.name}.parquet", stats.name]

    def commit(self, store: Store, folder: str) -> str:
        """Create the files and, last, the stats file whose presence marks the shard as done; return the folder.

        Where an attempt that was killed has left other bytes the shard goes to `folder.a1`, and so on: nothing is ever
        taken away from under a writer that may still live.
        """
        for place in (folder, *(f"{folder}.a{number}" for number in range(1, MAX_LEFTOVERS + 1))):
            with step("payload"):
                if all(store.create_from(f"{place}/{name}", self.scratch / name) for name in self.files):
                    return place
        raise PartitionError(
            f"{store.url}/{folder}: {MAX_LEFTOVERS} killed attempts have left shard {self.name} with other bytes",
            hint="`mmdata gc` frees them",
        )

    def replace(self, store: Store) -> None:
        """Put the files into a folder of their own, over those of the same names; the stats file goes first and comes last."""
        store.delete(self.files[-1])
        store.delete(self.name)
        store.delete(f"{self.name}.tar")
        for name in self.files:
            store.delete(name)
            store.create_from(name, self.scratch / name)

    def _row(self, index: int, item: Item, keep: Keep) -> dict[str, object]:
        record = self._record(index, item)
        self.statuses[item.status] += 1
        self.messages["success" if item.status == "success" else str(item.error_message)] += 1
        if item.data is not None:
            members = {item.suffix: item.data, "json": json.dumps(record, indent=4).encode()}
            if "caption" in item.columns:
                members["txt"] = str(item.columns["caption"] or "").encode()
            placed = keep(str(record["key"]), members)
            for member in placed:
                if member.name.endswith(f".{item.suffix}"):
                    self.members[index] = member
        return {**record, self.layout.encode_format: item.data} if self.layout.output_format == "parquet" else record

    @contextmanager
    def _keeping(self) -> Iterator[Keep]:
        """Open what samples are written to, and give the function that takes one."""
        if self.layout.output_format == "webdataset":
            self.files.append(f"{self.name}.tar")
            with TarFile(self.scratch / f"{self.name}.tar") as tar:
                yield tar.write
        else:
            yield self._keep_files if self.layout.output_format == "files" else lambda *_: ()

    def _keep_files(self, key: str, members: dict[str, bytes]) -> Iterable[Member]:
        (self.scratch / self.name).mkdir(exist_ok=True)
        for suffix, data in members.items():
            (self.scratch / self.name / f"{key}.{suffix}").write_bytes(data)
            self.files.append(f"{self.name}/{key}.{suffix}")
        return ()

    def _record(self, index: int, item: Item) -> dict[str, object]:
        width, height, original_width, original_height = item.sizes
        results = {
            "key": self.key(index), "status": item.status, "error_message": item.error_message,
            "width": width, "height": height, "original_width": original_width, "original_height": original_height,
        } | ({"exif": item.exif} if self.layout.extract_exif else {})  # fmt: skip
        # A hash to be checked stands among the columns of the parquet; in the JSON the one computed comes last.
        own = {name: value for name, value in item.columns.items() if name != self.layout.compute_hash}
        return {**own, **results} | ({self.layout.compute_hash: item.sha256} if self.layout.compute_hash else {})

    def _stats(self) -> dict[str, object]:
        return {
            "count": self.statuses.total(), "successes": self.statuses["success"],
            "failed_to_download": self.statuses["failed_to_download"], "failed_to_resize": self.statuses["failed_to_resize"],
            "duration": 0.0, "start_time": 0.0, "end_time": 0.0, "status_dict": dict(self.messages),
        }  # fmt: skip
