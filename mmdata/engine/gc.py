"""Free what no kept generation refers to: old columns, payloads, corpora, and what killed attempts left behind.

Kept are the finished generation that was asked for last, as many of the newest as the call says, the newest that has a corpus,
and what is not finished. Columns are kept whole, by key and partition. A generation that goes is marked first, and records go
before the data that they vouch for: a collection that is killed leaves a run folder that is sound, and the next goes on with it.
"""

import re
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.lease import Lease
from mmdata.engine.run import show_newest
from mmdata.engine.runstore import ASKED, MEDIA, RunStore, load_generation
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.task import Job
from mmdata.errors import ConfigError
from mmdata.schema import PAYLOAD
from mmdata.storage import LocalStore, clear_temps

FOLDERS = ("columns", "corpora", "facts", "manifest", "passes", "payload", "poison", "tasks")
NONCE = "facts/nonce"  # belongs to no generation: nodes of a cluster read it to show that they see the folder
_SHARD_FILE = re.compile(r"(\.tar|\.parquet|_stats\.json)$")


@dataclass(frozen=True)
class Freed:
    """What a collection freed, or would free: generations by number, objects, and their bytes."""

    kept: list[int]
    gone: list[int]
    objects: list[str]
    bytes: int


def collect(url: str, keep: int = 1, *, unfinished: bool = False, dry_run: bool = False) -> Freed:
    """Free everything but what `keep` finished generations need: the one asked for last, then the newest.

    With `unfinished` that includes what was begun and never finished. A dry run only says what would be freed.
    """
    run = RunStore(url)
    if run.owner() is None:
        raise ConfigError(f"{url}: not a run folder", hint="give the --run-dir of `mmdata run`")
    if dry_run:
        return _find(run, keep, unfinished=unfinished)
    with Lease(run.store) as lease:
        found = _find(run, keep, unfinished=unfinished)
        for number in found.gone:
            run.store.create(f"generations/{number}.gone", b"")
        _show_newest(run)
        for name in found.objects:
            lease.check()
            run.store.delete(name)
        if isinstance(run.store, LocalStore):
            _tidy(run.store.root)
    return found


def _find(run: RunStore, keep: int, *, unfinished: bool) -> Freed:
    finished, known = run.finished(), run.generations()
    corpus = next((number for number in reversed(finished) if run.manifest(number)["corpus"] is not None), None)
    wanted = {*finished[-keep:], corpus, *(() if unfinished else set(known) - set(finished))}
    kept = [number for number in known if number in wanted]
    objects = list(_objects(run))  # first: what is listed later than this is not touched
    sets = {tuple(name.split("/")[1:3]) for name in objects if name.startswith("payload/") and name.count("/") == 3}
    used = {ASKED, NONCE, *(name for number in kept for name in _used(run, number, sets))}
    loose = sorted((name for name in objects if _unit(name) not in used), key=_turn, reverse=True)
    gone = [number for number in known if number not in kept]
    return Freed(kept, gone, loose, sum(run.store.size(name) for name in loose))


def _used(run: RunStore, number: int, sets: Set[tuple[str, ...]]) -> Iterator[str]:
    """Yield the units that a generation refers to; `sets` are key and folder of the payloads that there are."""
    yield from (f"manifest/{number}.json", f"facts/{number}.json")
    tasks, passes = _results(run, number)
    finished = run.store.exists(f"manifest/{number}.json")
    for key in passes:
        yield from (f"passes/{key}", f"corpora/{key}", *(() if finished else (f"passes/{key}/{MEDIA}",)))
    for key in tasks:
        for record in run.records(key):
            yield from (f"tasks/{record['key']}.json", f"tasks/{record['key']}.{record['state'][:16]}.parquet")
    folders = {key: [name for home, name in sets if home == key] for key in run.keys(number).values()}
    for item in run.read_json(f"generations/{number}.json")["partitions"]:
        for key, mine in folders.items():
            yield from (f"columns/{key}/{item['ident']}", f"poison/{key}/{item['ident']}")
            if mine:
                yield from _shards(run, key, item, mine)


def _results(run: RunStore, number: int) -> tuple[set[str], set[str]]:
    """Return the keys of a generation's records and of its passes; of an unfinished one, as far as it is.

    The same call looks for all of these, and not only for what the last records name as those before them: where two rounds
    came to the same, what followed was done once, and names the first.
    """
    generation = load_generation(run.url, number)
    job = Job(run.url, number, "", "", tuple(run.keys(number).values()), generation.allow)
    look = Scheduler(run, generation, job, None, found=set())
    if look.segments() and generation.plan.sink is not None:
        look.sink()
    tasks, passes = look.found or set(), look.passes
    if run.store.exists(f"manifest/{number}.json"):
        facts = run.manifest(number)
        tasks, passes = tasks | {head for head in facts["heads"] if head is not None}, passes | set(facts["passes"])
    return tasks, passes


def _shards(run: RunStore, key: str, partition: dict[str, Any], folders: list[str]) -> Iterator[str]:
    """Yield the payload shards that belong to the column files of a partition."""
    for added, file in enumerate(run.files(key, partition["ident"])):
        column = next(iter(file.read(file.named(PAYLOAD)).columns), pa.chunked_array([[]], PAYLOAD))
        places = pa.table({name: pc.struct_field(column, name) for name in ("set", "tar")}).group_by(["set", "tar"]).aggregate([])
        found = [f"{place['set']}/{place['tar']}".removesuffix(".tar") for place in places.to_pylist() if place["set"]]
        mine = [f"payload/{key}/{folder}/{partition['number']:05d}" for folder in folders if _added(folder) == added]
        yield from found or mine  # where every row failed nothing says which attempt it was


def _added(folder: str) -> int:
    """Return how many column files there were before a payload folder's: 2 for `download.2.a1`."""
    number = folder.split(".")[1:2]
    return int(number[0]) if number and number[0].isdigit() else 0


def _objects(run: RunStore) -> Iterator[str]:
    """Yield everything in the folders that a collection looks at."""
    for folder in FOLDERS:
        yield from _below(run, folder)


def _below(run: RunStore, folder: str) -> Iterator[str]:
    for name in run.store.list(folder):
        path = f"{folder}/{name}"
        if run.store.exists(path):
            yield path
        else:
            yield from _below(run, path)


def _unit(name: str) -> str:
    """Return what is kept or freed as one: all files of a column, a pass, a corpus, a payload shard."""
    folder, *rest = name.split("/")
    if folder == "passes" and rest[1].startswith(MEDIA):  # a corpus that is finished does without
        return f"passes/{rest[0]}/{MEDIA}"
    if folder in ("passes", "corpora"):
        return f"{folder}/{rest[0]}"
    if folder == "columns":
        return name.partition(".")[0]
    if folder == "poison":
        return name.rpartition("/")[0]
    if folder == "facts" and len(rest) == 2:  # of a payload shard: they live as long as it
        place, _, shard = rest[1].removesuffix(".parquet").rpartition("-")
        return f"payload/{rest[0]}/{place}/{shard}"
    return _SHARD_FILE.sub("", name) if folder == "payload" else name


def _turn(name: str) -> tuple[int, bool, int, str]:
    """Order what is freed, the highest first: what vouches for data before the data, the last addition to a column first."""
    stage = {"payload": 0, "columns": 1}.get(name.partition("/")[0], 2)
    vouches = name.endswith(".json") or (stage == 1 and name.endswith(".parquet"))
    return stage, vouches, len(name), name


def _show_newest(run: RunStore) -> None:
    finished = run.finished()  # those that go are marked, and so not among them
    facts = [run.manifest(number) for number in finished]
    if facts:
        corpora = [item["corpus"] for item in facts if item["corpus"] is not None]
        show_newest(run, finished[-1], corpora[-1] if corpora else None, facts[-1]["funnel"])


def _tidy(root: Path) -> None:
    """Remove what killed writers left, folders with nothing in them, and a link to nothing."""
    clear_temps(root, everyone=True)
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*/"), reverse=True):
            with suppress(OSError):  # it is not empty
                path.rmdir()
    if not (root / "corpus").exists():
        (root / "corpus").unlink(missing_ok=True)
