"""How the files of a reference are written, a part at a time, and written anew without some samples."""

import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmdata.shards.reference import (
    FACTS_FILE,
    FILE,
    FOLDER,
    ID,
    POSITION,
    REFERENCE,
    FileFacts,
    Items,
    PartFacts,
    Reference,
    ReferenceFacts,
    open_reference,
)
from mmdata.shards.sealed import seal
from mmdata.storage import Store, digest_bytes


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
    arrays = {ID: names.ids, POSITION: names.positions}
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
    if len({*slugs, ID, POSITION}) < len(slugs) + 2:
        raise ValueError(f"two of the columns {', '.join(columns)} would lie in files of one name: rename one")


def finish_reference(store: Store, folder: str, facts: ReferenceFacts, digests: Mapping[str, str]) -> str:
    """Write `reference.json` of the parts whose files are in `digests`; return its SHA-256.

    facts   its name, licences and columns; rows and parts are counted here
    """
    files = {name: digest for name, digest in digests.items() if name.startswith(f"{FOLDER}/")}
    known = {_slug(name): name for column in facts.columns for name in (column, f"{column}.rows")} | {
        ID: ID,
        POSITION: POSITION,
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
    with store.open(f"{folder}/{part[ID].file}") as file:
        np.lib.format.read_magic(file)
        return int(np.lib.format.read_array_header_1_0(file)[0][0])


def _sealed(facts: ReferenceFacts) -> bytes:
    body = seal(facts.model_dump(mode="json", exclude={"digest"}))
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()


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
        if FILE.fullmatch(name) and name not in kept:
            store.delete(name)
    return num


def _rewritten(reference: Reference, number: int, stays: np.ndarray, generation: int) -> PartFacts:
    """Write the files of a part anew, without rows that do not stay."""
    part, moved = reference.facts.parts[number], np.cumsum(stays) - 1
    arrays = {name: reference.array(part.files[name])[stays] for name in (ID, POSITION)}
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
