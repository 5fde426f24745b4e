"""Megatron-Energon: the corpus's own tars, with the `.nv-meta` folder and the indexes that Energon's preparation makes.

Decided here: tars are not written anew. They are hard links where the disk allows it, else copies that are compared with the
manifest. A corpus of images with a text each is a `CaptioningSample`; any other is left to the user's cooker
(`CrudeWebdataset`).
"""

import contextlib
import hashlib
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmdata.errors import RunError
from mmdata.shards.contents import PAIR, choose_samples, kinds_of, read_samples
from mmdata.shards.corpus import SUFFIXES, Corpus
from mmdata.shards.counter import Counter
from mmdata.shards.sealed import RESTORE, ShardFacts
from mmdata.storage import LocalStore
from mmdata.storage.store import COPY_BYTES

META = ".nv-meta"
LOOKED_AT = 200


def write(corpus: Corpus, folder: Path, counter: Counter) -> None:
    """Place the tars and have Energon prepare them."""
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    shards = [shard for shard in corpus.manifest.shards if shard.samples]
    for shard in shards:
        _place(corpus, shard, folder / shard.name)

    def progress(steps: Iterable[Any], _total: int) -> Iterator[Any]:
        for shard, step in zip(shards, steps, strict=False):
            yield step
            counter.add(shard.samples)

    patterns = [(split, _pattern(names)) for split, names in _by_split(shards).items()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says what it saves; the output is for what we say
            WebdatasetPreparator.prepare_dataset(
                folder,
                [shard.name for shard in shards],
                split_parts_patterns=patterns,
                progress_fn=progress,
                workers=min(len(shards), os.cpu_count() or 1),
            )
    except (AssertionError, sqlite3.Error) as error:
        raise RunError(
            f"Energon cannot prepare {corpus.store.url}: {error}", hint="`mmdata verify` finds damaged tars"
        ) from error
    _check(folder, shards)
    (folder / META / "dataset.yaml").write_text(yaml.safe_dump(_dataset(corpus), sort_keys=False), encoding="utf-8")


def _place(corpus: Corpus, shard: ShardFacts, path: Path) -> None:
    if isinstance(corpus.store, LocalStore):
        with contextlib.suppress(OSError):
            os.link(corpus.store.path(shard.name), path)
            return
    try:
        same = _copy(corpus, shard, path)
    except FileNotFoundError:
        raise RunError(f"{corpus.store.url}/{shard.name}: missing", hint=RESTORE) from None
    if not same:
        raise RunError(f"{corpus.store.url}/{shard.name}: it is not what the manifest says", hint=RESTORE)


def _copy(corpus: Corpus, shard: ShardFacts, path: Path) -> bool:
    """Copy a tar; say whether it is what the manifest says."""
    whole = hashlib.sha256()
    with corpus.store.open(shard.name) as source, path.open("wb") as file:
        while chunk := source.read(COPY_BYTES):
            whole.update(chunk)
            file.write(chunk)
        size = file.tell()
    return size == shard.bytes and shard.sha256 in (None, whole.hexdigest())


def _by_split(shards: list[ShardFacts]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for shard in shards:
        found.setdefault(shard.split, []).append(shard.name)
    return found


def _pattern(names: list[str]) -> str:
    # Energon expands braces and takes backslashes away first, so dots are written as sets.
    return f"(?:{'|'.join(name.replace('.', '[.]') for name in names)})$"


def _check(folder: Path, shards: list[ShardFacts]) -> None:
    """Compare what Energon counted with the manifest: it passes over a tar that it cannot read, and only logs it."""
    counted = json.loads((folder / META / ".info.json").read_text(encoding="utf-8"))["shard_counts"]
    for shard in shards:
        if counted.get(shard.name) != shard.samples:
            found = counted.get(shard.name, 0)
            raise RunError(f"{shard.name}: Energon found {found} samples, the manifest says {shard.samples}", hint=RESTORE)


def _dataset(corpus: Corpus) -> dict[str, object]:
    images = _image_members(corpus) if bool((kinds_of(corpus) == PAIR).all()) else None
    if images is None:
        return {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    sample = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    return {"sample_type": sample, "field_map": {"image": ",".join(images), "caption": "txt"}}


def _image_members(corpus: Corpus) -> list[str] | None:
    """Return the suffixes that images have: by their formats, and as a random choice of samples spells them (`jpeg`).

    Null when one of these samples has no text: a stranger's tars need not have one a sample.
    """
    formats = np.unique(corpus.blocks["suffix"][corpus.blocks["kind"] > 0]).tolist()
    found = {SUFFIXES[number] for number in formats}
    for index, future in read_samples(corpus, choose_samples(corpus, LOOKED_AT).tolist()):
        read = future.result()
        if "txt" not in read.members:
            return None
        image = read.media(next(block for block in corpus.blocks_of(index) if block["kind"]))
        found |= {name for name, data in read.members.items() if data == image and "." not in name}
    return sorted(found)
