"""One partition as a worker sees it: columns by name for given rows, wherever they were written."""

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.keys import SOURCE
from mmdata.engine.runstore import ROUND, Partition, RunStore
from mmdata.engine.state import CHILD_BITS, Documents, State
from mmdata.errors import PartitionError
from mmdata.plan import Plan, Step, written
from mmdata.schema import BASE_FIELDS, BASE_NAMES, OUTCOME, PROFILE, ROW, is_embedding
from mmdata.stages.verbs import Filter, Split, Stage
from mmdata.storage import digest_bytes

Retries = dict[str, list[list[str]]]


class Held:
    """The rows held under one key: column files, and what was computed since. Of a row held twice the later counts.

    rounds  the outcomes that each round of `mmdata retry` asks about again; rows that ended so count as missing until a
            column file says that it answers the round
    beside  reads the embeddings beside the n-th column file, when somebody asks for them
    """

    def __init__(
        self,
        tables: list[pa.Table],
        fields: list[pa.Field],
        rounds: Sequence[Sequence[str]] = (),
        beside: Callable[[int, pa.Table, pa.Field], pa.Array] | None = None,
    ) -> None:
        self.empty = pa.schema(fields).empty_table()
        self.profiles = {profile for table in tables for profile in profiles_of(table)}
        self._beside, self._files = beside, list(tables)
        self.tables: list[pa.Table] = []
        self._orders: list[tuple[np.ndarray, np.ndarray]] = []
        self.num_files = len(tables)
        answered = max((int((table.schema.metadata or {}).get(ROUND, 0)) for table in tables), default=0)
        self.round = len(rounds) if len(rounds) > answered else 0
        self._again = sorted({outcome for outcomes in rounds[answered:] for outcome in outcomes})
        for table in tables:
            self.add(table.replace_schema_metadata(None))

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        rows = table.column(ROW).to_numpy()
        order = np.argsort(rows, kind="stable")
        self.tables.append(table)
        self._orders.append((rows[order], order))

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows that are not held, or are to be asked about again."""
        left = rows
        for held, _ in self._orders:
            left = left[~np.isin(left, held, assume_unique=True)]
        return np.union1d(left, self._failed(np.setdiff1d(rows, left))) if self.round else left

    def recovered(self, table: pa.Table) -> pa.Table:
        """Return new rows without those that were asked about again and failed again."""
        if not self.round:
            return table
        again = np.isin(table.column(ROW).to_numpy(), self._failed(table.column(ROW).to_numpy()))
        return table.filter(pa.array(~again | table.column(OUTCOME).is_null().to_numpy()))

    def _failed(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows that are held with an outcome that is asked about again."""
        known = np.concatenate([held for held, _ in self._orders]) if self._orders else rows[:0]
        rows = rows[np.isin(rows, known)]
        outcomes = self.take(rows, [OUTCOME]).column(0)
        failed: np.ndarray = rows[pc.is_in(outcomes, pa.array(self._again, pa.string())).to_numpy()]
        return failed

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return columns for rows, in the order of the rows."""
        pieces, places, left = [], [], np.full(len(rows), True)
        for number, (held, order) in reversed(list(enumerate(self._orders))):
            at = np.searchsorted(held, rows)
            here = left & (at < len(held)) & (held[np.minimum(at, len(held) - 1)] == rows) if len(held) else ~left & False
            found = np.flatnonzero(here)
            left[found] = False
            if len(found):
                pieces.append(self._whole(number, columns).take(pa.array(order[at[found]])))
                places.append(found)
        if left.any():
            raise PartitionError(f"{len(rows)} rows of {list(columns)} wanted, {sum(map(len, places))} are held")
        if len(pieces) == 1:
            return pieces[0]
        if not pieces:
            return self.empty.select(list(columns))
        return pa.concat_tables(pieces).take(pa.array(np.argsort(np.concatenate(places), kind="stable")))

    def _whole(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Return columns of a table; where only a flag stands for an embedding, it is read from beside the file, once."""
        for name in columns:
            field, place = self.empty.schema.field(name), self.tables[number].schema.get_field_index(name)
            if is_embedding(field.type) and self.tables[number].schema.field(place).type == pa.bool_():
                assert self._beside is not None
                found = self._beside(number, self._files[number], field)
                self.tables[number] = self.tables[number].set_column(place, field, found)
        return self.tables[number].select(list(columns))


class PartitionView:
    """The columns of one partition under one plan; `retries` as in Generation, where work is done or forecast."""

    def __init__(
        self, run: RunStore, plan: Plan, keys: dict[int, str], partition: Partition, retries: Retries | None = None
    ) -> None:
        self.run, self.plan, self.keys, self.partition, self.retries = run, plan, keys, partition, retries or {}
        self._held: dict[int, Held] = {}

    def held(self, index: int) -> Held:
        """Return what is held of a step's columns (SOURCE: the rows themselves)."""
        if index not in self._held:
            key, ident = self.keys[index], self.partition.ident

            def beside(number: int, table: pa.Table, field: pa.Field) -> pa.Array:
                return self.run.embeddings(f"{key}/{ident}.{number}", table, field)

            tables = list(self.run.held(key, ident))
            self._held[index] = Held(tables, self._fields(index), self.retries.get(key, ()), beside)
        return self._held[index]

    def forget(self, index: int) -> None:
        """Forget what was computed of a step's columns and not written."""
        self._held.pop(index, None)

    def _fields(self, index: int) -> list[pa.Field]:
        """Return the fields of a step's column files."""
        row, outcome = pa.field(ROW, pa.int64()), pa.field(OUTCOME, pa.string())
        if index == SOURCE:
            return [row, *source_fields(self.plan), outcome]
        stage = self.plan.steps[index].stage
        if isinstance(stage, Split):
            return [row, pa.field("sample_id", pa.string()), pa.field("position", pa.int32()), *stage.writes()]
        return [row, *result_fields(stage), outcome]

    def home_space(self, index: int) -> int:
        """Return the row space that a step's columns belong to."""
        if index == SOURCE:
            return 0
        step = self.plan.steps[index]
        return step.space + isinstance(step.stage, Split)

    def columns(self, homes: dict[str, int], rows: np.ndarray, space: int) -> pa.Table:
        """Return columns for rows of a row space; a column from an earlier space comes from the row's ancestor."""
        found: dict[str, pa.ChunkedArray] = {ROW: pa.chunked_array([rows], pa.int64())}
        for home in dict.fromkeys(homes.values()):
            names = [name for name, where in homes.items() if where == home]
            ancestors = rows >> (CHILD_BITS * (space - self.home_space(home)))
            table = self._take_repeated(home, ancestors, names)
            found |= {name: table.column(name) for name in names}
        return pa.table(found)

    def batch_columns(self, step: Step, rows: np.ndarray) -> pa.Table:
        """Return the columns that a step reads, for rows of its space."""
        return self.columns(step.sources, rows, step.space)

    def documents(self, state: State) -> Documents | None:
        """Return which rows of the current space are blocks of documents; null when none is."""
        all_homes = self.homes_in(state.space)
        homes = {name: all_homes[name] for name in ("sample_id", "document", "media")}
        table = self.columns(homes, state.rows, state.space)
        flags = table.column("document").to_numpy()
        if not flags.any():
            return None
        codes = np.unique(table.column("sample_id").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
        return Documents(np.where(flags, codes, -1), table.column("media").is_valid().to_numpy())

    def homes_in(self, space: int) -> dict[str, int]:
        """Return where each column lies for the rows of a row space."""
        last = max((step.index + 1 for step in self.plan.steps if self.home_space(step.index) <= space), default=0)
        return self.homes_after(last)

    def homes_after(self, num_steps: int) -> dict[str, int]:
        """Return where each column lies after the first steps of the plan."""
        homes = {field.name: SOURCE for source in self.plan.source for field in source.fields()}
        for step in self.plan.steps[:num_steps]:
            homes |= {field.name: step.index for field in written(step.stage)}
            if isinstance(step.stage, Split):
                homes |= {"sample_id": step.index, "position": step.index}
        return homes

    def digest(self, index: int, rows: np.ndarray) -> str:
        """Return the digest of what came back: a step's columns for rows, however many files they lie in."""
        held = self.held(index)
        table = held.take(rows, held.empty.column_names).cast(held.empty.schema).combine_chunks()
        flat = [
            name for name, column in zip(table.column_names, table.columns, strict=True) if not pa.types.is_nested(column.type)
        ]
        tables = [table.select(flat)]
        for name in table.column_names:
            if name not in flat:
                column = table.column(name).combine_chunks()
                tables += [pa.table({name: leaf}) for leaf in _leaves(column)]
        sink = pa.BufferOutputStream()
        for part in tables:
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
        return digest_bytes(sink.getvalue())

    def _take_repeated(self, home: int, rows: np.ndarray, names: list[str]) -> pa.Table:
        unique, inverse = np.unique(rows, return_inverse=True)
        table = self.held(home).take(unique, names)
        return table if len(unique) == len(rows) and np.array_equal(unique, rows) else table.take(pa.array(inverse))


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """Yield what a nested array holds as flat ones: who is there, how long lists are, values.

    Rows that were read back lie otherwise in memory than rows just made, where nulls are nested; these arrays do not.
    """
    if pa.types.is_fixed_size_list(array.type):
        yield array.is_valid()
        yield from _leaves(array.flatten())
    elif pa.types.is_list(array.type):
        yield from (array.is_valid(), array.value_lengths().fill_null(0))
        yield from _leaves(array.flatten())
    elif pa.types.is_struct(array.type):
        yield array.is_valid()
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_nested(array.type):
        yield pa.array(array.to_pylist(), array.type)
    else:
        yield array.take(pa.array(np.arange(len(array))))


def profiles_of(table: pa.Table) -> list[str]:
    """Return the profiles that a table's metadata name, each as JSON."""
    found: list[str] = json.loads((table.schema.metadata or {}).get(PROFILE, b"[]"))
    return found


def source_fields(plan: Plan) -> list[pa.Field]:
    """Return the fields of the plan's rows: the base columns, then whatever any of its sources carries."""
    found = {field.name: field for source in plan.source for field in source.fields()}
    return [*BASE_FIELDS, *(field for name, field in found.items() if name not in BASE_NAMES)]


def result_fields(stage: Stage) -> list[pa.Field]:
    """Return the fields that a row-wise stage fills: a verdict for a Filter that drops, else the columns it adds."""
    if isinstance(stage, Filter) and not stage.tag:
        return [pa.field("reason", pa.string()), pa.field("value", pa.float32())]
    return list(written(stage))


def source_rows(plan: Plan, partition: Partition) -> pa.Table:
    """Read the rows of a partition from its source, numbered, with the same columns for every source."""
    source = plan.source[partition.source]
    table = source.read(partition.part)
    for field in source_fields(plan):
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    table = table.select([*(field.name for field in source_fields(plan)), OUTCOME])
    return table.add_column(0, ROW, pa.array(np.arange(table.num_rows, dtype=np.int64)))
