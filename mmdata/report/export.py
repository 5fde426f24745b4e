"""A run's download as one flat folder of img2dataset's: additions and retries merged, one parquet row an input row.

Decided here: a row's latest good result is its result; without one, its latest failure. What the columns of a run do not hold
(the words of a failure, EXIF, the size of what is stored) comes from the parquet files that lie beside the tars. A shard is
written anew only when what it is made from has changed; its parquet's footer names that.
"""

import tempfile
from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.engine.columns import read_parquet
from mmdata.engine.keys import SOURCE
from mmdata.engine.runstore import Generation, Partition, RunStore, load_generation
from mmdata.engine.view import PartitionView
from mmdata.errors import ConfigError, RunError
from mmdata.plan import Step, written
from mmdata.schema import BASE_NAMES, OUTCOME, PAYLOAD_COLUMN, ROW
from mmdata.shards.img2dataset import RESERVED, Item, Layout, Shard, counted_in
from mmdata.shards.payloads import fetch_payload
from mmdata.shards.words import NOT_DOWNLOADED, SUCCESS, words
from mmdata.storage import Store, digest_json, open_store

_MADE_FROM = b"mmdata_made_from"
_SIZES = ("width", "height", "original_width", "original_height")
_NOT_ASKED = (NOT_DOWNLOADED, "not_asked")  # an earlier stage judged the row out


@dataclass(frozen=True)
class Request:
    """How a run's download is written out.

    columns      what stands before `url` in every row, by the name in the run and the name there; null = all that is carried,
                 `sample_id` and `caption`
    first_shard  number of the first shard
    samples      number_sample_per_shard; null = img2dataset's default, or what the largest partition needs
    check        column of digests that the downloaded bytes must have, of the layout's hash
    """

    layout: Layout = field(default_factory=Layout)
    columns: dict[str, str] | None = None
    first_shard: int = 0
    samples: int | None = None
    check: str | None = None


@dataclass(frozen=True)
class Exported:
    """What came of it: shards written, shards that were there already, rows and good rows in all."""

    written: int
    kept: int
    rows: int
    successes: int

    def as_text(self) -> str:
        """Return it as one line."""
        there = f", {self.kept} there already" if self.kept else ""
        return f"{self.successes:,} of {self.rows:,} rows downloaded; {self.written} shards written{there}"


def export_img2dataset(url: str, out: str, request: Request | None = None, written: Collection[int] = ()) -> Exported:
    """Write the newest finished generation of a run to a folder, and say what came of it.

    written  numbers of partitions that this call's caller has written already, and that count as such

    Partitions that the run gave up are left out. Raises ConfigError when the run has not ended or has no download, or `out` is a
    run folder itself.
    """
    run = RunStore(url)
    numbers = run.finished()
    if not numbers:
        raise ConfigError(f"{url}: no finished generation", hint="give the --run-dir of a run that has ended")
    export = Export(run, numbers[-1], out, request or Request())
    heads = run.manifest(numbers[-1])["heads"]
    totals = [0, 0, 0, 0]
    for partition, head in zip(export.generation.partitions, heads, strict=True):
        if head is None:  # it was given up
            continue
        fresh, stats = export.write(partition)
        fresh = fresh or partition.number in written
        for place, number in enumerate((fresh, not fresh, stats["rows"], stats["successes"])):
            totals[place] += number
    return Exported(*totals)


class Export:
    """A generation on its way into a folder, partition by partition."""

    def __init__(self, run: RunStore, number: int, out: str, request: Request) -> None:
        self.run, self.store = run, open_store(out)
        if self.store.exists("run.json"):
            raise ConfigError(f"{out} is a run folder", hint="give a folder of its own, for example RUN/export")
        self.generation = load_generation(run.url, number)
        self.step = _download(self.generation)
        self.keys = run.keys(number)
        samples = request.samples or counted_in(max((part.rows for part in self.generation.partitions), default=0))
        columns = _columns(self.generation, request.columns)
        made = {"encode_format": getattr(self.step.stage, "encode_format", request.layout.encode_format)}
        layout = request.layout.model_copy(update=made)
        self.request = replace(request, layout=layout, samples=samples, columns=columns)

    def ready(self, partition: Partition) -> bool:
        """Say whether a partition was downloaded, although the run may not have ended."""
        return self.run.store.exists(f"columns/{self.keys[self.step.index]}/{partition.ident}.0.parquet")

    def write(self, partition: Partition) -> tuple[bool, dict[str, int]]:
        """Write a partition's shard unless it is there; return whether it had to be written, and its counts."""
        view = PartitionView(self.run, self.generation.plan, self.keys, partition)
        return _Part(view, self.step, self.request, self.store).export()


def _download(generation: Generation) -> Step:
    """Return the step that fetches: the first that writes media and what they were before."""
    for step in generation.plan.steps:
        if {PAYLOAD_COLUMN, "raw_sha256"} <= {column.name for column in written(step.stage)}:
            return step
    raise ConfigError(f"plan `{generation.plan.name}` downloads nothing", hint="only a run with a download stage has a layout")


def _columns(generation: Generation, given: dict[str, str] | None) -> dict[str, str]:
    if given is not None:
        return given
    carried = [column.name for source in generation.plan.source for column in source.fields()]
    own = [name for name in dict.fromkeys(carried) if name not in (*BASE_NAMES, *RESERVED, PAYLOAD_COLUMN) and name[0] != "_"]
    return {name: name for name in (*own, "sample_id")} | {"text": "caption"}


class _Part:
    """One partition on its way into a shard."""

    def __init__(self, view: PartitionView, step: Step, request: Request, store: Store) -> None:
        self.view, self.step, self.request, self.store = view, step, request, store
        self.partition: Partition = view.partition
        self.key = view.keys[step.index]

    def export(self) -> tuple[bool, dict[str, int]]:
        """Return whether the shard had to be written, and its counts."""
        tables = list(self.view.run.held(self.key, self.partition.ident))
        made_from = digest_json([self._asked(), self.key, self.partition.ident, [table.num_rows for table in tables]])
        with tempfile.TemporaryDirectory(prefix="mmdata-") as scratch:
            shard = self._shard(Path(scratch), made_from)
            found = self._found(shard.name, made_from)
            if found is not None:
                return False, found
            shard.write(self._items(tables))
            shard.replace(self.store)
        return True, {"rows": shard.statuses.total(), "successes": shard.statuses[SUCCESS]}

    def _asked(self) -> list[object]:
        request = self.request
        return [request.layout.model_dump(), request.columns, request.first_shard, request.samples, request.check]

    def _shard(self, scratch: Path, made_from: str) -> Shard:
        request, fields = self.request, self.view.plan.fields
        assert request.columns is not None
        assert request.samples is not None
        columns = [pa.field(name, fields[own].type) for own, name in {**request.columns, "url": "url"}.items()]
        number = request.first_shard + self.partition.number
        marks = {_MADE_FROM.decode(): made_from}
        return Shard(scratch, number, request.samples, tuple(columns), request.layout, marks)

    def _found(self, name: str, made_from: str) -> dict[str, int] | None:
        """Return the counts of a shard that is there already, made from the same."""
        if not self.store.exists(f"{name}_stats.json") or not self.store.exists(f"{name}.parquet"):
            return None
        with self.store.open(f"{name}.parquet") as file:
            table = pq.ParquetFile(file)
            if (table.schema_arrow.metadata or {}).get(_MADE_FROM) != made_from.encode():
                return None
            statuses = table.read(["status"]).column("status").to_pylist()
        return {"rows": len(statuses), "successes": statuses.count(SUCCESS)}

    def _items(self, tables: list[pa.Table]) -> Iterator[tuple[int, Item]]:
        results = self._results(tables)
        rows = self._rows()
        assert self.request.columns is not None
        names = list(dict.fromkeys((*self.request.columns, "url", *([self.request.check] if self.request.check else []))))
        homes = self.view.homes_after(self.step.index)
        columns = self.view.columns({name: homes[name] for name in names}, rows, self.step.space)
        bad = self._bad()
        for place, (row, values) in enumerate(zip(rows.tolist(), columns.to_pylist(), strict=True)):
            own = {name: values[column] for column, name in self.request.columns.items()} | {"url": values["url"]}
            item = results.get(row)
            if item is None:
                status, message = words(bad[row]) if row in bad else _NOT_ASKED
                item = _Result(None, Item({}, status, message))
            yield place, self._item(item, own, values)

    def _item(self, result: "_Result", own: dict[str, object], values: dict[str, Any]) -> Item:
        item = replace(result.item, columns=own)
        if result.payload is None:
            return item
        if self.request.check is not None and self.request.layout.compute_hash != "sha256":
            item = replace(item, sha256=values[self.request.check])  # the download has checked it
        elif self.request.check is not None and values[self.request.check] != item.sha256:
            return Item(own, *words("hash_mismatch"))
        data = fetch_payload(self.view.run.store, result.payload)
        return replace(item, data=data, suffix=self.request.layout.encode_format)  # as img2dataset, whatever the bytes are

    def _rows(self) -> np.ndarray:
        """Return the rows that the download looked at, and those that were bad before: all of its row space."""
        home = SOURCE if self.step.space == 0 else max(
            step.index for step in self.view.plan.steps[: self.step.index] if self.view.home_space(step.index) == self.step.space
        )  # fmt: skip
        return self.view.held(home).rows()

    def _bad(self) -> dict[int, str]:
        """Return the rows of the source that were no rows, with their outcome."""
        if self.step.space:
            return {}
        table = self.view.held(SOURCE).pieces[0].table([ROW, OUTCOME])
        return {row[ROW]: row[OUTCOME] for row in table.to_pylist() if row[OUTCOME] is not None}

    def _results(self, tables: list[pa.Table]) -> dict[int, "_Result"]:
        """Return what came of each row: the latest good result, else the latest."""
        found: dict[int, _Result] = {}
        for number, table in enumerate(tables):
            for row, result in self._of_addition(number, table):
                if result.payload is not None or row not in found or found[row].payload is None:
                    found[row] = result
        return found

    def _of_addition(self, number: int, table: pa.Table) -> Iterator[tuple[int, "_Result"]]:
        told = _Told(self._beside(number, table))
        homes = self.view.homes_after(self.step.index)
        rows = table.column(ROW).to_numpy()
        asked = self.view.columns({name: homes[name] for name in ("url", "media")}, rows, self.step.space).to_pylist()
        for row, item in zip(asked, table.to_pylist(), strict=True):
            if row["media"] is not None:
                yield item[ROW], told.result(item, row["url"])

    def _beside(self, number: int, table: pa.Table) -> list[dict[str, Any]]:
        """Return the rows of the parquet that lies beside the tar of an addition; none when it is not there."""
        refs = [ref for ref in table.column(PAYLOAD_COLUMN).to_pylist() if ref is not None]
        folder = f"payload/{self.key}/{self.step.stage.name}" + (f".{number}" if number else "")
        name = f"{folder}/{self.partition.number:05d}.parquet"
        if refs:
            name = f"{refs[0]['set']}/{refs[0]['tar'].removesuffix('.tar')}.parquet"
        store = self.view.run.store
        if not store.exists(name):
            return []
        try:
            rows: list[dict[str, Any]] = read_parquet(store.read(name)).to_pylist()
        except pa.ArrowInvalid as error:
            raise RunError(f"{store.url}/{name} is damaged: {error}", hint="restore it from a copy") from error
        return rows


@dataclass(frozen=True)
class _Result:
    """A row's payload, null for a failure, and what its parquet says of it."""

    payload: dict[str, Any] | None
    item: Item


class _Told:
    """The rows of a parquet beside a tar; rows of one url that ended alike come in the order of the run's columns."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows: defaultdict[tuple[str | None, bool], deque[dict[str, Any]]] = defaultdict(deque)
        for row in rows:
            self.rows[row["url"], row["status"] == SUCCESS].append(row)

    def result(self, item: dict[str, Any], url: str | None) -> _Result:
        payload, good = item[PAYLOAD_COLUMN], item[PAYLOAD_COLUMN] is not None
        rows = self.rows[url, good]  # rows that were not written there have none
        told = rows.popleft() if rows else None
        if not good:
            status, message = words(item[OUTCOME] or "decode_error")
            return _Result(None, Item({}, status, message if told is None else told["error_message"]))
        told = told or {}
        width, height, original_width, original_height = (told.get(name, item.get(name)) for name in _SIZES)
        sizes = (width, height, original_width, original_height)
        return _Result(payload, Item({}, SUCCESS, None, None, "", sizes, told.get("exif"), item["raw_sha256"]))
