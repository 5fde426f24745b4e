"""A catalog entry: which files a published dataset has, and what its columns are called.

A catalog is a YAML file of entries. Paths in it are relative to its own folder, so a catalog can be moved with its data.
"""

from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from mmdata.config import Model, build, read_yaml
from mmdata.errors import ConfigError, did_you_mean
from mmdata.schema import BASE_NAMES, BOXES, PAYLOAD_COLUMN

CARRY_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "int64": pa.int64(),
    "float32": pa.float32(), "float64": pa.float64(), "boxes": BOXES,
}  # fmt: skip
CarryType = Literal["string", "bool", "int32", "int64", "float32", "float64", "boxes"]

# Names under which published datasets keep the same thing; the first one present is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url", "URL", "image_url", "contentUrl", "raw_url"),
    "text": ("text", "TEXT", "caption", "top_caption", "Caption", "prompt", "name"),
    "sample_id": ("uid", "sample_id", "SAMPLE_ID", "id", "key"),
    "images": ("images",),
    "texts": ("texts",),
}


class Columns(Model):
    """Names of the columns of an entry; what is not given is looked up among the names datasets use."""

    url: str | None = None
    text: str | None = None
    sample_id: str | None = None
    captions: tuple[str, ...] = ()
    images: str | None = None
    texts: str | None = None


class Entry(Model):
    """One dataset of a catalog. Without `guess` only columns that are named are read; `txt` is a file of one url a line.

    carry  further columns and their types; `boxes` are lists of [left, top, right, bottom], each 0 to 1 of the image, such as
           DataComp's `face_bboxes` (lists, or JSON of them in a text)
    """

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    title: str = ""
    licence: str = "unknown"
    homepage: str | None = None
    format: Literal["auto", "parquet", "csv", "tsv", "json", "jsonl", "txt"] = "auto"
    shape: Literal["pairs", "documents"] = "pairs"
    media: Literal["image", "video"] = "image"
    header: tuple[str, ...] | None = None
    columns: Columns = Columns()
    guess: bool = True
    carry: dict[str, CarryType] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _relative(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        for name in files:
            if name.startswith("/") or ".." in Path(name).parts or "://" in name:
                raise ValueError("paths of a catalog are relative to its folder and stay inside it")
        return files

    @field_validator("carry")
    @classmethod
    def _own_names(cls, carry: dict[str, CarryType]) -> dict[str, CarryType]:
        for name in carry:
            if name in (*BASE_NAMES, PAYLOAD_COLUMN) or name.startswith("_"):
                raise ValueError(f"`{name}` is a name that every row has already; it cannot be carried")
        return carry

    @field_validator("files")
    @classmethod
    def _named(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not all(files):
            raise ValueError("a file pattern is empty")
        return files

    def carried(self) -> tuple[pa.Field, ...]:
        """Return the fields of the carried columns."""
        return tuple(pa.field(name, CARRY_TYPES[kind]) for name, kind in self.carry.items())

    def reading(self) -> dict[str, object]:
        """Return what decides how rows are read: all but titles and licences, and which files there are."""
        usual = {"guess"} if self.guess else set()
        return self.model_dump(mode="json", exclude={"title", "licence", "homepage", "files"} | usual)


def load_entry(file: Path, name: str) -> Entry:
    """Read one entry of a catalog file."""
    document = read_yaml(file)
    entries = document.value.get("entries") if isinstance(document.value, dict) else None
    if not isinstance(entries, dict):
        raise ConfigError(f"{file}:1: a catalog is a mapping `entries: {{name: {{files: [...]}}}}`")
    if name not in entries:
        raise ConfigError(f"{file}: no entry is called `{name}`", hint=did_you_mean(name, map(str, entries)))
    return build(Entry, document, ("entries", name))
