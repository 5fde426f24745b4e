"""Free what no kept generation refers to: old columns, payloads, corpora, and what killed attempts left behind.

Kept are the newest finished generations and whatever is not finished yet. A generation that goes is marked first, so that
a collection that is killed is simply gone on with by the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from mmdata.engine.keys import plan_keys
from mmdata.engine.lease import Lease
from mmdata.engine.run import point
from mmdata.engine.runstore import Generation, RunStore, load_generation
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.task import Job
from mmdata.errors import ConfigError
from mmdata.schema import PAYLOAD
from mmdata.storage import LocalStore, clear_temps


@dataclass(frozen=True)
class Freed:
    """What a collection freed, or would free: generations by number, objects, and their bytes."""

    kept: list[int]
    gone: list[int]
    objects: list[str]
    bytes: int


@dataclass
class _Used:
    """What the kept generations refer to."""

    keys: set[str] = field(default_factory=set)
    idents: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    passes: set[str] = field(default_factory=set)
    corpora: set[str] = field(default_factory=set)
    shards: set[str] = field(default_factory=set)


def collect(url: str, keep: int = 1, *, dry_run: bool = False) -> Freed:
    """Free everything but what the `keep` newest finished generations need; a dry run only says what that is."""
    run = RunStore(url)
    if run.owner() is None:
        raise ConfigError(f"{url}: not a run folder", hint="give the --run-dir of `mmdata run`")
    if dry_run:
        return _collect(run, keep, dry_run=True)
    with Lease(run.store):
        return _collect(run, keep, dry_run=False)


def _collect(run: RunStore, keep: int, *, dry_run: bool) -> Freed:
    finished, all_of_them = run.finished(), run.generations()
    kept = [number for number in all_of_them if number in finished[-keep:] or number > max(finished, default=0)]
    gone = [number for number in all_of_them if number not in kept]
    used = _Used()
    for number in kept:
        _mark(run, load_generation(run.url, number), used)
    loose = [name for name in _objects(run) if not _needed(name, used, gone)]
    freed = Freed(kept, gone, loose, sum(run.store.size(name) for name in loose))
    if not dry_run:
        for number in gone:
            run.store.create(f"generations/{number}.gone", b"")
        _point_to_newest(run, kept)
        for name in loose:
            run.store.delete(name)
        if isinstance(run.store, LocalStore):
            clear_temps(run.store.root, everyone=True)
    return freed


def _mark(run: RunStore, generation: Generation, used: _Used) -> None:
    """Note all that a generation refers to, by looking the way a run does."""
    keys = plan_keys(generation.plan)
    job = Job(run.url, generation.number, "", "", tuple(keys[index] for index in sorted(keys)), generation.allow)
    look = Scheduler(run, generation, job, None)
    if look.segments() and generation.plan.sink is not None:
        look.sink()
    used.keys.update(keys.values())
    used.tasks |= look.seen
    used.passes |= look.passes
    used.idents.update(partition.ident for partition in generation.partitions)
    if run.store.exists(f"manifest/{generation.number}.json"):
        used.corpora.add(str(run.manifest(generation.number)["corpus"]))
    for key in keys.values():
        for partition in generation.partitions:
            for table in run.held(key, partition.ident):
                used.shards.update(_shards_of(table))


def _shards_of(table: pa.Table) -> Iterator[str]:
    """Yield the payload shards that a column file refers to."""
    for column in table.columns:
        if column.type == PAYLOAD:
            flat = column.combine_chunks()
            sets, tars = flat.field("set").to_pylist(), flat.field("tar").to_pylist()
            yield from {f"{place}/{str(tar).removesuffix('.tar')}" for place, tar in zip(sets, tars, strict=True) if place}


def _objects(run: RunStore) -> Iterator[str]:
    """Yield everything in the folders that a collection looks at."""
    for folder in ("columns", "tasks", "passes", "payload", "corpora", "poison", "manifest", "facts"):
        yield from _below(run, folder)


def _below(run: RunStore, folder: str) -> Iterator[str]:
    for name in run.store.list(folder):
        path = f"{folder}/{name}"
        if run.store.exists(path):
            yield path
        else:
            yield from _below(run, path)


def _needed(name: str, used: _Used, gone: list[int]) -> bool:
    folder, first, *rest = name.split("/")
    if folder in ("manifest", "facts"):
        return int(first.split(".")[0]) not in gone
    if folder == "tasks":
        return first.split(".")[0] in used.tasks
    if folder == "passes":
        return first in used.passes
    if folder == "corpora":
        return f"corpora/{first}" in used.corpora or first in used.passes
    if first not in used.keys:
        return False
    if folder == "columns":
        return rest[0].split(".")[0] in used.idents
    return folder == "poison" or f"payload/{first}/{rest[0]}/{rest[1].split('.')[0].split('_')[0]}" in used.shards


def _point_to_newest(run: RunStore, kept: list[int]) -> None:
    for number in reversed(kept):
        if run.store.exists(f"manifest/{number}.json") and (corpus := run.manifest(number)["corpus"]) is not None:
            point(run, "corpus", corpus)
            return
