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
from collections.abc import Collection, Mapping, Sequence
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
_ID, _POSITION = "ids", "positions"
_WHERE = ("", f"{FOLDER}/", f"corpus/{FOLDER}/")  # it is found in its own folder, a corpus's, or a run's
_RESTORE = "copy it again, or make the reference anew"
_FILE = re.compile(r"[0-9a-z_-]+(\.rows)?\.\d{5,}(\.g\d+)?\.npy")


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

    file: Annotated[str, Field(pattern=_FILE.pattern)]
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


# Writing.


@dataclass(frozen=True)
class Names:
    """Whose rows they are: ids, (N, 16) uint8, and positions, (N,) int32."""

    ids: np.ndarray
    positions: np.ndarray


def names_in(ids: Sequence[str], positions: np.ndarray) -> Names:
    """Return ids of 32 hex digits and positions as they are kept."""
    return Names(np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, 16), positions.astype(np.int32))


def write_part(store: Store, folder: str, number: int, names: Names, columns: Mapping[str, Items]) -> dict[str, str]:
    """Write the rows of one part; return the SHA-256 of each file by its name in the folder above."""
    arrays = {_ID: names.ids, _POSITION: names.positions}
    for name, items in columns.items():
        arrays |= _arrays(name, items, len(names.ids))
    digests = {}
    for name, array in arrays.items():
        file, data = f"{FOLDER}/{_slug(name)}.{number:05d}.npy", _npy(array)
        store.create_same(f"{folder}/{file}", data)
        digests[file] = digest_bytes(data)
    return digests


def _arrays(name: str, items: Items, num_rows: int) -> dict[str, np.ndarray]:
    plain = len(items.owner_M) == num_rows and bool((items.owner_M == np.arange(num_rows)).all())
    return {name: items.values[:], **({} if plain else {f"{name}.rows": items.owner_M.astype(np.int32)})}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _slug(name: str) -> str:
    """Return what a column's files are called: `folded(text)` is `folded-text`."""
    base, rows = (name[: -len(".rows")], ".rows") if name.endswith(".rows") else (name, "")
    return re.sub(r"[^0-9a-z_]+", "-", base.lower()).strip("-") + rows


def check_names(columns: Sequence[str]) -> None:
    """Raise ValueError for columns whose files would bear one name."""
    slugs = [_slug(name) for name in columns]
    if len({*slugs, _ID, _POSITION}) < len(slugs) + 2:
        raise ValueError(f"two of the columns {', '.join(columns)} would lie in files of one name: rename one")


def finish_reference(store: Store, folder: str, facts: ReferenceFacts, digests: Mapping[str, str]) -> str:
    """Write `reference.json` of the parts whose files are in `digests`; return its SHA-256.

    facts   its name, licences and columns; rows and parts are counted here
    """
    files = {name: digest for name, digest in digests.items() if name.startswith(f"{FOLDER}/")}
    known = {_slug(name): name for column in facts.columns for name in (column, f"{column}.rows")} | {
        _ID: _ID,
        _POSITION: _POSITION,
    }
    parts: dict[int, dict[str, FileFacts]] = {}
    for name, sha256 in sorted(files.items()):
        file = name.removeprefix(f"{FOLDER}/")
        slug, number = file.removesuffix(".npy").rsplit(".", 1)
        size = store.size(f"{folder}/{name}")
        parts.setdefault(int(number), {})[known[slug]] = FileFacts(file=file, bytes=size, sha256=sha256)
    told = [PartFacts(rows=_num_rows(store, f"{folder}/{FOLDER}", part), files=part) for _, part in sorted(parts.items())]
    data = _sealed(facts.model_copy(update={"rows": sum(part.rows for part in told), "parts": told}))
    store.create_same(f"{folder}/{FACTS_FILE}", data)
    return digest_bytes(data)


def _num_rows(store: Store, folder: str, part: Mapping[str, FileFacts]) -> int:
    with store.open(f"{folder}/{part[_ID].file}") as file:
        np.lib.format.read_magic(file)
        return int(np.lib.format.read_array_header_1_0(file)[0][0])


def _sealed(facts: ReferenceFacts) -> bytes:
    body = seal(facts.model_dump(mode="json", exclude={"digest"}))
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()


# Reading.


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
        values = self._array(files[name])
        kind = self.facts.columns[name]
        wanted = np.float16 if kind.kind == "embedding" else np.uint64
        if values.dtype != wanted or values.ndim != 2 or values.shape[1] != kind.width:
            raise RunError(
                f"{self.store.url}/{files[name].file}: holds {values.shape} of {values.dtype}, not (M, {kind.width}) of "
                f"{np.dtype(wanted)}", hint=_RESTORE,
            )  # fmt: skip
        owner = self._array(files[f"{name}.rows"]).astype(np.int64) if f"{name}.rows" in files else np.arange(rows)
        return Items(values, owner)

    def names(self, part: int, rows: np.ndarray) -> list[tuple[str, int]]:
        """Return sample id and position of some rows of a part."""
        files = self.facts.parts[part].files
        ids, positions = self._array(files[_ID])[rows], self._array(files[_POSITION])[rows]
        return [(bytes(ident).hex(), int(position)) for ident, position in zip(ids, positions, strict=True)]

    def ids(self, part: int) -> np.ndarray:
        """Return the sample ids of a part, (N, 16) uint8."""
        return self._array(self.facts.parts[part].files[_ID])

    def _array(self, file: FileFacts) -> np.ndarray:
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
                reference._array(file)
            except (RunError, OSError) as error:
                told = error.message if isinstance(error, RunError) else str(error)
                found.append((file.file, told.removeprefix(f"{reference.store.url}/{file.file}: ")))
    return found


# Taking samples out.


def take_out(url: str, sample_ids: Collection[str]) -> int:
    """Rewrite a reference without some samples, nothing of which is left in its folder; return how many rows went.

    New files come first, then `reference.json`, then the old files go: it is whole at any moment, and the same call ends
    what a killed one began. Keep the digest of what names it (`corpus.json`) in step: it is another reference from then on.
    """
    reference = open_reference(url)
    store, facts = reference.store, reference.facts
    gone = np.unique(np.frombuffer(bytes.fromhex("".join(sorted(sample_ids))), "V16"))
    generation, parts, num = facts.generation + 1, [], 0
    for number, part in enumerate(facts.parts):
        stays = ~np.isin(np.ascontiguousarray(reference.ids(number)).view("V16").ravel(), gone)
        num += int((~stays).sum())
        parts.append(part if stays.all() else _rewritten(reference, number, stays, generation))
    if num:
        told = {"parts": parts, "rows": facts.rows - num, "generation": generation}
        store.put(REFERENCE, _sealed(facts.model_copy(update=told)))
    kept = {file.file for part in parts for file in part.files.values()}
    for name in store.list(""):
        if _FILE.fullmatch(name) and name not in kept:
            store.delete(name)
    return num


def _rewritten(reference: Reference, number: int, stays: np.ndarray, generation: int) -> PartFacts:
    """Write the files of a part anew, without rows that do not stay."""
    part, moved = reference.facts.parts[number], np.cumsum(stays) - 1
    arrays = {name: reference._array(part.files[name])[stays] for name in (_ID, _POSITION)}
    for name in reference.facts.columns:
        items = reference.items(number, name)
        left = stays[items.owner_M]
        arrays |= _arrays(name, Items(np.asarray(items.values)[left], moved[items.owner_M[left]]), int(stays.sum()))
    files = {}
    for name, array in arrays.items():
        file, data = f"{_slug(name)}.{number:05d}.g{generation}.npy", _npy(array)
        reference.store.put(file, data)
        files[name] = FileFacts(file=file, bytes=len(data), sha256=digest_bytes(data))
    return PartFacts(rows=int(stays.sum()), files=files)
