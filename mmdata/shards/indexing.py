"""Make a folder of foreign WebDataset tars a corpus, in place: indexes and a manifest beside the tars, which stay as they are.

Decided here: tars of one split lie side by side in the corpus, `train` first, in the order of their names. A tar's split is
the first part of its name that is a split's and has a dash behind it (`val-00000.tar`, `cc3m-validation-0001.tar`), else
`train`. Hidden files are not looked at. Every damaged tar is named, and then nothing is written. Without checksums only
headers are read, and the corpus has none.
"""

import mmap
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mmdata.errors import ConfigError, RunError
from mmdata.shards.index_files import IndexFiles, Pieces
from mmdata.shards.members import Bytes
from mmdata.shards.sealed import MANIFEST, SHARD_NAME, ShardFacts, read_manifest
from mmdata.shards.sums import sums_of
from mmdata.shards.tar_index import TarIndex, Window
from mmdata.storage import LocalStore, Store, digest_json, open_store
from mmdata.storage.store import COPY_BYTES

PLAN, TRAIN = "index", "train"
RULES = 1  # the version of the rules by which samples, blocks and ids follow from a tar
REMOTE_WORKERS = 8  # they wait for the store
TICK_S = 5.0
NAMED = 10  # damaged tars that a message names

_SPLIT = re.compile(r"(?:^|[-_.])(train|training|val|valid|validation|dev|test|eval)-")
_STATS = re.compile(r"\d+_stats\.json")
_ANEW = "remove corpus.json and index/, and run this again"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Indexed:
    """What `index_folder` made, or found made: `made` says which."""

    url: str
    shards: int
    samples: int
    blocks: int
    splits: dict[str, int]
    checksums: bool
    cautions: tuple[str, ...]
    made: bool = True


def index_folder(url: str, *, checksums: bool = False, workers: int | None = None, progress: Progress | None = None) -> Indexed:
    """Index the tars of a folder and write the manifest, last.

    checksums   read every byte, once, for the SHA-256 of each tar and the xxh3 of each sample
    workers     threads; by default one a core with checksums, eight for a remote store, else one
    progress    called every 5 s with the tars that are done and the tars there are

    Raises ConfigError, with tar and byte, when a tar is damaged or is none; then nothing was written. A folder that is
    indexed already stays as it is; it is an error if it has other tars by now, or lacks checksums that are asked for.
    """
    store = open_store(url)
    names = tar_names(store)
    if store.exists(MANIFEST):
        return _found(store, names, checksums)
    splits = sorted({split_of(name) for name in names}, key=_train_first)
    names.sort(key=lambda name: (_train_first(split_of(name)), name))
    with tempfile.TemporaryDirectory(prefix="mmdata-") as folder:
        files, job = IndexFiles(Path(folder), splits), _Job(store, Path(folder), checksums)
        for facts, pieces in job.run(names, workers, progress):
            files.add(facts, pieces)
        files.close(store, _facts(checksums, job.cautions()))
    return _indexed(store, files.shards, files.num["blocks"], job.cautions())


def tar_names(store: Store) -> list[str]:
    """Return the names of the tars in a folder; raise ConfigError when there is none, or one that cannot be a shard's."""
    names = [name for name in store.list("") if name.endswith(".tar") and not name.startswith(".")]
    if not names:
        raise ConfigError(f"{store.url}: no tars here", hint="give the folder in which the .tar files lie")
    strange = [name for name in names if not SHARD_NAME.fullmatch(name)]
    if strange:
        raise ConfigError(
            f"{store.url}: `{strange[0]}` cannot be the name of a shard",
            hint="rename it: letters, digits, `_`, `-` and dots, and none of the last two in front",
        )
    return names


def split_of(name: str) -> str:
    """Return the split that the name of a tar says."""
    found = _SPLIT.search(name)
    return found.group(1) if found else TRAIN


@contextmanager
def opened(store: Store, name: str) -> Iterator[tuple[Bytes, int]]:
    """Give the bytes of a tar, to be cut by slices, and its size: a mapped file, or a window on an object in a store."""
    if not isinstance(store, LocalStore):
        window = Window(store, name)
        yield window, window.size
        return
    with store.open(name) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # cannot be mapped
            yield b"", 0
            return
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            yield mapped, size


class _Read(NamedTuple):
    """What is known of one tar; `blank` counts samples without an image, a video or a text."""

    facts: ShardFacts
    pieces: Pieces
    skipped: int
    blank: int


@dataclass
class _Job:
    """The reading of all tars. What is wrong with one does not keep the others from being looked at."""

    store: Store
    scratch: Path
    checksums: bool
    damages: list[str] = field(default_factory=list)
    skipped: int = 0
    blank: int = 0

    def cautions(self) -> list[str]:
        """Return what a person should know of the folder."""
        said = []
        if any(_STATS.fullmatch(name) for name in self.store.list("")):
            said.append("img2dataset cannot go on in this folder: it takes every .json in it for the stats of a shard")
        if self.skipped:
            said.append(f"{self.skipped:,} links and devices in the tars hold no data: they are no members")
        if self.blank:
            said.append(f"{self.blank:,} samples have no image, video or text")
        return said

    def run(self, names: list[str], workers: int | None, progress: Progress | None) -> Iterator[tuple[ShardFacts, Pieces]]:
        """Yield facts and records of each tar, in the order given; in the end raise ConfigError for those damaged."""
        local = isinstance(self.store, LocalStore)
        usual = (os.cpu_count() or 1) if self.checksums else 1 if local else REMOTE_WORKERS
        said = time.monotonic()
        pool = ThreadPoolExecutor(workers or usual, "index")
        try:
            for done, (name, read) in enumerate(zip(names, pool.map(self._try, names), strict=True)):
                if progress is not None and time.monotonic() - said > TICK_S:
                    progress(done, len(names))
                    said = time.monotonic()
                if isinstance(read, RunError):
                    self.damages.append(f"{self.store.url}/{name}: {read}")
                else:
                    self.skipped, self.blank = self.skipped + read.skipped, self.blank + read.blank
                    yield read.facts, read.pieces
        finally:
            pool.shutdown(cancel_futures=True)
        if self.damages:
            more = f"\n... and {len(self.damages) - NAMED} tars more" if len(self.damages) > NAMED else ""
            raise ConfigError("\n".join(self.damages[:NAMED]) + more, hint="or move what is no good out of the folder")

    def _try(self, name: str) -> _Read | RunError:
        try:
            if not self.checksums or isinstance(self.store, LocalStore):
                return self._read(self.store, name)
            with self._copy(name) as home:
                return self._read(home, name)
        except RunError as error:
            return error

    def _read(self, store: Store, name: str) -> _Read:
        with opened(store, name) as (data, size):
            index = TarIndex(name).fill(data)
        sha256 = None
        if self.checksums:
            with store.open(name) as file:
                sha256, sums = sums_of(file, index.samples["length"])
            if len(sums) != len(index.samples):
                raise RunError("became shorter while it was read", hint="index it when nobody writes to it")
            index.samples["xxh3"] = sums
        facts = ShardFacts(name=name, split=split_of(name), samples=len(index.samples), bytes=size, sha256=sha256)
        return _Read(facts, Pieces(index.samples, index.blocks, index.sample_ids), index.skipped, index.num_blank)

    @contextmanager
    def _copy(self, name: str) -> Iterator[Store]:
        """Give a local copy of a remote tar, which headers and checksums then need only one reading of."""
        path = self.scratch / name
        try:
            with self.store.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
            yield LocalStore(str(self.scratch))
        finally:
            path.unlink(missing_ok=True)


def _found(store: Store, names: list[str], checksums: bool) -> Indexed:
    """Return what an earlier call made, if the folder is still what it was."""
    facts, manifest = read_manifest(store)
    if manifest.plan != PLAN:
        raise ConfigError(f"{store.url}: is a corpus that mmdata made: it has an index", hint="nothing is to be done")
    now = {name: store.size(name) for name in names}
    before = {shard.name: shard.bytes for shard in manifest.shards}
    if other := sorted(set(now.items()) ^ set(before.items())):
        raise ConfigError(f"{store.url}: {other[0][0]} came, went or changed after the folder was indexed", hint=_ANEW)
    if checksums and any(shard.sha256 is None for shard in manifest.shards):
        raise ConfigError(f"{store.url}: is indexed already, without checksums", hint=_ANEW)
    cautions = facts.get("cautions")
    found = _indexed(store, manifest.shards, manifest.blocks, cautions if isinstance(cautions, list) else [])
    return replace(found, made=False)


def _indexed(store: Store, shards: list[ShardFacts], num_blocks: int, cautions: list[str]) -> Indexed:
    splits: Counter[str] = Counter()
    for shard in shards:
        splits[shard.split] += shard.samples
    checksums = all(shard.sha256 is not None for shard in shards)
    return Indexed(store.url, len(shards), splits.total(), num_blocks, dict(splits), checksums, tuple(cautions))


def _facts(checksums: bool, cautions: list[str]) -> dict[str, object]:
    return {
        "plan": PLAN, "plan_digest": digest_json({"rules": RULES, "checksums": checksums}), "trusted": False,
        "columns": {}, "licences": {}, "funnel": {}, **({"cautions": cautions} if cautions else {}),
    }  # fmt: skip


def _train_first(split: str) -> tuple[bool, str]:
    return split != TRAIN, split
