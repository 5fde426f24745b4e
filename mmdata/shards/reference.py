"""A reference: what an earlier corpus, or an eval set, keeps of its samples so that others can be compared with them.

    reference/
      reference.json            what it is; its columns; the files of each part with size and SHA-256; checked by its own digest
      ids.00000.npy             (N, 16) uint8: the sample id of each row of a part
      positions.00000.npy       (N,) int32: the place of each row in its sample
      NAME.00000.npy            (M, W) uint64: hashes or digests of W words; or (M, D) float16: embeddings
      NAME.rows.00000.npy       (M,) int32: the row of each; left out where row i has item i

Decided here: rows lie in the order in which they were written, so that all columns of a part agree and nothing is sorted that is
streamed. Arrays are plain `.npy`, mapped on a local disk and read whole from a store, a part at a time. A file's size and
SHA-256 are compared with `reference.json` when it is first used; nothing is read of columns that nobody asks for.
"""

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmdata.errors import ConfigError, RunError
from mmdata.shards.sealed import Count, Sha256, seal
from mmdata.storage import LocalStore, Store, digest_bytes, digest_file, open_store

REFERENCE = "reference.json"
FOLDER = "reference"
FACTS_FILE = f"{FOLDER}/{REFERENCE}"
VERSION = 1
ID, POSITION = "ids", "positions"
_WHERE = ("", f"{FOLDER}/", f"corpus/{FOLDER}/")  # it is found in its own folder, a corpus's, or a run's
_RESTORE = "copy it again, or make the reference anew"
FILE = re.compile(r"[0-9a-z_-]+(\.rows)?\.\d{5,}(\.g\d+)?\.npy")


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class ColumnFacts(_Facts):
    """What a column holds: `words` a hash, a digest of two words, or an embedding of `width` numbers, and the model's name."""

    kind: Literal["hash", "digest", "embedding"]
    width: Annotated[int, Field(ge=1)]
    meaning: str = ""
    model: str | None = None
    weights: list[str] = Field(default_factory=list)


class FileFacts(_Facts):
    """A file of a part."""

    file: Annotated[str, Field(pattern=rf"^{FILE.pattern}$")]
    bytes: Count
    sha256: Sha256


class PartFacts(_Facts):
    """Rows that lie together, and their files by column: `ids`, `positions`, NAME, NAME.rows."""

    rows: Count
    files: dict[str, FileFacts]


class ReferenceFacts(_Facts):
    """All that `reference.json` says."""

    kind: Literal["mmdata reference"] = "mmdata reference"
    version: int = VERSION
    generation: int = 1
    name: str
    rows: Count
    licences: dict[str, str]
    columns: dict[str, ColumnFacts]
    parts: list[PartFacts]
    digest: str = ""


@dataclass(frozen=True)
class Items:
    """What one column keeps of some rows.

    values   (M, W) uint64 or (M, D) float16, or what can be cut like these     owner_M  (M,) int64, the row of each, ascending
    """

    values: Any
    owner_M: np.ndarray


@dataclass(frozen=True)
class Reference:
    """An open reference; arrays are read when they are asked for, and checked when they are first read."""

    store: Store
    facts: ReferenceFacts
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The digest of `reference.json`, which names that of each file."""
        return self.facts.digest

    @property
    def name(self) -> str:
        """What it is called."""
        return self.facts.name

    def column(self, name: str) -> ColumnFacts:
        """Return what a column holds; raise ConfigError where there is none."""
        if name not in self.facts.columns:
            hint = f"it has {', '.join(self.facts.columns)}"
            raise ConfigError(f"reference `{self.name}` ({self.store.url}) has no `{name}`", hint=hint)
        return self.facts.columns[name]

    def items(self, part: int, name: str) -> Items:
        """Return what a part keeps in a column, memory-mapped on a local disk."""
        files, rows = self.facts.parts[part].files, self.facts.parts[part].rows
        values = self.array(files[name])
        kind = self.facts.columns[name]
        wanted = np.float16 if kind.kind == "embedding" else np.uint64
        if values.dtype != wanted or values.ndim != 2 or values.shape[1] != kind.width:
            raise RunError(
                f"{self.store.url}/{files[name].file}: holds {values.shape} of {values.dtype}, not (M, {kind.width}) of "
                f"{np.dtype(wanted)}", hint=_RESTORE,
            )  # fmt: skip
        owner = self.array(files[f"{name}.rows"]).astype(np.int64) if f"{name}.rows" in files else np.arange(rows)
        return Items(values, owner)

    def names(self, part: int, rows: np.ndarray) -> list[tuple[str, int]]:
        """Return sample id and position of some rows of a part."""
        files = self.facts.parts[part].files
        ids, positions = self.array(files[ID])[rows], self.array(files[POSITION])[rows]
        return [(bytes(ident).hex(), int(position)) for ident, position in zip(ids, positions, strict=True)]

    def ids(self, part: int) -> np.ndarray:
        """Return the sample ids of a part, (N, 16) uint8."""
        return self.array(self.facts.parts[part].files[ID])

    def array(self, file: FileFacts) -> np.ndarray:
        """Return a file of a part after checking it."""
        where = f"{self.store.url}/{file.file}"
        try:
            held = self.store.path(file.file) if isinstance(self.store, LocalStore) else self.store.read(file.file)
            size = held.stat().st_size if isinstance(held, Path) else len(held)
            if size != file.bytes:
                raise RunError(f"{where}: {size:,} bytes, {REFERENCE} says {file.bytes:,}", hint=_RESTORE)
            if file.file not in self._checked:
                if (digest_file(held) if isinstance(held, Path) else digest_bytes(held)) != file.sha256:
                    raise RunError(f"{where}: its SHA-256 is not that of {REFERENCE}", hint=_RESTORE)
                self._checked.add(file.file)
            return _load(held)
        except FileNotFoundError:
            raise RunError(f"{where}: missing", hint=_RESTORE) from None
        except ValueError as error:
            raise RunError(f"{where}: not an array of numpy: {error}", hint=_RESTORE) from error


def _load(held: Path | bytes) -> np.ndarray:
    if isinstance(held, bytes):
        return np.asarray(np.load(io.BytesIO(held), allow_pickle=False))
    with held.open("rb") as file:  # what is empty cannot be mapped
        np.lib.format.read_magic(file)
        empty = 0 in np.lib.format.read_array_header_1_0(file)[0]
    found: np.ndarray = np.load(held, mmap_mode=None if empty else "r", allow_pickle=False)
    return found.view(np.ndarray)


def open_reference(url: str) -> Reference:
    """Open a reference by its folder, or by that of a corpus or a run that has written one; raise ConfigError if it is none."""
    store = _found(url)
    return Reference(store, _read(store))


def facts_digest(url: str) -> str:
    """Return the SHA-256 of a reference's `reference.json` as it lies there now."""
    return digest_bytes(_found(url).read(REFERENCE))


def _found(url: str) -> Store:
    store = open_store(url)
    where = next((folder for folder in _WHERE if store.exists(f"{folder}{REFERENCE}")), None)
    if where is None:
        hint = "`mmdata reference` makes one, and `shards: {reference: [...]}`"
        raise ConfigError(f"{url}: no reference: it has no {REFERENCE}", hint=hint)
    return store.sub(where.rstrip("/")) if where else store


def _read(store: Store) -> ReferenceFacts:
    where = f"{store.url}/{REFERENCE}"
    try:
        facts = json.loads(store.read(REFERENCE))
        if not isinstance(facts, dict) or facts.get("digest") != seal(facts)["digest"]:
            raise RunError(f"{where}: does not match its own digest; it was edited or damaged", hint=_RESTORE)
        if facts.get("version") != VERSION:
            raise RunError(
                f"{where}: of version {facts.get('version')!r:.20}, not {VERSION}", hint="read it with the mmdata that made it"
            )
        return ReferenceFacts.model_validate(facts)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        raise RunError(f"{where}: `{'.'.join(map(str, item['loc']))}`: {item['msg']}", hint=_RESTORE) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: not valid JSON: {error}; it was cut short or damaged", hint=_RESTORE) from error


def problems_in(reference: Reference) -> list[tuple[str, str]]:
    """Return what is wrong with which file, every byte of all files compared."""
    found = []
    for part in reference.facts.parts:
        for file in part.files.values():
            try:
                reference.array(file)
            except (RunError, OSError) as error:
                told = error.message if isinstance(error, RunError) else str(error)
                found.append((file.file, told.removeprefix(f"{reference.store.url}/{file.file}: ")))
    return found
