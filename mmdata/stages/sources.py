"""Sources: an entry of a catalog file, and a folder of images with texts beside them."""

import warnings
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from mmdata.catalog import Entry, ListFile, Origin, Raw, UnreadableError, clean_text, list_files, load_entry, open_list, to_rows
from mmdata.catalog.files import file_digest, refuse_special
from mmdata.catalog.text import MAX_LINE_CHARS
from mmdata.errors import ConfigError, RunError, printable
from mmdata.schema import BASE_FIELDS, OUTCOME, PAYLOAD, PAYLOAD_COLUMN, REPAIRED
from mmdata.stages.verbs import Source, SourceSlice
from mmdata.storage import digest_file, digest_json

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif")
VIDEO_SUFFIXES = (".mp4",)


_LEFT_OUT = "left out: "


class Listed(Source):
    """Rows of list files.

    A list file that is damaged, or not what it says, is refused by name. With `skip_unreadable` it is left out instead: a
    warning names it, and it counts as one bad row (rows that turn out unreadable only later are bad rows, too).
    """

    partition_rows: Annotated[int, Field(ge=1)] = 10_000
    skip_unreadable: bool = False

    @property
    @abstractmethod
    def definition(self) -> Entry:
        """How the files are read."""

    @property
    @abstractmethod
    def root(self) -> Path:
        """The folder that the files' names are relative to."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the rows' `source` says."""

    def fields(self) -> tuple[pa.Field, ...]:
        """Return the base columns, what was mended, and the carried ones."""
        return (*BASE_FIELDS, REPAIRED, *self.definition.carried())

    def scan(self) -> list[SourceSlice]:
        """Cut every file into slices of `partition_rows` rows; the last of a file is short, and an empty one has none."""
        return [part for path in list_files(self.definition, self.root) for part in self._cut(path)]

    def read(self, part: SourceSlice) -> pa.Table:
        """Return the rows of one slice."""
        origin = Origin(self.title, part.file, part.start)
        other = not part.digest.startswith(_LEFT_OUT) and self._digest(self.root / part.file) != part.digest
        if other and not self.skip_unreadable:
            raise changed(self.root / part.file)
        list_file = open_list(self.definition, self.root / part.file)
        try:
            if not other and not part.digest.startswith(_LEFT_OUT):
                return self._rows(list_file, part, origin)
        except UnreadableError as error:
            if not self.skip_unreadable:
                raise RunError(error.message, hint=error.hint) from error
        return to_rows(self.definition, [Raw({}, [True] * (part.stop - part.start))], {}, origin)

    def _rows(self, list_file: ListFile, part: SourceSlice, origin: Origin) -> pa.Table:
        return to_rows(self.definition, list_file.read(part.start, part.stop), list_file.parts, origin)

    def _digest(self, path: Path) -> str:
        """Return what names the bytes that the rows of a list file come from."""
        return file_digest(path)

    def _count(self, path: Path) -> int:
        """Return how many rows a list file has; refuse one that is not what it says."""
        return open_list(self.definition, path).count()

    def _cut(self, path: Path) -> list[SourceSlice]:
        name, step = path.relative_to(self.root).as_posix(), self.partition_rows
        try:
            rows = self._count(path)
        except UnreadableError as error:
            if not self.skip_unreadable:
                raise
            warnings.warn(printable(f"{error.message}; the file is left out and counts as one bad row"), stacklevel=2)
            stat = path.stat()
            return [SourceSlice(f"{_LEFT_OUT}{stat.st_size} {stat.st_mtime_ns}", name, 0, 1)]
        digest = self._digest(path)
        return [SourceSlice(digest, name, start, min(start + step, rows)) for start in range(0, rows, step)]


class Catalog(Listed):
    """Rows of one entry of a catalog file; `data` is where the entry's files lie, by default beside the catalog."""

    name: ClassVar[str] = "catalog"
    version: ClassVar[int] = 2

    file: str
    entry: str
    data: str | None = None

    @cached_property
    def definition(self) -> Entry:
        """The entry as the catalog file has it."""
        return load_entry(Path(self.file), self.entry)

    @property
    def root(self) -> Path:
        """The folder that the entry's paths are relative to."""
        return Path(self.data) if self.data is not None else Path(self.file).parent

    @property
    def title(self) -> str:
        """The entry's name."""
        return self.entry

    def label(self) -> str:
        """Return the entry's name."""
        return f"catalog:{self.entry}"

    def located(self, home: Path) -> "Catalog":
        """Return itself with absolute paths."""
        data = None if self.data is None else str(home / self.data)
        return self.model_copy(update={"file": str(home / self.file), "data": data})

    def licences(self) -> dict[str, str]:
        """Return the entry's licence."""
        return {self.entry: self.definition.licence}

    def identity(self) -> dict[str, object]:
        """Return the entry's reading rules, without the place of its files."""
        rules = {"entry": self.entry, "reading": self.definition.reading()}
        return rules | ({"skip_unreadable": True} if self.skip_unreadable else {})


class Folder(Source):
    """Images and videos (mp4) of a folder, each with its text in a file of the same name and suffix `.txt`."""

    name: ClassVar[str] = "folder"
    version: ClassVar[int] = 2

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
        """Return the base columns, what was mended, and `payload`: the images need no download."""
        return (*BASE_FIELDS, REPAIRED, pa.field(PAYLOAD_COLUMN, PAYLOAD))

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
        names = self._names()
        if self._digest(names[part.start : part.start + self.partition_rows]) != part.digest:  # a `--limit` may have cut it
            raise changed(Path(self.path))
        rows = [self._row(name) for name in names[part.start : part.stop]]
        schema = pa.schema([*self.fields(), pa.field(OUTCOME, pa.string())])
        return pa.Table.from_pylist(rows, schema=schema)

    def _names(self) -> list[str]:
        root = Path(self.path)
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder", hint="give a folder of images with .txt files beside them")
        suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
        images = [path for path in root.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir()]
        for path in images:
            refuse_special(path)
        if not images:
            raise ConfigError(f"{root}: holds no image", hint=f"suffixes read: {' '.join(suffixes)}")
        return sorted(path.relative_to(root).as_posix() for path in images)

    def _digest(self, names: list[str]) -> str:
        images = [Path(self.path) / name for name in names]
        paths = [path for image in images for path in (image, *_texts_of(image))]
        stats = [(path.name, path.stat()) for path in paths]
        return digest_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def _row(self, name: str) -> dict[str, object]:
        path = Path(self.path).absolute() / name
        size = path.stat().st_size
        repairs: set[str] = set()
        payload = {
            "set": Path(self.path).absolute().as_posix(), "tar": name, "offset": 0, "size": size,
            "sha256": digest_file(path), "trusted": False,
        }  # fmt: skip
        return {
            "sample_id": digest_json(["folder", name, payload["sha256"]])[:32],
            "position": 0,
            "document": False,
            "url": None,
            "text": next((clean_text(_read_text(text), repairs) for text in _texts_of(path)), None),
            "media": "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image",
            "source": Path(self.path).name,
            "captions": None,
            REPAIRED.name: ",".join(sorted(repairs)) or None,
            "payload": payload,
            OUTCOME: None,
        }


def changed(path: Path) -> RunError:
    """Return the error for an input that is not what it was when the run began."""
    hint = "let it be still, then run the same command: what is done of what did not change is kept"
    return RunError(f"{path}: it has changed since this run began", hint=hint)


def _texts_of(image: Path) -> list[Path]:
    """Return the text file beside an image, if there is one."""
    text = image.with_suffix(".txt")
    if text.is_symlink() or text.exists():
        refuse_special(text)
        return [text]
    return []


def _read_text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        return file.read(MAX_LINE_CHARS)  # more than is kept of any text
