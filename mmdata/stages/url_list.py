"""A list of urls as img2dataset takes it: one file, or a folder of files of one format, with its columns named by flags.

Decided here: the types of columns that are kept beside come from the first file: a parquet's schema, or what its first rows
hold. The readers are the catalog's own, so a damaged file is refused by name and a bad line costs that line.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.catalog import Columns, Entry, open_list
from mmdata.catalog.entry import CARRY_TYPES, CarryType
from mmdata.catalog.files import list_files
from mmdata.errors import ConfigError, did_you_mean
from mmdata.stages.sources import Listed

InputFormat = Literal[
    "txt", "txt.gz", "csv", "csv.gz", "tsv", "tsv.gz", "json", "json.gz", "jsonl", "jsonl.gz", "parquet"
]  # fmt: skip
_BY_TYPE: tuple[tuple[type, CarryType], ...] = ((bool, "bool"), (int, "int64"), (float, "float64"))


class UrlList(Listed):
    """Rows of url lists; columns named in `columns` are carried along, those in `boxes` as boxes of an image.

    path     a file, or a folder of which all files with the format's suffix are read, in order of their names
    url      the column of urls        caption  the column of texts; none are read without it
    """

    name: ClassVar[str] = "url_list"

    path: str
    format: InputFormat = "txt"
    url: str = "url"
    caption: str | None = None
    columns: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()

    @cached_property
    def definition(self) -> Entry:
        """How the files are read."""
        plain = self._entry({})
        kinds = _kinds(plain, self._first(plain), self.columns) if self.columns else {}
        return self._entry(kinds | dict.fromkeys(self.boxes, "boxes"))

    @property
    def root(self) -> Path:
        """The folder itself, or the file's."""
        path = Path(self.path)
        return path if path.is_dir() else path.parent

    @property
    def title(self) -> str:
        """The name of the file or the folder."""
        return Path(self.path).name

    def label(self) -> str:
        """Return what names it for people."""
        return f"url_list:{self.title}"

    def located(self, home: Path) -> "UrlList":
        """Return itself with an absolute path."""
        return self.model_copy(update={"path": str(home / self.path)})

    def licences(self) -> dict[str, str]:
        """Return the licence of a list that names none."""
        return {self.title: "unknown"}

    def identity(self) -> dict[str, object]:
        """Return what decides how its rows are read."""
        return {"list": self.definition.reading()}

    def _entry(self, carry: dict[str, CarryType]) -> Entry:
        path = Path(self.path)
        pattern = f"*.{self.format}" if path.is_dir() else path.name
        url = "url" if self.format.startswith("txt") else self.url
        return Entry.model_validate({
            "files": [pattern], "format": self.format.removesuffix(".gz"), "guess": False, "carry": carry,
            "columns": Columns(url=url, text=self.caption),
        })  # fmt: skip

    def _first(self, entry: Entry) -> Path:
        return list_files(entry, self.root)[0]


def _kinds(entry: Entry, path: Path, names: Iterable[str]) -> dict[str, CarryType]:
    """Return the types of columns, as the first file has them."""
    if entry.format == "parquet":
        schema = pq.read_schema(path)
        return {name: _kind_of_type(path, name, schema) for name in names}
    asked = entry.model_copy(update={"carry": dict.fromkeys(names, "string")})
    raw = next(open_list(asked, path).read(0, 1 << 40), None)
    return {name: "string" if raw is None else _kind_of(raw.columns[name]) for name in names}


def _kind_of_type(path: Path, name: str, schema: pa.Schema) -> CarryType:
    if name not in schema.names:
        raise ConfigError(f"{path}: has no column `{name}`", hint=did_you_mean(name, schema.names))
    kind = schema.field(name).type
    known: dict[pa.DataType, CarryType] = {carried: word for word, carried in CARRY_TYPES.items()}  # type: ignore[misc]
    if kind in known:
        return known[kind]
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_floating(kind):
        return "float64"
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return "string"
    raise ConfigError(f"{path}: column `{name}` is {kind}", hint="texts, numbers and flags can be kept beside an image")


def _kind_of(values: list[Any]) -> CarryType:
    """Return the narrowest type that holds the values of a JSON or CSV list."""
    values = [value for value in values if value not in (None, "")]
    if values and all(isinstance(value, str) for value in values):
        return _kind_of_cells(values)
    for kind, word in _BY_TYPE:
        if values and all(isinstance(value, kind) or (kind is float and type(value) is int) for value in values):
            return word
    return "string"


def _kind_of_cells(values: list[str]) -> CarryType:
    kinds: tuple[CarryType, ...] = ("int64", "float64")
    for word in kinds:
        try:
            pa.array(values, pa.string()).cast(CARRY_TYPES[word])
        except (pa.ArrowException, UnicodeEncodeError):
            continue
        return word
    return "string"
