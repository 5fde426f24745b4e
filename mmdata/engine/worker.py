"""What a worker does with a task. The same code runs in the driver, in a process and in a Ray actor."""

import errno
import os
import platform
import tempfile
import time
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmdata.engine.careful import Careful, Direct
from mmdata.engine.keys import keys_of, short
from mmdata.engine.ledger import account
from mmdata.engine.passes import run_pass
from mmdata.engine.runstore import Generation, RunStore, partitions_of
from mmdata.engine.segment import SegmentRun
from mmdata.engine.state import State
from mmdata.engine.task import Job, Task, TaskReport
from mmdata.engine.view import PartitionView
from mmdata.engine.worker_cache import WorkerCache
from mmdata.errors import MmdataError, PartitionError, RunError
from mmdata.plan import Plan
from mmdata.storage import digest_bytes

MAX_RUNS = 2  # that a worker keeps models and a decoder open for
_caches: OrderedDict[tuple[str, tuple[str, ...], int], WorkerCache] = OrderedDict()


def _cache_of(job: Job) -> WorkerCache:
    key = (job.run, job.allow, job.share)
    if key not in _caches:
        close_caches(MAX_RUNS - 1)
        _caches[key] = WorkerCache(RunStore(job.run).store, job.allow, job.share)
    _caches.move_to_end(key)
    return _caches[key]


def close_caches(keep: int = 0) -> None:
    """Close what this process keeps open for runs, all but the latest."""
    while len(_caches) > keep:
        _caches.popitem(last=False)[1].close()


@lru_cache(maxsize=8)
def _generation(job: Job) -> Generation:
    facts = RunStore(job.run).read_json(f"generations/{job.generation}.json")
    return Generation(job.generation, Plan.from_json(job.plan), partitions_of(facts), job.allow, facts.get("retries", {}))


def run_task(task: Task, *, confine: bool = True) -> TaskReport:
    """Do one task and commit it; a task that is committed already is not done again.

    With `confine` the calls of stages are held to what their resources say, if need be by ending this process.
    """
    started = time.monotonic()
    seconds: dict[int, float] = {}
    try:
        generation = _generation(task.job)
        record = _segment(task, generation, seconds, confine=confine) if task.kind == "segment" else _pass(task, generation)
    except MmdataError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk is full: {error}", hint="free some space and run the same command again") from error
        raise PartitionError(f"{task.label}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise PartitionError(f"{task.label}, unit {task.unit}: {type(error).__name__}: {error}") from error
    return TaskReport(task.key, record, time.monotonic() - started, f"{platform.node()}:{os.getpid()}", seconds)


def _segment(task: Task, generation: Generation, seconds: dict[int, float], *, confine: bool) -> dict[str, Any]:
    run = RunStore(task.job.run)
    keys = keys_of(task.job)
    segment = generation.plan.segments[task.step]
    partition = generation.partitions[task.unit]
    view = PartitionView(run, generation.plan, keys, partition, generation.retries)
    before = run.record(task.inputs[task.unit]) if task.inputs else None
    state = None if before is None else State.from_bytes(run.state_of(before))
    cache = _cache_of(task.job)
    caller = (
        Careful(run.store, task.job.allow, partition.ident, task.job.share) if task.careful else Direct(cache, confine=confine)
    )
    work = SegmentRun(view, segment, caller, cache)
    try:
        state = work.run(state, task.verdicts)
    finally:
        caller.close()
        seconds.update(work.seconds)
    data = state.to_bytes()
    return run.commit(task.key, _record(task, generation, work, state, data, before), data)


def _record(
    task: Task, generation: Generation, work: SegmentRun, state: State, data: bytes, before: dict[str, Any] | None
) -> dict[str, Any]:
    digests = {**(before["digests"] if before else {}), **work.digests}
    profiles = {**(before.get("profiles", {}) if before else {}), **work.named_profiles()}
    state_digest = digest_bytes(data)
    steps = generation.plan.steps
    return {
        "key": task.key, "partition": work.view.partition.ident, "segment": task.step, "label": task.label,
        **account(state),
        "steps": [{"stage": steps[index].stage.name, "index": index, **counts} for index, counts in work.work.items()],
        "state": state_digest, "digests": digests, "result": short([state_digest, digests]), "before": task.inputs.get(task.unit),
        **({"profiles": profiles} if profiles else {}),
    }  # fmt: skip


def _pass(task: Task, generation: Generation) -> dict[str, Any]:
    run = RunStore(task.job.run)
    keys = keys_of(task.job)
    with tempfile.TemporaryDirectory(prefix="mmdata-") as scratch:
        return run_pass(task, generation, run, keys, Path(scratch))
