"""What a run says of one column: each row's value, its groups, whether it was kept. Read once, partition by partition.

Decided here: rows are those of the row space in which the column was written. A row is kept when the generation kept it or
something split from it. A document counts by its best and by its worst row, separately for all its rows and for those that
were kept; a pair is a sample of its own. What is read goes to a temporary file, since later questions need it several times
and memory would grow with the run.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.columns import read_parquet
from mmdata.engine.runstore import Generation, Partition, RunStore, load_generation
from mmdata.engine.state import CHILD_BITS, NOBODY
from mmdata.engine.view import PartitionView
from mmdata.errors import ConfigError, did_you_mean
from mmdata.report.columns import distinct, sparse_column
from mmdata.schema import ROW
from mmdata.stages.verbs import SourceSlice, Split

NO_GROUP = "(none)"
MAX_GROUPS = 10_000
PIECE = 1 << 18  # records that are looked at together

# What is counted: each bit of a record's flags says that it counts there. Rows; documents by their best row; by their worst.
ROWS, BEST, WORST = 1, 2, 4
ALL, KEPT = 0, 3  # shifts: of all rows with a value, of those kept


@dataclass(frozen=True)
class Part:
    """The rows of a partition that have a value.

    rows       (N,) int64, sorted          values    (N,) float64 or int64, finite
    kept       (N,) bool; null while the generation is not finished
    documents  (N,) int64, a code for each document, -1 for a pair
    groups     for each column to group by, (N,) int64 codes
    without    rows of the generation that do not have the column; null as `kept`
    held       rows that have it, values or not: `missing` of them null or NaN, `infinite` infinite
    """

    rows: np.ndarray
    values: np.ndarray
    kept: np.ndarray | None
    documents: np.ndarray
    groups: list[np.ndarray]
    without: int | None
    held: int
    missing: int
    infinite: int


@dataclass
class Groups:
    """The values of a column that rows are grouped by, each with a code in the order in which they came."""

    column: str
    codes: dict[str, int] = field(default_factory=dict)

    def of(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return the codes of values, (N,) int64."""
        coded = pc.dictionary_encode(values.combine_chunks(), null_encoding="encode")
        names = [NO_GROUP if value is None else str(value) for value in coded.dictionary.to_pylist()]
        own = np.array([self.codes.setdefault(name, len(self.codes)) for name in names], np.int64)
        if len(self.codes) > MAX_GROUPS:
            raise ConfigError(
                f"`{self.column}` has more than {MAX_GROUPS:,} values: no groups to look at",
                hint="group by a column of few values, such as `source`",
            )
        return own[coded.indices.to_numpy()] if len(coded) else np.zeros(0, np.int64)


class ColumnRows:
    """A column of the newest finished generation of a run that has it, or else of one at work.

    by  columns to group by; null = `source`, and `language` where there is one

    Raises ConfigError where the run, the column or a group's column is not there, or is none to sweep.
    """

    def __init__(self, url: str, column: str, by: Sequence[str] | None = None) -> None:
        self.run, self.column = RunStore(url), column
        self.generation, self.finished = _generation(self.run, column)
        self.plan, number = self.generation.plan, self.generation.number
        self.keys = self.run.keys(number)
        self.heads = self.run.manifest(number)["heads"] if self.finished else [""] * len(self.generation.partitions)
        first = PartitionView(self.run, self.plan, self.keys, Partition(0, "", 0, SourceSlice("", "", 0, 0)))
        splits = sum(isinstance(step.stage, Split) for step in self.plan.steps)
        self.home = first.homes_in(splits)[column]
        self.space, self._below = first.home_space(self.home), splits - first.home_space(self.home)
        self.homes = first.homes_in(self.space)
        self.by = [Groups(name) for name in self._by(by)]
        self.whole = not pa.types.is_floating(self.plan.fields[column].type)

    @property
    def given_up(self) -> int:
        """Partitions that the generation ended without."""
        return sum(head is None for head in self.heads)

    def parts(self) -> Iterator[tuple[int, Part]]:
        """Yield the number of each partition that was not given up, and its rows."""
        for number, head in enumerate(self.heads):
            if head is not None:
                yield number, self.part(number)

    def part(self, number: int) -> Part:
        """Read the rows of a partition: the same each time."""
        view = self.view(number)
        held = view.held(self.home)
        rows = held.rows()
        alive, without = self._alive(number, rows)
        column = held.take(rows, [self.column]).column(0)
        there = column.is_valid().to_numpy()
        values = column.drop_null().to_numpy(zero_copy_only=False).astype(np.int64 if self.whole else np.float64)
        infinite, finite = int(np.isinf(values).sum()), np.isfinite(values)
        num_held, rows, values = len(rows), rows[there][finite], values[finite]
        return Part(
            rows, values, None if alive is None else np.isin(rows, alive), self._documents(view, rows),
            [groups.of(sparse_column(view, self.homes[groups.column], groups.column, rows, self.space)) for groups in self.by],
            without, num_held, num_held - len(rows) - infinite, infinite,
        )  # fmt: skip

    def fates(self, number: int) -> dict[int, str]:
        """Return the reasons of the rows of a partition that were judged out; empty while that is not known."""
        table = self._state(number, ["space", ROW, "reason"])
        if table is None:
            return {}
        table = table.filter(pc.and_(pc.equal(table.column("space"), self.space), pc.is_valid(table.column("reason"))))
        return dict(zip(table.column(ROW).to_pylist(), table.column("reason").to_pylist(), strict=True))

    def view(self, number: int) -> PartitionView:
        """Return a partition."""
        return PartitionView(self.run, self.plan, self.keys, self.generation.partitions[number])

    def _by(self, by: Sequence[str] | None) -> list[str]:
        usual: tuple[str, ...] = ("source", "language")
        names = [name for name in usual if name in self.homes] if by is None else list(dict.fromkeys(by))
        for name in names:
            if name not in self.homes:
                raise ConfigError(
                    f"rows cannot be grouped by `{name}`: there is no such column", hint=did_you_mean(name, self.homes)
                )
            if not groupable(self.plan.fields[name].type):
                hint = "group by a column of few words or whole numbers"
                raise ConfigError(f"rows cannot be grouped by `{name}`: it is {self.plan.fields[name].type}", hint=hint)
        return names

    def _state(self, number: int, columns: list[str]) -> pa.Table | None:
        record = self.run.record(self.heads[number]) if self.finished else None
        return None if record is None else read_parquet(self.run.state_of(record), columns)

    def _alive(self, number: int, held: np.ndarray) -> tuple[np.ndarray | None, int | None]:
        """Return the rows of the column's space that were kept, or have descendants that were; and how many are not held."""
        table = self._state(number, ["space", ROW, "stage"])
        if table is None:
            return None, None
        rows, space = table.column(ROW).to_numpy(), table.column("space").to_numpy()
        alive = rows[table.column("stage").to_numpy() == NOBODY]
        without = np.isin(rows[space == self.space], held, invert=True)
        return distinct(np.sort(alive >> (CHILD_BITS * self._below))), int(np.count_nonzero(without))

    def _documents(self, view: PartitionView, rows: np.ndarray) -> np.ndarray:
        flags = sparse_column(view, self.homes["document"], "document", rows, self.space).fill_null(False).to_numpy()
        if not flags.any():
            return np.full(len(rows), -1)
        ids = sparse_column(view, self.homes["sample_id"], "sample_id", rows, self.space)
        codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        return np.where(flags, codes, -1)


class Spill:
    """Records of value, flags and groups, in a temporary file that is gone when it is closed.

    kind       type of the values              totals   rows with a value, by flag
    documents  there are some                  rows_of  for each column to group by, rows by code
    """

    def __init__(self, whole: bool, num_by: int) -> None:
        self.kind = np.dtype(np.int64 if whole else np.float64)
        self.dtype = np.dtype([("value", self.kind), ("flags", np.uint8), ("groups", np.uint16, (num_by,))])
        self.totals: Counter[int] = Counter()
        self.documents = False
        self.rows_of = np.zeros((num_by, MAX_GROUPS), np.int64)
        self.ends: list[tuple[int, int]] = []  # number of a partition, and where its records end
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, number: int, part: Part, at_most: bool) -> None:
        """Add the rows of a partition, then what its documents count as."""
        records = [self._rows(part)]
        if (part.documents >= 0).any():
            self.documents = True
            records += [
                self._documents(part, at_most, ALL),
                *([] if part.kept is None else [self._documents(part, at_most, KEPT)]),
            ]
        for made in records:
            self._file.write(made.tobytes())
        for shift in (ALL, KEPT):
            self.totals[ROWS << shift] += int(np.count_nonzero(records[0]["flags"] & (ROWS << shift)))
        for place, codes in enumerate(part.groups):
            self.rows_of[place] += np.bincount(codes, minlength=MAX_GROUPS)
        self.ends.append((number, (self.ends[-1][1] if self.ends else 0) + sum(map(len, records))))

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield all records in the order in which they were added."""
        self._file.seek(0)
        while data := self._file.read(PIECE * self.dtype.itemsize):
            yield np.frombuffer(data, self.dtype)

    def values(self, flag: int) -> Callable[[], Iterator[np.ndarray]]:
        """Return a function that yields the values of the records that count as `flag`."""
        return lambda: (piece["value"][piece["flags"] & flag > 0] for piece in self.pieces())

    def _rows(self, part: Part) -> np.ndarray:
        flags = np.where(part.documents < 0, ROWS | BEST | WORST, ROWS)
        kept = 0 if part.kept is None else np.where(part.kept, flags, 0)
        return self._records(part.values, flags << ALL | kept << KEPT, part.groups)

    def _documents(self, part: Part, at_most: bool, among: int) -> np.ndarray:
        """Return a record for the best row of each document, and one for the worst, among all rows or those kept."""
        chosen = part.kept if among == KEPT and part.kept is not None else True
        inside = np.flatnonzero((part.documents >= 0) & chosen)
        order = inside[np.lexsort((part.values[inside], part.documents[inside]))]
        codes = part.documents[order]
        firsts = np.flatnonzero(np.diff(codes, prepend=-1))
        lasts = np.append(firsts[1:], len(codes)) - 1 if len(codes) else firsts
        best, worst = (firsts, lasts) if at_most else (lasts, firsts)
        made = []
        for places, flag in ((best, BEST), (worst, WORST)):
            # A document is of the group of its first row, whichever of them is looked at.
            lead = np.array([], np.int64) if not len(order) else np.minimum.reduceat(order, firsts)
            made.append(
                self._records(part.values[order[places]], np.full(len(places), flag << among), [g[lead] for g in part.groups])
            )
        return np.concatenate(made)

    def _records(self, values: np.ndarray, flags: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
        records = np.zeros(len(values), self.dtype)
        records["value"], records["flags"] = values, flags
        for place, codes in enumerate(groups):
            records["groups"][:, place] = codes
        return records


def sweepable(kind: pa.DataType) -> bool:
    """Say whether a column of this type has thresholds."""
    types = pa.types
    return bool(types.is_floating(kind) or types.is_boolean(kind) or (types.is_integer(kind) and kind != pa.uint64()))


def groupable(kind: pa.DataType) -> bool:
    """Say whether rows can be grouped by a column of this type."""
    return bool(pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind))


def _generation(run: RunStore, column: str) -> tuple[Generation, bool]:
    """Return the newest finished generation that has the column, else the newest; and whether it is finished."""
    if run.owner() is None:
        raise ConfigError(f"{run.url}: not a run folder", hint="give the --run-dir of `mmdata run`")
    finished = run.finished()
    numbers = [*reversed(finished), *(number for number in reversed(run.generations()) if number not in finished)]
    if not numbers:
        raise ConfigError(f"{run.url}: nothing was run here yet", hint="give the --run-dir of a run that has started")
    newest: Generation | None = None
    for number in numbers:
        generation = load_generation(run.url, number)
        newest = newest or generation
        if column in generation.plan.fields and sweepable(generation.plan.fields[column].type):
            return generation, number in finished
    assert newest is not None
    raise _no_column(newest, column)


def _no_column(generation: Generation, column: str) -> ConfigError:
    fields = generation.plan.fields
    known = sorted(name for name, each in fields.items() if sweepable(each.type) and not name.startswith("_"))
    there = f"columns with thresholds: {', '.join(known)}" if known else "no column of this run holds numbers"
    what = f"it is {fields[column].type}, which has no thresholds" if column in fields else "there is no such column"
    near = did_you_mean(column, known) if known and column not in fields else ""
    hint = f"{near} {there}" if near.startswith("did") else there
    return ConfigError(f"{generation.plan.name}, generation {generation.number}: `{column}`: {what}", hint=hint)
