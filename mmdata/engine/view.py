"""One partition as a worker sees it: columns by name for given rows, wherever they were written."""

import numpy as np
import pyarrow as pa

from mmdata.engine.columns import DIGEST, digest_table, growing
from mmdata.engine.held import Held
from mmdata.engine.keys import SOURCE
from mmdata.engine.runstore import Partition, RunStore
from mmdata.engine.state import CHILD_BITS, Documents, State
from mmdata.plan import Plan, Step, written
from mmdata.schema import BASE_FIELDS, BASE_NAMES, OUTCOME, REASON, ROW
from mmdata.stages.verbs import Filter, Lender, Split, Stage

Retries = dict[str, list[list[str]]]


class PartitionView:
    """The columns of one partition under one plan; `retries` as in Generation, where work is done or forecast."""

    def __init__(
        self, run: RunStore, plan: Plan, keys: dict[int, str], partition: Partition, retries: Retries | None = None
    ) -> None:
        self.run, self.plan, self.keys, self.partition, self.retries = run, plan, keys, partition, retries or {}
        self._held: dict[int, Held] = {}
        self._pairs_only: set[int] = set()  # row spaces without a document

    def held(self, index: int) -> Held:
        """Return what is held of a step's columns (SOURCE: the rows themselves)."""
        if index not in self._held:
            fields = self._fields(index)
            coded = [field.name for field in fields if field.type == REASON]
            files = list(self.run.files(self.keys[index], self.partition.ident, coded))
            self._held[index] = Held(files, fields, self.retries.get(self.keys[index], ()))
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
        lent = lent_names(self.plan)
        for home in dict.fromkeys(homes.values()):
            names = [name for name, where in homes.items() if where == home]
            ancestors = rows >> (CHILD_BITS * (space - self.home_space(home)))
            stored = [name for name in names if home != SOURCE or name not in lent]
            table = self._take_repeated(home, ancestors, stored)
            found |= {name: table.column(name) for name in stored}
            if len(stored) < len(names):
                found |= self._borrow(ancestors, [name for name in names if name not in stored])
        return pa.table({name: found[name] for name in (ROW, *homes)})

    def batch_columns(self, step: Step, rows: np.ndarray) -> pa.Table:
        """Return the columns that a step reads, for rows of its space."""
        return self.columns(step.sources, rows, step.space)

    def documents(self, state: State) -> Documents | None:
        """Return which rows of the current space are blocks of documents; null when none is."""
        if state.space in self._pairs_only:
            return None
        homes = self.homes_in(state.space)
        flags = self.columns({"document": homes["document"]}, state.rows, state.space).column("document").to_numpy()
        if not flags.any():
            self._pairs_only.add(state.space)
            return None
        table = self.columns({name: homes[name] for name in ("sample_id", "media")}, state.rows, state.space)
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
        return held.noted(rows) or self._digest(index, held.take(rows, held.empty.column_names))

    def noted(self, index: int, table: pa.Table) -> pa.Table:
        """Return rows of a step's columns, in the order of their numbers, with a note of their digest."""
        return table.replace_schema_metadata({DIGEST: self._digest(index, table)})

    def _digest(self, index: int, table: pa.Table) -> str:
        empty = self.held(index).empty
        return digest_table(table.select(empty.column_names).cast(empty.schema))

    def _borrow(self, rows: np.ndarray, names: list[str]) -> dict[str, pa.ChunkedArray]:
        """Return columns that the source keeps in its files; nulls where this partition's source has no such."""
        source = self.plan.source[self.partition.source]
        unique, inverse = np.unique(rows, return_inverse=True)
        kinds = {field.name: field.type for other in self.plan.source for field in other.fields()}
        found = {name: pa.chunked_array([pa.nulls(len(rows), kinds[name])]) for name in names}
        if isinstance(source, Lender) and (mine := [name for name in names if name in source.lends()]):
            table = source.lend(self.partition.part, mine, unique).take(pa.array(inverse))
            found |= {name: table.column(name) for name in mine}
        return found

    def _take_repeated(self, home: int, rows: np.ndarray, names: list[str]) -> pa.Table:
        if growing(rows):
            return self.held(home).take(rows, names)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self.held(home).take(unique, names).take(pa.array(inverse))


def source_fields(plan: Plan) -> list[pa.Field]:
    """Return the fields of the plan's rows that are stored: the base columns, then whatever any of its sources carries."""
    found = {field.name: field for source in plan.source for field in source.fields()}
    return [*BASE_FIELDS, *(field for name, field in found.items() if name not in (*BASE_NAMES, *lent_names(plan)))]


def lent_names(plan: Plan) -> set[str]:
    """Return the columns that sources keep in their files."""
    return {name for source in plan.source if isinstance(source, Lender) for name in source.lends()}


def result_fields(stage: Stage) -> list[pa.Field]:
    """Return the fields that a row-wise stage fills: a verdict for a Filter that drops, else the columns it adds."""
    if isinstance(stage, Filter) and not stage.tag:
        keeper = [pa.field("keeper_id", pa.string()), pa.field("keeper_position", pa.int32())] if stage.names_keeper else []
        return [pa.field("reason", REASON), *keeper, pa.field("value", pa.float32())]
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
