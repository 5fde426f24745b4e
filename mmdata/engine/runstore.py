"""A run folder: where everything of a run lies, and in which order it is committed.

run.json                        plan name and source: whose folder this is
generations/N.json              what a run was asked: plan, options, partitions; written before work starts
columns/KEY/PARTITION.n.parquet column files of named rows; n counts additions to the same key
columns/KEY/PARTITION.n.*.npy   embeddings beside a column file, one line a row of it
payload/KEY/STAGE/              payload sets
tasks/KEY.json .parquet         records of tasks, and the fates of their rows
passes/KEY/                     what passes of GlobalFilters and Sinks wrote
passes/KEY/media-MIB/           media sorted for a corpus: deleted once it is there
corpora/KEY/                    corpora; `corpus` points to the newest
manifest/N.json                 what generation N came to; written last
facts/ status.json lease/       facts that vary between runs: times, progress, who is at work
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from mmdata.engine.beside import Beside, joined, put_beside
from mmdata.engine.columns import DIGEST, FIRST, ColumnFile, dense, growing, parquet_bytes
from mmdata.engine.held import ROUND
from mmdata.errors import ConfigError, PartitionError, RunError
from mmdata.failpoint import step
from mmdata.plan import Plan
from mmdata.schema import PROFILE, ROW
from mmdata.stages.verbs import SourceSlice
from mmdata.storage import LocalStore, Store, digest_bytes, digest_json, open_store

ASKED = "facts/asked"
MEDIA = "media-"  # begins the name of a folder of sorted media


@dataclass(frozen=True)
class Partition:
    """A slice of the input: its number in this run folder, a digest that names it for ever, and its size."""

    number: int
    ident: str
    source: int
    part: SourceSlice

    @property
    def rows(self) -> int:
        """Number of entries of the list file in it."""
        return self.part.stop - self.part.start


@dataclass(frozen=True)
class Generation:
    """What a run was asked, as its workers see it.

    retries  by key of a step: the outcomes that each round of `mmdata retry` asked about again
    """

    number: int
    plan: Plan
    partitions: tuple[Partition, ...]
    allow: tuple[str, ...] = ()
    retries: dict[str, list[list[str]]] = field(default_factory=dict)


class RunStore:
    """A run folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store: Store = open_store(url)

    def claim(self, plan: Plan) -> None:
        """Make this folder the plan's, or refuse it when it is another's."""
        mine = {"plan": plan.name, "source": [source.label() for source in plan.source]}
        theirs = self.owner()
        if theirs is None and self.store.create("run.json", _json(mine)):
            return
        theirs = theirs or self.read_json("run.json")
        if theirs != mine:
            raise ConfigError(
                f"{self.url} belongs to plan `{theirs['plan']}` over {', '.join(theirs['source'])}, "
                f"not to `{mine['plan']}` over {', '.join(mine['source'])}",
                hint="use a run folder of its own for each plan and source",
            )

    def owner(self) -> dict[str, Any] | None:
        """Return whose folder this is, if it is anyone's."""
        return self.read_json("run.json") if self.store.exists("run.json") else None

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """Return a JSON object of the run folder."""
        try:
            return json.loads(self.store.read(name))
        except ValueError as error:
            raise self.damaged(name, error) from error

    def damaged(self, name: str, error: Exception) -> RunError:
        """Return the error for a file of the run folder that cannot be read back."""
        return RunError(
            f"{self.url}/{name} is damaged: {error}", hint="restore it from a copy, or delete the run folder and run again"
        )

    def last_number(self) -> int:
        """Return the highest number that a generation ever had, 0 for none; numbers are never given out twice."""
        return highest(self.store, "generations/{}.json")

    def generations(self) -> list[int]:
        """Return the numbers of the generations that were asked for and not freed, ascending."""
        return [number for number in range(1, self.last_number() + 1) if not self.store.exists(f"generations/{number}.gone")]

    def keys(self, number: int) -> dict[int, str]:
        """Return the keys that a generation's source and steps had when it was asked for, by index.

        Stages may have got another version since, or weights that are not at hand.
        """
        name = f"generations/{number}.json"
        found = self.read_json(name)["keys"]
        if not isinstance(found, list):
            raise self.damaged(name, ValueError("it does not list its keys"))
        return dict(enumerate(found, start=-1))

    def finished(self) -> list[int]:
        """Return the numbers of the generations that have a manifest: ascending, but the one that was asked for last is last.

        One of a call that looked at a part of the source (`--limit`) never counts as that.
        """
        numbers = [number for number in self.generations() if self.store.exists(f"manifest/{number}.json")]
        asked = int(self.store.read(ASKED)) if self.store.exists(ASKED) else 0
        limited = {number for number in numbers if self.read_json(f"generations/{number}.json").get("limited")}
        return sorted(numbers, key=lambda number: (number not in limited, number == asked, number))

    def note_asked(self, number: int) -> None:
        """Note which generation was asked for last: whoever goes back to an earlier plan means that one from then on."""
        text = str(number).encode()
        if not self.store.exists(ASKED) or self.store.read(ASKED) != text:
            self.store.put(ASKED, text)

    def manifest(self, number: int) -> dict[str, Any]:
        """Return what a generation came to, after checking its digest."""
        name = f"manifest/{number}.json"
        facts = self.read_json(name)
        if not isinstance(facts, dict) or facts.pop("digest", None) != digest_json(facts):
            raise self.damaged(name, ValueError("it does not match its own digest"))
        found: dict[str, Any] = facts
        return found

    def files(self, key: str, ident: str, coded: Sequence[str] = ()) -> Iterator[ColumnFile]:
        """Yield the column files of a key and partition, opened, in the order they were added; `coded` as in ColumnFile."""
        number = 0
        while self.store.exists(name := f"columns/{key}/{ident}.{number}.parquet"):
            source = self.store.path(name) if isinstance(self.store, LocalStore) else pa.BufferReader(self.store.read(name))
            beside = partial(self._embeddings, name.removesuffix("parquet"))
            yield ColumnFile(source, partial(self.damaged, name), beside, coded)
            number += 1

    def held(self, key: str, ident: str) -> Iterator[pa.Table]:
        """Yield the column files of a key and partition, read whole, in the order they were added."""
        return (file.read() for file in self.files(key, ident))

    def add_columns(self, key: str, ident: str, number: int, table: pa.Table, round_: int = 0) -> None:
        """Create the next column file of a key and partition; `round_` says which round of `mmdata retry` it answers.

        Embeddings go beside it, first.
        """
        noted = {name: value for name, value in (table.schema.metadata or {}).items() if name in (DIGEST, PROFILE)}
        noted |= {ROUND: str(round_).encode()} if round_ else {}
        rows = table.column(ROW).to_numpy()
        noted |= {FIRST: str(rows[0]).encode()} if dense(rows) and growing(rows) else {}
        table, arrays = put_beside(table.replace_schema_metadata(noted or None))
        name = f"columns/{key}/{ident}.{number}.parquet"
        with step("columns"):
            for array in arrays:
                self.store.create_same(f"columns/{key}/{ident}.{number}.{array.name}", array.data)
            if not self.store.create(name, parquet_bytes(table)):
                raise PartitionError(f"{self.url}/{name}: another attempt has got there first; the next goes on from it")

    def _embeddings(self, stem: str, flags: pa.ChunkedArray, told: Beside) -> pa.Array:
        """Return the embeddings that lie beside a column file, named `stem` and what the file says."""
        name = f"{stem}{told['file']}"
        try:
            return joined(flags, self.store.read(name), told)
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise self.damaged(name, error) from error

    def settle(self, folder: str) -> None:
        """Let the names in a folder reach the disk: one that was found may be of a writer killed before it saw to that."""
        if isinstance(self.store, LocalStore):
            self.store.disk.sync_folder(self.store.path(folder))

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of a finished task."""
        try:
            found: dict[str, Any] = self.read_json(f"tasks/{key}.json")
        except FileNotFoundError:
            return None
        return found

    def records(self, head: str) -> Iterator[dict[str, Any]]:
        """Yield the record of a partition's last task and of those before it, as far as they are there."""
        key: str | None = head
        while key is not None and (record := self.record(key)) is not None:
            yield record
            key = record["before"]

    def commit(self, key: str, record: dict[str, Any], state: bytes) -> dict[str, Any]:
        """Write a task's fates, then its record; the first record wins and is returned."""
        with step("state"):
            self.store.create(f"tasks/{key}.{digest_bytes(state)[:16]}.parquet", state)
        with step("record"):
            self.store.create(f"tasks/{key}.json", _json(record))
        found: dict[str, Any] = self.read_json(f"tasks/{key}.json")
        return found

    def state_of(self, record: dict[str, Any]) -> bytes:
        """Return the fates that belong to a record, after checking their digest."""
        name = f"tasks/{record['key']}.{record['state'][:16]}.parquet"
        data = self.store.read(name)
        if digest_bytes(data) != record["state"]:
            raise self.damaged(name, ValueError("it does not match its record"))
        return data

    def write_pass(self, name: str, table: list[pa.Table]) -> None:
        """Write what a pass made: an Arrow file of one batch a table."""
        buffer = io.BytesIO()
        with pa.ipc.new_file(buffer, table[0].schema) as writer:
            for part in table:
                batches = part.combine_chunks().to_batches()
                empty = pa.RecordBatch.from_pydict({n: [] for n in part.schema.names}, schema=part.schema)
                writer.write_batch(batches[0] if batches else empty)
        with step("pass"):
            self.store.create_same(f"passes/{name}.arrow", buffer.getvalue())

    def has_pass(self, name: str) -> bool:
        """Say whether a pass has written this."""
        return self.store.exists(f"passes/{name}.arrow")

    def read_pass(self, name: str, batch: int = 0) -> pa.Table:
        """Return one batch of what a pass wrote."""
        try:
            with self._arrow(f"passes/{name}.arrow") as file:
                return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(batch)])
        except pa.ArrowInvalid as error:
            raise self.damaged(f"passes/{name}.arrow", error) from error

    def _arrow(self, name: str) -> AbstractContextManager[Any]:
        """Open a file for Arrow: mapped where it can be, so that only what is looked at is read."""
        return pa.memory_map(str(self.store.path(name))) if isinstance(self.store, LocalStore) else self.store.open(name)

    def create_generation(self, number: int, facts: dict[str, Any]) -> bool:
        """Write what a run is asked, before it starts; return False where something else stands there."""
        with step("generation"):
            return self.store.create(f"generations/{number}.json", _json(facts))

    def free_media(self, key: str) -> None:
        """Delete the media that were sorted for a corpus, now that it is committed: records first, then what they vouch for."""
        with step("free"):
            for folder in self.store.list(f"passes/{key}"):
                if folder.startswith(MEDIA):
                    for name in sorted(self.store.list(f"passes/{key}/{folder}"), key=lambda name: name.endswith(".tar")):
                        self.store.delete(f"passes/{key}/{folder}/{name}")
                    self.store.delete(f"passes/{key}/{folder}")

    def create_manifest(self, number: int, facts: dict[str, Any]) -> None:
        """Write what a generation came to; nothing is written after it."""
        with step("manifest"):
            self.store.create_same(f"manifest/{number}.json", _json({**facts, "digest": digest_json(facts)}))


def highest(store: Store, name: str) -> int:
    """Return the highest number under which there is an object, 0 for none; numbers are given out without gaps.

    Asks for single objects, never for a listing: an object store may show a new object there late.
    """
    low, high = 0, 1
    while store.exists(name.format(high)):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if store.exists(name.format(middle)) else (low, middle)
    return low


def load_generation(url: str, number: int) -> Generation:
    """Return a generation of a run folder as it was when its run started."""
    facts = RunStore(url).read_json(f"generations/{number}.json")
    plan = Plan.from_json(json.dumps(facts["located"]))
    return Generation(number, plan, partitions_of(facts), tuple(facts["allow"]), facts.get("retries", {}))


def partitions_of(facts: dict[str, Any]) -> tuple[Partition, ...]:
    """Return the partitions that a generation's file lists."""
    return tuple(
        Partition(item["number"], item["ident"], item["source"], SourceSlice(**item["part"])) for item in facts["partitions"]
    )


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
