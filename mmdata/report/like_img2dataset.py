"""One call of img2dataset's command line, made of a run and an export.

Decided here: what img2dataset calls incremental, overwrite and extend are which run folder the call goes on with. Run folders
lie in `_mmdata/N/` of the output folder, N being the number of their first shard. Shards appear while the run goes on, as
they do with img2dataset: a thread looks for partitions that were downloaded. What it misses is written when the run has ended.
"""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa

from mmdata.engine import Executor, Runner, RunResult, RunStore
from mmdata.errors import ConfigError, MmdataError
from mmdata.plan.img2dataset import Flags, plan_of
from mmdata.report.export import Export, Exported, Request, export_img2dataset

HOME = "_mmdata"
_SHARD = re.compile(r"(\d+)(_stats\.json|\.tar|\.parquet|)")
_DONE = "exported"
LOOK_S = 2.0
JOIN_S = 5.0


@dataclass(frozen=True)
class Job:
    """The flags of a call, and what may be dialled although it is not public."""

    flags: Flags
    allow: tuple[str, ...] = ()

    def run(self, executor: Executor) -> tuple[RunResult, Exported]:
        """Download and write what is not there yet.

        Raises ConfigError before anything is touched when the flags cannot be honoured or the folder is img2dataset's own.
        """
        plan = plan_of(self.flags)
        if self.flags.incremental_mode == "overwrite":
            self._clear()
        first = self.first_shard
        home = self.root / HOME / str(first)
        with _following(RunStore(str(home)), str(self.root), self._request(first)) as written:
            result = Runner(plan, str(home), self.allow).execute(executor)
        exported = export_img2dataset(str(home), str(self.root), self._request(first), written)
        if not result.failed:
            RunStore(str(home)).store.put(_DONE, b"")
        return result, exported

    @property
    def root(self) -> Path:
        """The output folder."""
        if "://" in self.flags.output_folder:
            raise ConfigError(
                f"--output_folder {self.flags.output_folder}: this command writes to a local disk",
                hint="`mmdata run` writes to an object store, and `mmdata export` from it",
            )
        return Path(self.flags.output_folder).absolute()

    @cached_property
    def first_shard(self) -> int:
        """The number of this call's first shard: 0, or behind all that are there when the folder is to be extended."""
        homes = sorted(int(path.name) for path in (self.root / HOME).glob("*") if path.name.isdecimal())
        if self.flags.incremental_mode == "extend":
            unfinished = [first for first in homes if not (self.root / HOME / str(first) / _DONE).exists()]
            return unfinished[-1] if unfinished else max(self._shards("_stats.json"), default=-1) + 1
        if not homes and self._shards("_stats.json"):
            raise ConfigError(
                f"{self.root} holds shards that another program made",
                hint="let it finish them, or give `--incremental_mode extend` or another folder",
            )
        return 0

    def _request(self, first: int) -> Request:
        flags = self.flags
        check = flags.verify_hash[0] if flags.verify_hash else None
        return Request(flags.layout, flags.columns, first, flags.number_sample_per_shard, check)

    def _shards(self, suffix: str) -> list[int]:
        found = [(_SHARD.fullmatch(path.name), path) for path in self.root.glob("*")]
        return [int(match.group(1)) for match, _ in found if match is not None and match.group(2) == suffix]

    def _clear(self) -> None:
        """Remove shards and their run folders; what is neither stays."""
        for path in self.root.glob("*"):
            if path.name == HOME or _SHARD.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _following(run: RunStore, out: str, request: Request) -> Iterator[set[int]]:
    """Write the shards of partitions as they are downloaded, as long as the context is open; give the numbers of these."""
    stop = threading.Event()
    written: set[int] = set()
    follow = partial(_follow, run, out, request, stop, written)
    thread = threading.Thread(target=follow, name="export", daemon=True)
    thread.start()
    patience_s: float | None = JOIN_S  # a run that was stopped does not wait for a shard
    try:
        yield written
        patience_s = None
    finally:
        stop.set()
        thread.join(patience_s)


def _follow(run: RunStore, out: str, request: Request, stop: threading.Event, written: set[int]) -> None:
    """Look every few seconds. Trouble is left to the export at the end, which says it."""
    seen: set[int] = set()
    export: Export | None = None
    while not stop.wait(LOOK_S):
        with suppress(MmdataError, OSError, pa.ArrowException):
            number = max(run.generations(), default=0)
            if number and (export is None or export.generation.number != number):
                export, seen = Export(run, number, out, request), set()
            for partition in export.generation.partitions if export is not None else ():
                if not stop.is_set() and partition.number not in seen and export is not None and export.ready(partition):
                    seen.add(partition.number)
                    if export.write(partition)[0]:
                        written.add(partition.number)
