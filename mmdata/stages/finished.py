"""What all sources of finished datasets share: files of rows whose media are there already.

Decided here: nothing is copied and nothing is trusted. An input that changes while a run goes on stops it, and a damaged one
is refused by name.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from mmdata.catalog import Columns, Entry, Origin, Raw, to_rows
from mmdata.catalog.entry import CarryType
from mmdata.catalog.files import file_digest, refuse_special
from mmdata.errors import ConfigError
from mmdata.schema import BASE_FIELDS, OUTCOME, PAYLOAD, PAYLOAD_COLUMN, REPAIRED
from mmdata.shards.foreign import Place
from mmdata.stages.sources import changed
from mmdata.stages.verbs import Source, SourceSlice

_NO_URL = "http://none.invalid/"  # stands in for the url of a row that has none, and is taken out again


class Finished(Source):
    """Rows whose media are there already, file by file; `carry` names further columns to keep."""

    licence: str = "unknown"
    carry: dict[str, CarryType] = Field(default_factory=dict)
    partition_rows: Annotated[int, Field(ge=1)] = 10_000

    path: str

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files of rows, in order."""

    @abstractmethod
    def count(self, path: Path) -> int:
        """Return the rows of a file."""

    @abstractmethod
    def rows(self, path: Path, part: SourceSlice) -> pa.Table:
        """Return the rows of a slice, without what `extra` adds."""

    @property
    def root(self) -> Path:
        """The folder that files are named from."""
        return Path(self.path)

    def extra(self) -> tuple[pa.Field, ...]:
        """Return further fields."""
        return ()

    def label(self) -> str:
        """Return the kind and the folder's own name."""
        return f"{self.name}:{Path(self.path).name}"

    def located(self, home: Path) -> "Finished":
        """Return itself with an absolute path."""
        return self.model_copy(update={"path": str(home / self.path)})

    def licences(self) -> dict[str, str]:
        """Return the licence as given."""
        return {Path(self.path).name: self.licence}

    def identity(self) -> dict[str, object]:
        """Return what decides how its rows are read."""
        return self.model_dump(mode="json", exclude={"licence", "partition_rows"})

    def fields(self) -> tuple[pa.Field, ...]:
        """Return the base columns, what was mended, what is carried, and `payload`: the images need no download."""
        return (*BASE_FIELDS, REPAIRED, *self.entry().carried(), *self.extra(), pa.field(PAYLOAD_COLUMN, PAYLOAD))

    def scan(self) -> list[SourceSlice]:
        """Cut every file into slices of `partition_rows` rows."""
        found = []
        for path in self.files():
            refuse_special(path)
            name, step = path.relative_to(self.root).as_posix(), self.partition_rows
            with _naming(path):
                digest, rows = self.digest(path), self.count(path)
            found += [SourceSlice(digest, name, start, min(start + step, rows)) for start in range(0, rows, step)]
        return found

    def read(self, part: SourceSlice) -> pa.Table:
        """Return the rows of one slice."""
        path = self.root / part.file
        if self.digest(path) != part.digest:
            raise changed(path)
        with _naming(path):
            return self.rows(path, part)

    def digest(self, path: Path) -> str:
        """Return what names a file's content."""
        return file_digest(path)

    def entry(self) -> Entry:
        """Return how the rows are read."""
        return Entry(files=("*",), format="parquet", guess=False, carry=self.carry, columns=self.named())

    def named(self) -> Columns:
        """Return the names of the columns that play a part."""
        return Columns(url="url", text="text", sample_id="sample_id")

    def made(self, path: Path, records: Sequence[dict[str, Any] | None], first: int) -> pa.Table:
        """Return rows from records of `url`, `text`, `sample_id` and the carried columns; null is a bad row."""
        names = ("url", "text", "sample_id", *self.carry)
        columns = {name: [None if record is None else record.get(name) for record in records] for name in names}
        columns["url"] = [_NO_URL if url is None else url for url in columns["url"]]
        parts = {name: name for name in names[:3]}
        origin = Origin(Path(self.path).name, path.relative_to(self.root).as_posix(), first)
        table = to_rows(self.entry(), [Raw(columns, [record is None for record in records])], parts, origin)
        urls = [None if url == _NO_URL else url for url in table.column("url").to_pylist()]
        return table.set_column(table.schema.get_field_index("url"), "url", pa.array(urls, pa.string()))

    def finished(self, table: pa.Table, places: Sequence[Place | None], outcomes: Sequence[str | None]) -> pa.Table:
        """Return rows with their payloads; a row keeps its own outcome, then that given, then that of its place.

        The place of a text block is null.
        """
        refs = [None if isinstance(place, str) else place for place in places]
        lost = [place if isinstance(place, str) else None for place in places]
        known = table.column(OUTCOME).to_pylist()
        ends = [first or second or third for first, second, third in zip(known, outcomes, lost, strict=True)]
        table = table.drop_columns([OUTCOME]).append_column(PAYLOAD_COLUMN, pa.array(refs, PAYLOAD))
        return table.append_column(OUTCOME, pa.array(ends, pa.string()))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of damage which file has it."""
    try:
        yield
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: not a readable parquet file: {error}", hint="copy it again") from error
