"""A pool in DataComp's layout as a source: metadata in parquet files, features in an npz beside each.

Decided here: a row is whatever the pool says, also where its url can be none: DataComp's baselines judge metadata, and
whoever fetches the url finds out. Where a text had to be mended, as of every source, the one that was published lies beside it.
Only a `uid` that is not 32 lower-case hex digits makes a bad row: it could not be named in a subset. Features are never copied:
they are read for the rows that a stage asks about.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.catalog import Columns, Entry, ListFile, Origin, Raw, UnreadableError, clean_text, is_hex_id, to_rows
from mmdata.catalog.entry import CarryType
from mmdata.catalog.features import Array, check_features, features_beside, read_features, read_header
from mmdata.catalog.files import file_digest
from mmdata.errors import ConfigError, first_line
from mmdata.schema import PUBLISHED_TEXT
from mmdata.stages.sources import Listed, changed
from mmdata.stages.verbs import Lender, SourceSlice
from mmdata.storage import digest_json

_CARRY: dict[str, CarryType] = {
    "original_width": "int64", "original_height": "int64",
    "clip_b32_similarity_score": "float32", "clip_l14_similarity_score": "float32",
    "face_bboxes": "boxes", "sha256": "string",
}  # fmt: skip


class Pool(Listed, Lender):
    """Rows of a DataComp pool: `uid`, `url`, `text`, and of its other columns those that its files have.

    path      folder of the parquet files, or of `part_*` folders of them
    features  arrays of the npz files that stages may read, such as l14_img: columns of float16 or float32 lists. The npz files
              are looked at only if some are named here
    precision the numbers of these columns, by default those of the first file; float16 in a file is taken as float32 if asked
    """

    name: ClassVar[str] = "pool"

    path: str
    features: tuple[str, ...] = ()
    precision: Literal["float16", "float32"] | None = None

    @cached_property
    def definition(self) -> Entry:
        """How the parquet files are read."""
        try:
            names = pq.read_schema(self._first).names
        except (pa.ArrowInvalid, OSError) as error:
            raise UnreadableError(
                f"{self._first}: not a readable parquet file: {first_line(error)}", hint="fetch it again"
            ) from error
        return Entry.model_validate({
            "files": self._patterns(), "format": "parquet", "guess": False,
            "columns": Columns(url="url", text="text", sample_id="uid"),
            "carry": {name: kind for name, kind in _CARRY.items() if name in names},
        })  # fmt: skip

    @cached_property
    def _first(self) -> Path:
        """The file that says which columns there are, and of what kind features are."""
        return min(path for path in self.root.glob(self._patterns()[0]) if path.is_file())

    @property
    def root(self) -> Path:
        """The folder."""
        return Path(self.path)

    @property
    def title(self) -> str:
        """The folder's name."""
        return Path(self.path).name

    def label(self) -> str:
        """Return what names it for people."""
        return f"pool:{self.title}"

    def located(self, home: Path) -> "Pool":
        """Return itself with an absolute path."""
        return self.model_copy(update={"path": str(home / self.path)})

    def licences(self) -> dict[str, str]:
        """Return the licence of a pool's metadata."""
        return {self.title: "metadata as its publisher says (DataComp's: CC-BY-4.0); images belong to their owners"}

    def identity(self) -> dict[str, object]:
        """Return what decides how its rows are read."""
        precision = {} if self.precision is None else {"precision": self.precision}
        return {"pool": self.definition.reading(), "skip_unreadable": self.skip_unreadable, **precision}

    def fields(self) -> tuple[pa.Field, ...]:
        """Return the fields of the metadata, and of the features that are named."""
        return (*super().fields(), PUBLISHED_TEXT, *self._lent)

    def lends(self) -> tuple[str, ...]:
        """Return the names of the features."""
        return self.features

    def lend(self, part: SourceSlice, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Return features for rows of one partition; RunError when its files are not those that were scanned."""
        fields = {field.name: field for field in self._lent}
        if not len(rows):  # none of a file that was left out can be asked for
            return pa.schema([fields[name] for name in names]).empty_table()
        if self._digest(self.root / part.file) != part.digest:
            raise changed(self.root / part.file)
        path = features_beside(self.root / part.file)
        columns = []
        for name in names:
            lines_ND = read_features(path, name, part.start, part.stop)[rows]
            kind = fields[name].type
            flat = pa.array(lines_ND.reshape(-1)).cast(kind.value_type)
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
        return pa.table(columns, pa.schema([fields[name] for name in names]))

    @cached_property
    def _lent(self) -> tuple[pa.Field, ...]:
        if not self.features:
            return ()
        path = features_beside(self._first)
        found: dict[str, Array] = {}
        for name in self.features:
            if name in _CARRY or name in ("uid", "url", "text"):
                raise ConfigError(f"`{name}` is a column of the metadata, not a feature", hint="name arrays of the npz files")
            found[name] = read_header(path, name)
        return tuple(
            pa.field(name, self._kind(array), metadata={"unit": f"{array.width} numbers", "meaning": "feature of the pool"})
            for name, array in found.items()
        )

    def _kind(self, array: Array) -> pa.DataType:
        kinds = {None: array.type.value_type, "float16": pa.float16(), "float32": pa.float32()}
        return pa.list_(kinds[self.precision], array.width)

    def _patterns(self) -> list[str]:
        """Return the pattern of the parquet files' names; as in DataComp, any name with `.parquet` in it."""
        for pattern in ("*.parquet*", "part_*/*.parquet*"):
            if any(path.is_file() for path in self.root.glob(pattern)):
                return [pattern]
        raise ConfigError(f"{self.root}: holds no parquet file", hint="give the folder of a pool's metadata")

    def _digest(self, path: Path) -> str:
        digest = file_digest(path)
        return digest_json([digest, file_digest(features_beside(path))]) if self.features else digest

    def _count(self, path: Path) -> int:
        rows = super()._count(path)
        if self.features:
            check_features(features_beside(path), self.features, rows)
            self._check_kinds(features_beside(path))
        return rows

    def _check_kinds(self, path: Path) -> None:
        """Refuse features of another width than the first file's, or whose numbers would lose something."""
        for field in self._lent:
            found, kind = read_header(path, field.name), field.type
            if found.width != kind.list_size or found.type.value_type.bit_width > kind.value_type.bit_width:
                hint = "is it another pool's?" if found.width != kind.list_size else "add `precision: float32` to `pool`"
                raise UnreadableError(f"{path}: `{field.name}` is {found.type}, but {kind} in the first file", hint=hint)

    def _rows(self, list_file: ListFile, part: SourceSlice, origin: Origin) -> pa.Table:
        carry = {**self.definition.carry, PUBLISHED_TEXT.name: "string"}
        entry = self.definition.model_copy(update={"carry": carry})
        return to_rows(entry, map(_told, list_file.read(part.start, part.stop)), list_file.parts, origin, any_url=True)


def _told(raw: Raw) -> Raw:
    """Mark rows as bad whose `uid` could not be named in a subset, and set aside the texts that will be mended."""
    wrong = [bad or not is_hex_id(uid) for bad, uid in zip(raw.bad, raw.columns["uid"], strict=True)]
    return Raw({**raw.columns, PUBLISHED_TEXT.name: [_published(text) for text in raw.columns["text"]]}, wrong)


def _published(text: object) -> str | None:
    """Return a text that is going to be mended, and can be written down."""
    repairs: set[str] = set()
    if not isinstance(text, str) or (clean_text(text, repairs) == text):
        return None
    return None if "utf8" in repairs else text
