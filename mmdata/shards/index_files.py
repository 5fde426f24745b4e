"""Indexes that grow shard by shard, and the manifest that closes them: for corpora that no run has made.

Decided here: arrays are appended to files in local scratch, so what is held at a time is one shard's. Nothing counts before
`corpus.json` is there, so index files that a killed attempt has left are replaced; other files of other people are not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmdata.errors import ConfigError
from mmdata.failpoint import step
from mmdata.shards.manifest import listings
from mmdata.shards.sealed import MANIFEST, VERSION, ShardFacts, seal
from mmdata.shards.units import INDEXES
from mmdata.storage import Store, digest_file
from mmdata.storage.store import COPY_BYTES


class Pieces(NamedTuple):
    """The index records of one shard; `first_block` counts from the shard's first block."""

    samples: np.ndarray
    blocks: np.ndarray
    sample_ids: np.ndarray


@dataclass
class IndexFiles:
    """The three index arrays of a corpus in a scratch folder; shards are added in their order."""

    scratch: Path
    splits: list[str]
    shards: list[ShardFacts] = field(default_factory=list)
    num: dict[str, int] = field(default_factory=lambda: {name: 0 for name, _ in INDEXES})

    def add(self, shard: ShardFacts, pieces: Pieces) -> None:
        """Append the records of the next shard."""
        samples = pieces.samples.copy()
        samples["shard"] = len(self.shards)
        samples["split"] = self.splits.index(shard.split)
        samples["first_block"] += np.uint64(self.num["blocks"])
        for (name, dtype), array in zip(INDEXES, (samples, *pieces[1:]), strict=True):
            with (self.scratch / name).open("ab") as file:
                file.write(array.astype(dtype, copy=False).tobytes())
            self.num[name] += len(array)
        self.shards.append(shard)

    def close(self, store: Store, facts: Mapping[str, object]) -> None:
        """Write `index/`, `sizes.json`, `wids.json` and, last, `corpus.json` with these facts in it."""
        sizes = {shard.name: shard.samples for shard in self.shards}
        digests = {f"index/{name}.npy": self._commit(store, name, dtype) for name, dtype in INDEXES}
        for name, value in listings(str(facts["plan"]), sizes).items():
            _list(store, name, value)
        manifest = seal({
            "version": VERSION, "generation": 1, **facts, "samples": self.num["samples"], "blocks": self.num["blocks"],
            "splits": self.splits, "shards": [shard.model_dump() for shard in self.shards],
            "index": dict(sorted(digests.items())),
        })  # fmt: skip
        with step("corpus"):
            store.create_same(MANIFEST, _json(manifest))

    def _commit(self, store: Store, name: str, dtype: np.dtype) -> str:
        """Put one array into the store, as `np.save` writes it; return its SHA-256."""
        path, file = self.scratch / f"{name}.npy", f"index/{name}.npy"
        with path.open("wb") as out:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (self.num[name],)}
            np.lib.format.write_array_header_1_0(out, header)
            if self.num[name]:
                with (self.scratch / name).open("rb") as raw:
                    while chunk := raw.read(COPY_BYTES):
                        out.write(chunk)
        if not store.create_from(file, path):
            store.delete(file)
            store.create_from(file, path)
        return digest_file(path)


def _list(store: Store, name: str, value: dict[str, object]) -> None:
    """Create a listing; one that is there and says the same stays as it is."""
    if not store.exists(name):
        store.create_same(name, _json(value))
    elif not _says(store.read(name), value):
        raise ConfigError(f"{store.url}/{name} exists and does not list these tars", hint="move it away and run this again")


def _says(data: bytes, value: object) -> bool:
    try:
        return bool(json.loads(data) == value)
    except (ValueError, RecursionError):
        return False


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
