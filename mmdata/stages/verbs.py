"""The six verbs. A stage is an immutable model whose fields are its YAML keys; it holds nothing live.

    Source        a catalog entry, cut into partitions (a Lender: some of its columns stay in its files)
    Map           adds columns: values for the given rows
    Filter        judges rows; adds no column (with `tag: true` it writes a flag instead of dropping)
    Split         one row becomes several in a new row space
    GlobalFilter  judges rows with all partitions in sight, by a short list of passes
    Sink          writes what was kept

A stage adds columns or judges rows, never both. A Recipe is a name for several stages: a plan holds these in its place.
`open` runs once per worker; what it returns runs once per batch.
Trouble with one row is that row's outcome, never an exception.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmdata.config import Model
from mmdata.schema import ROW, VERDICT_FIELDS
from mmdata.shards.manifest import Finish
from mmdata.stages.passes import Pass
from mmdata.storage import Store

T = TypeVar("T")


class Resources(Model):
    """What one task of a stage holds while it runs, and what it may not exceed.

    memory_mib  beyond what its worker held before; a task with GPUs is not held to it
    call_s      one call of the stage may take this long, or
    row_s       this long a row, whichever is more
    """

    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    memory_mib: Annotated[int, Field(ge=64)] = 3072
    call_s: Annotated[float, Field(gt=0)] = 60.0
    row_s: Annotated[float, Field(gt=0)] = 2.0

    def deadline_s(self, rows: int) -> float:
        """Return how long a call over so many rows may take."""
        return max(self.call_s, self.row_s * rows)


QUICK = Resources(row_s=0.002)  # for stages that look at columns alone: what hangs in them is found in minutes


@dataclass
class WorkerContext:
    """What a worker lends to the stages it opens; `enter` keeps a context open as long as the worker lives.

    share  how many machines work on the run: each may take its part of what the outside world allows the run
    """

    store: Store
    allow: tuple[str, ...] = ()
    device: str = "cpu"
    share: int = 1
    exits: ExitStack = field(default_factory=ExitStack)

    def enter(self, manager: AbstractContextManager[T]) -> T:
        """Open a context for the life of this worker and return what it gives."""
        return self.exits.enter_context(manager)


@dataclass(frozen=True)
class Place:
    """Where a payload-writing Map puts its files: a folder of the run, and the number of its shard there."""

    set: str
    shard: int


@dataclass(frozen=True)
class Batch:
    """Rows for a stage: the columns it reads, and upright RGB arrays when it reads `image`.

    table     columns named by `reads()`, and `_row`
    images    (H, W, 3) uint8 each; empty unless `image` was asked for
    prepared  what the stage's own `prepare` made of each image ahead of time; `images` is then empty
    """

    table: pa.Table
    images: Sequence[np.ndarray] = ()
    place: Place | None = None
    prepared: Sequence[np.ndarray] | None = None

    @property
    def rows(self) -> pa.Array:
        """Row numbers, int64."""
        return self.table.column(ROW)


@dataclass(frozen=True)
class ImageWork:
    """What a Map may open to when a part of its work on an image needs neither its model nor its other rows.

    prepare  makes of an image (H, W, 3) uint8 what `work` needs of it, in any thread, while `work` is at the rows before
    work     the Map's function; where a batch holds no `prepared`, it prepares the images itself
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    work: Callable[[Batch], pa.Table]

    def __call__(self, batch: Batch) -> pa.Table:
        """Answer a batch."""
        if batch.prepared is None:
            batch = replace(batch, prepared=[self.prepare(image) for image in batch.images])
        return self.work(batch)


MapFn = Callable[[Batch], pa.Table]
FilterFn = Callable[[Batch], pa.Table]
SplitFn = Callable[[Batch], tuple[np.ndarray, pa.Table]]


class Definition(Model):
    """What all verbs share: a name in YAML and a version number that changes when results do.

    engine_of  (name, engine) where this is another's work by another engine: `name: {engine: engine}` asks for it
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    engine_of: ClassVar[tuple[str, str] | None] = None


class Stage(Definition):
    """A step between source and sink."""

    # Fields that change how fast a stage works, or for whom, but not what comes out.
    not_in_key: ClassVar[set[str]] = {"resources"}

    resources: Resources = Resources()

    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Return the names of the columns it needs (`image` for decoded pixels)."""

    def weights(self) -> tuple[str, ...]:
        """Return the SHA-256 of every weights file it loads; they are part of its key."""
        return ()

    def holds_model(self) -> bool:
        """Say whether it loads weights, without looking at them: its worker is worth keeping."""
        return bool(self.weights())

    def model_id(self) -> str | None:
        """Return the id of the model it loads; manifests name it."""
        return None

    def asked(self) -> dict[str, Any]:
        """Return the fields that decide what comes out, as JSON; they are part of its key."""
        return self.model_dump(mode="json", exclude=self.not_in_key)

    def inputs(self) -> tuple[str, ...]:
        """Return the SHA-256 of every other file that decides what it gives; they are part of its key too."""
        return ()

    def cautions(self) -> tuple[str, ...]:
        """Return what a user has switched off that protects others; manifests say so."""
        return ()

    def numeric(self) -> tuple[str, ...]:
        """Return those of its columns that must hold numbers."""
        return ()

    def boxes(self) -> tuple[str, ...]:
        """Return those of its columns that must hold boxes, `carry: {NAME: boxes}` of a catalog."""
        return ()

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Raise ConfigError where its fields do not fit the columns that there are."""

    def check_size(self, num: int, fields: dict[str, pa.Field]) -> None:
        """Raise ConfigError where its fields do not fit a run of so many rows, before any are lost and without splits."""

    def check_makers(self, makers: dict[str, dict[str, object]]) -> None:
        """Raise ConfigError where a column was made by another model than it must be; `makers` as in `Plan.makers`."""

    def located(self, home: Path) -> "Stage":
        """Return itself with the paths of its files made absolute from `home`: workers may stand in another folder."""
        return self

    def vectors(self) -> tuple[str, ...]:
        """Return those of its columns that must hold embeddings."""
        return ()


class Recipe(Stage, ABC):
    """A name for several stages: whoever writes it gets these."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages that stand for it, in order."""

    def reads(self) -> tuple[str, ...]:
        """Read nothing by itself."""
        return ()


class Map(Stage, ABC):
    """Adds columns."""

    # A whole-partition Map sees all its rows in one batch; the others see them in chunks.
    whole: ClassVar[bool] = False
    # Its values depend on which rows of a document are there: it sees all of them, also where only some are missing.
    documents: ClassVar[bool] = False
    # Outcomes that may not be final: `mmdata retry` asks about these rows again.
    transient: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def writes(self) -> tuple[pa.Field, ...]:
        """Return the fields it adds."""

    def rows_at_once(self) -> int:
        """Return how many rows it likes to have in a batch: a multiple of its model's batch shape."""
        return 1

    @abstractmethod
    def open(self, ctx: WorkerContext) -> MapFn:
        """Return a function from a batch to a table of the written fields (and `_outcome`), row by row.

        Where a model computes them, the table's metadata hold its `profile` (`mmdata.schema.PROFILE`) as JSON.
        """


class Filter(Stage, ABC):
    """Judges rows."""

    # A forecast asks a cheap Filter ahead: it must need nothing but columns, and can end no process.
    cheap: ClassVar[bool] = False
    # Its verdicts also hold `keeper_id` and `keeper_position`: what the row was dropped for.
    names_keeper: ClassVar[bool] = False

    scope: Literal["row", "sample"] = "row"
    tag: bool = False

    @abstractmethod
    def reasons(self) -> tuple[str, ...]:
        """Return the closed list of its reasons."""

    def flag(self) -> str:
        """Return the column that it writes with `tag: true`: its name and, where it judges one column, that."""
        columns = self.numeric()
        return f"{self.name}_{columns[0]}" if columns else self.name

    def flags(self) -> tuple[pa.Field, ...]:
        """Return what it writes with `tag: true`: its flag and, where it names keepers, what is otherwise in the verdict."""
        meaning = f"{self.name} would keep it"
        flag = pa.field(self.flag(), pa.bool_(), metadata={"unit": "flag", "meaning": meaning})
        told = {
            "reason": ("name", "why not"),
            "keeper_id": ("32 hex", "for which sample"),
            "value": ("distance", "how far that is"),
        }
        fields = {field.name: field for field in VERDICT_FIELDS}
        evidence = [
            pa.field(f"{self.flag()}_{name}", fields[name].type, metadata={"unit": unit, "meaning": f"{meaning}: if not, {what}"})
            for name, (unit, what) in told.items()
        ]
        return (flag, *(evidence if self.names_keeper else ()))

    def tagged(self, verdicts: pa.Table) -> pa.Table:
        """Return the columns of `flags` by the verdicts of each row, null for those that stay."""
        columns = [verdicts.column("reason").is_null()]
        if self.names_keeper:
            columns += [
                verdicts.column(name).cast(kind)
                for name, kind in (("reason", pa.string()), ("keeper_id", pa.string()), ("value", pa.float32()))
            ]
        return pa.table(columns, schema=pa.schema(self.flags()))

    @abstractmethod
    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return a function from a batch to a table of `reason` (null = keep) and `value`, row by row.

        A Filter that names keepers also gives `keeper_id` and `keeper_position`.
        """


class Split(Stage, ABC):
    """Makes several rows of one."""

    @abstractmethod
    def writes(self) -> tuple[pa.Field, ...]:
        """Return the fields that its rows have anew; all others come from the parent."""

    @abstractmethod
    def open(self, ctx: WorkerContext) -> SplitFn:
        """Return a function from a batch to (index of the parent in the batch, table of the written fields)."""


class GlobalFilter(Stage, ABC):
    """Judges rows with all partitions in sight.

    Its last pass gives verdicts: a Gather on the rows of its bucket or a Share in one part on all, with `_partition` and sorted
    by (`_partition`, `_row`), with `NOTE` in the table's metadata if people are to be told something; a Judge on those of a
    partition.
    """

    over: Literal["all", "kept"] = "kept"

    @abstractmethod
    def reasons(self) -> tuple[str, ...]:
        """Return the closed list of its reasons."""

    @abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """Return its passes: a Scatter, then a Gather or Shares; or Rounds, if any, and a Judge."""


@dataclass(frozen=True)
class SourceSlice:
    """One partition of a source: content-addressed, so that new files only add partitions."""

    digest: str
    file: str
    start: int
    stop: int


class Source(Definition, ABC):
    """Where rows come from."""

    @abstractmethod
    def label(self) -> str:
        """Return what names it for people; with the plan's name it says whose run folder this is."""

    @abstractmethod
    def located(self, home: Path) -> "Source":
        """Return itself with paths made absolute from `home`: workers may stand in another folder."""

    @abstractmethod
    def licences(self) -> dict[str, str]:
        """Return the licence of each thing it reads, by name."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Return what decides how its rows are read, for keys."""

    @abstractmethod
    def fields(self) -> tuple[pa.Field, ...]:
        """Return the fields of its rows: the base columns, then what it carries."""

    @abstractmethod
    def scan(self) -> list[SourceSlice]:
        """Cut the input into partitions; refuse what cannot be read."""

    @abstractmethod
    def read(self, part: SourceSlice) -> pa.Table:
        """Return the rows of one partition, with `_outcome`."""


class Lender(Source, ABC):
    """A source of which some columns are not copied: they are read from its files for the rows that a stage asks about."""

    @abstractmethod
    def lends(self) -> tuple[str, ...]:
        """Return the names of these columns; they are among its fields."""

    @abstractmethod
    def lend(self, part: SourceSlice, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Return such columns for rows of one partition: (N,) int64, counted from its first, ascending."""


class Sink(Definition, ABC):
    """Writes what was kept."""

    # Fields that change how it is written, but no byte of it.
    not_in_key: ClassVar[set[str]] = set()

    @abstractmethod
    def reads(self, fields: dict[str, pa.Field]) -> tuple[str, ...]:
        """Return the columns it needs, of those there are."""

    @abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """Return its passes: a Scatter and a Fold, a Sort if media may be sorted first, and an Emit."""

    @abstractmethod
    def finish(self, store: Store, folder: str, value: pa.Table, facts: Finish) -> None:
        """Write what lies beside the units; the manifest comes last."""


def judged(reasons: Sequence[str | None], values: Sequence[float | None] | None = None) -> pa.Table:
    """Return the verdict table of a Filter."""
    numbers = [None if value is None else float(value) for value in values or [None] * len(reasons)]
    return pa.table({"reason": pa.array(reasons, pa.string()), "value": pa.array(numbers, pa.float32())})


def first_reason(rules: Sequence[tuple[str, np.ndarray]], num: int) -> pa.Array:
    """Return the reason of each row, of type `REASON`: that of the first rule that it breaks, null if none.

    rules  name and (N,) bool, True where a row breaks it
    """
    codes = np.full(num, -1, np.int32)
    for code, (_, broken) in reversed(list(enumerate(rules))):
        codes[broken] = code
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array([name for name, _ in rules], pa.string()))


def verdicts_on(rows: pa.ChunkedArray, rules: Sequence[tuple[str, np.ndarray]], values: pa.ChunkedArray | None) -> pa.Table:
    """Return what a Judge says of those rows that break a rule, with their values (null: it has none); it names no keeper."""
    reason = first_reason(rules, len(rows))
    said = pa.table({ROW: rows, "reason": reason, "value": pa.nulls(len(rows), pa.float32()) if values is None else values})
    said = said.filter(reason.is_valid())
    keeper = {name: pa.nulls(said.num_rows, kind) for name, kind in (("keeper_id", pa.string()), ("keeper_position", pa.int32()))}
    columns = {ROW: said.column(ROW), "reason": said.column("reason"), **keeper, "value": said.column("value")}
    return pa.table(columns).select([field.name for field in VERDICT_FIELDS])
