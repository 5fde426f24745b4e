"""Sources: an entry of a catalog file, and a folder of images with texts beside them."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from mmdata.catalog import Entry, count_rows, list_files, load_entry, read_raw, to_rows
from mmdata.catalog.files import file_digest, resolve
from mmdata.catalog.rows import Origin, clean_text
from mmdata.errors import ConfigError
from mmdata.schema import BASE_FIELDS, OUTCOME, PAYLOAD, PAYLOAD_COLUMN
from mmdata.stages.verbs import Source, SourceSlice
from mmdata.storage import digest_file, digest_json

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif")


class Catalog(Source):
    """Rows of one entry of a catalog file; `data` is where the entry's files lie, by default beside the catalog."""

    name: ClassVar[str] = "catalog"

    file: str
    entry: str
    data: str | None = None
    partition_rows: Annotated[int, Field(ge=1)] = 10_000

    @cached_property
    def definition(self) -> Entry:
        """The entry as the catalog file has it."""
        return load_entry(Path(self.file), self.entry)

    @property
    def root(self) -> Path:
        """The folder that the entry's paths are relative to."""
        return Path(self.data) if self.data is not None else Path(self.file).parent

    def label(self) -> str:
        """Return the entry's name."""
        return f"catalog:{self.entry}"

    def located(self, home: Path) -> "Catalog":
        """Return itself with absolute paths."""
        data = None if self.data is None else str(home / self.data)
        return Catalog(file=str(home / self.file), entry=self.entry, data=data, partition_rows=self.partition_rows)

    def licences(self) -> dict[str, str]:
        """Return the entry's licence."""
        return {self.entry: self.definition.licence}

    def identity(self) -> dict[str, object]:
        """Return the entry's reading rules, without the place of its files."""
        return {"entry": self.entry, "reading": self.definition.reading()}

    def fields(self) -> tuple[pa.Field, ...]:
        """Return the base columns and the carried ones."""
        return (*BASE_FIELDS, *self.definition.carried())

    def scan(self) -> list[SourceSlice]:
        """Cut every file into slices of `partition_rows` rows; the last of a file is short."""
        slices = []
        for path in list_files(self.definition, self.root):
            resolve(self.definition, path)
            self.read(SourceSlice("", path.relative_to(self.root).as_posix(), 0, 1))
            digest, rows = file_digest(path), count_rows(self.definition, path)
            name = path.relative_to(self.root).as_posix()
            slices += [
                SourceSlice(digest, name, start, min(start + self.partition_rows, rows))
                for start in range(0, rows, self.partition_rows)
            ]
        return slices

    def read(self, part: SourceSlice) -> pa.Table:
        """Return the rows of one slice."""
        path = self.root / part.file
        raw = read_raw(self.definition, path, part.start, part.stop)
        parts = resolve(self.definition, path)
        return to_rows(self.definition, raw, parts, Origin(self.entry, part.file, part.start))


class Folder(Source):
    """Images of a folder, each with its text in a file of the same name and suffix `.txt`."""

    name: ClassVar[str] = "folder"

    path: str
    licence: str = "unknown"
    partition_rows: Annotated[int, Field(ge=1)] = 10_000

    def label(self) -> str:
        """Return the folder's own name."""
        return f"folder:{Path(self.path).name}"

    def located(self, home: Path) -> "Folder":
        """Return itself with an absolute path."""
        return self.model_copy(update={"path": str(home / self.path)})

    def licences(self) -> dict[str, str]:
        """Return the licence as given."""
        return {Path(self.path).name: self.licence}

    def identity(self) -> dict[str, object]:
        """Return what decides how its rows are read."""
        return {"folder": Path(self.path).absolute().as_posix()}

    def fields(self) -> tuple[pa.Field, ...]:
        """Return the base columns and `payload`: the images need no download."""
        return (*BASE_FIELDS, pa.field(PAYLOAD_COLUMN, PAYLOAD))

    def scan(self) -> list[SourceSlice]:
        """Cut the sorted images into slices; a slice's digest covers names, sizes and times."""
        names = self._names()
        step = self.partition_rows
        return [
            SourceSlice(self._digest(names[start : start + step]), "", start, min(start + step, len(names)))
            for start in range(0, len(names), step)
        ]

    def read(self, part: SourceSlice) -> pa.Table:
        """Return one row an image, in order of the names."""
        names = self._names()[part.start : part.stop]
        rows = [self._row(name) for name in names]
        schema = pa.schema([*self.fields(), pa.field(OUTCOME, pa.string())])
        return pa.Table.from_pylist(rows, schema=schema)

    def _names(self) -> list[str]:
        root = Path(self.path)
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder", hint="give a folder of images with .txt files beside them")
        found = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not found:
            raise ConfigError(f"{root}: holds no image", hint=f"suffixes read: {' '.join(IMAGE_SUFFIXES)}")
        return sorted(found)

    def _digest(self, names: list[str]) -> str:
        paths = [path for name in names for path in (Path(self.path) / name, (Path(self.path) / name).with_suffix(".txt"))]
        stats = [(path.name, path.stat()) for path in paths if path.is_file()]
        return digest_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def _row(self, name: str) -> dict[str, object]:
        path = Path(self.path).absolute() / name
        text = path.with_suffix(".txt")
        size = path.stat().st_size
        payload = {
            "set": Path(self.path).absolute().as_posix(), "tar": name, "offset": 0, "size": size,
            "sha256": digest_file(path), "trusted": False,
        }  # fmt: skip
        return {
            "sample_id": digest_json(["folder", name, payload["sha256"]])[:32],
            "position": 0,
            "document": False,
            "url": None,
            "text": clean_text(text.read_text(encoding="utf-8", errors="replace")) if text.is_file() else None,
            "media": "image",
            "source": Path(self.path).name,
            "captions": None,
            "payload": payload,
            OUTCOME: None,
        }
