"""Passes of GlobalFilters and Sinks as ordinary tasks.

A pass writes `passes/KEY/i/UNIT.arrow` once; that file is its commit. The value of a Fold is `passes/KEY/value.arrow`, that
of a Round `passes/KEY/value.i.arrow`. A Scatter's file holds one batch a bucket, so a
reader takes its bucket from every file without reading the rest. A Sort's files are Scatter's with other references to media,
and lie with the media in a folder that says how they were sorted, `passes/KEY/media-MIB/`; an Emit reads one or the other.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmdata.engine.keys import SOURCE
from mmdata.engine.runstore import MEDIA, Generation, Partition, RunStore
from mmdata.engine.state import NOBODY, State
from mmdata.engine.task import Task
from mmdata.engine.view import PartitionView
from mmdata.errors import PartitionError, RunError
from mmdata.failpoint import step
from mmdata.plan import Plan, Step
from mmdata.schema import PARTITION, VERDICT_FIELDS
from mmdata.shards.sorting import SortPlace
from mmdata.shards.units import EmitPlace
from mmdata.stages.passes import Emit, Fold, Gather, Judge, Pass, Round, Scatter, Share, Sort
from mmdata.stages.verbs import GlobalFilter, SourceSlice

MAX_BUCKETS = 64
MAX_PART_BYTES, MAX_VALUE_BYTES = 1 << 20, 64 << 20  # of a Round
_ADDED = 64  # parts of a Round are added up so many at a time
NOTHING = Partition(0, "nothing", 0, SourceSlice("", "", 0, 0))  # stands in for the partitions of an empty source


def num_scattered(generation: Generation) -> int:
    """Return how many units a Scatter has."""
    return max(1, len(generation.partitions))


def num_buckets(num_partitions: int) -> int:
    """Return how many buckets a Scatter makes."""
    return max(1, min(MAX_BUCKETS, num_partitions))


def passes_of(plan: Plan, step: int) -> tuple[Pass, ...]:
    """Return the passes of a step; the sink is the step after the last."""
    if step == len(plan.stages):
        return plan.sink.passes() if plan.sink is not None else ()
    stage = plan.stages[step]
    return stage.passes() if isinstance(stage, GlobalFilter) else ()


def num_expected(generation: Generation, step: int) -> int:
    """Return how many tasks the passes of a step have, as far as that is known before they run."""
    num = len(generation.partitions)
    units = {Scatter: num_scattered(generation), Gather: num_buckets(num), Fold: num_buckets(num)}
    passes = passes_of(generation.plan, step)
    return sum(num_parts(this, num) if isinstance(this, Share) else units.get(type(this), 0) for this in passes)


def num_parts(this: Pass, num_partitions: int) -> int:
    """Return how many tasks a Gather, a Fold or a Share has."""
    num = num_buckets(num_partitions)
    return num if not isinstance(this, Share) or this.most is None else min(num, this.most)


def folder_of(passes: tuple[Pass, ...], index: int) -> str:
    """Return where a pass writes, below its step's key; a Sort that is left out moves no other."""
    this = passes[index]
    if isinstance(this, Sort):
        return f"{MEDIA}{this.memory >> 20}"
    return str(sum(not isinstance(before, Sort) for before in passes[:index]))


def num_sorted(this: Sort, value: pa.Table, run: RunStore, generation: Generation) -> int:
    """Return how many units a Sort has: none where it is not worth it."""
    num = num_scattered(generation)
    return -(-num // this.group(value, num)) if this.wanted(value, run.store) else 0


def value_name(key: str, index: int) -> str:
    """Return where the value of a Round lies, the pass of that index."""
    return f"{key}/value.{index}"


def value_before(passes: tuple[Pass, ...], index: int, key: str, run: RunStore) -> pa.Table | None:
    """Return the value of the Round before a pass, if there is one."""
    before = index > 0 and isinstance(passes[index - 1], Round)
    return run.read_pass(value_name(key, index - 1)) if before else None


def left_out(passes: tuple[Pass, ...], index: int, key: str, run: RunStore) -> bool:
    """Say whether a Round has nothing to find out."""
    this = passes[index]
    value = value_before(passes, index, key, run)
    return isinstance(this, Round) and value is not None and this.done(value)


def close_round(passes: tuple[Pass, ...], index: int, key: str, run: RunStore, num_parts: int) -> None:
    """Add up the parts of a Round, a few in memory at a time, and write its value."""
    this, value = passes[index], value_before(passes, index, key, run)
    assert isinstance(this, Round)
    if value is None or not this.done(value):
        total: list[pa.Table] = []
        for first in range(0, num_parts, _ADDED):
            parts = (run.read_pass(f"{key}/{index}/{unit}") for unit in range(first, min(first + _ADDED, num_parts)))
            total = [this.add([*total, *parts])]
            _limit(total[0], MAX_VALUE_BYTES, "all partitions")
        value = this.close(total[0], value)
    run.write_pass(value_name(key, index), [value])


def verdicts_of(view: PartitionView, step: Step, name: str, state: State) -> pa.Table:
    """Return the verdicts that a GlobalFilter gives to the rows of a partition, whose fates so far are `state`.

    name  what the scheduler says of them: KEY/PASS/BUCKETS, or KEY/PASS where a Judge is to be asked
    """
    assert isinstance(step.stage, GlobalFilter)
    passes = step.stage.passes()
    last = passes[-1]
    if not isinstance(last, Judge):
        return verdicts_for(view.run, name, view.partition.number)
    key = name.rpartition("/")[0]
    verdicts = last.work(considered(view, step, state), value_before(passes, len(passes) - 1, key, view.run))
    return verdicts.select([field.name for field in VERDICT_FIELDS])


def verdicts_for(run: RunStore, name: str, number: int) -> pa.Table:
    """Return the verdicts on the rows of one partition from the files of all buckets."""
    folder, _, num_buckets = name.rpartition("/")
    return pa.concat_tables([_of_partition(run.read_pass(f"{folder}/{bucket}"), number) for bucket in range(int(num_buckets))])


def _of_partition(table: pa.Table, number: int) -> pa.Table:
    """Return the rows of a partition of a table sorted by them, without reading the others where the file is mapped."""
    numbers = table.column(PARTITION).to_numpy()
    first, stop = np.searchsorted(numbers, [number, number + 1])
    return table.slice(int(first), int(stop - first)).drop_columns([PARTITION])


def run_pass(task: Task, generation: Generation, run: RunStore, keys: dict[int, str], scratch: Path) -> dict[str, Any]:
    """Run one unit of one pass; return what is recorded of it."""
    passes = passes_of(generation.plan, task.step)
    this = passes[task.pass_index]
    name = f"{task.key}/{folder_of(passes, task.pass_index)}/{task.unit}"
    buckets = num_buckets(len(generation.partitions))
    if isinstance(this, Emit):
        return _emit(name, task, generation, run, scratch)
    if not run.has_pass(name):
        if isinstance(this, Scatter):
            rows = _considered(task, generation, run, keys)
            run.write_pass(name, _scatter(this, rows, buckets))
        elif isinstance(this, Round):
            rows = _considered(task, generation, run, keys)
            part = this.count(rows, value_before(passes, task.pass_index, task.key, run))
            run.write_pass(name, [_limit(part, MAX_PART_BYTES, f"partition {task.unit}")])
        elif isinstance(this, Sort):
            run.write_pass(name, _sort(name, task, generation, run, scratch))
        elif isinstance(this, Share):
            run.write_pass(name, [_share(this, task, generation, run)])
        else:
            assert isinstance(this, Gather | Fold)
            records = _bucket(run, f"{task.key}/0", num_scattered(generation), task.unit)
            run.write_pass(name, [this.part(records) if isinstance(this, Fold) else this.work(records)])
    return {"key": task.key, "pass": name}


def _limit(table: pa.Table, most: int, of: str) -> pa.Table:
    if table.nbytes > most:
        raise RunError(
            f"the counts of {of} take {table.nbytes / (1 << 20):.1f} MiB, {most >> 20} MiB are allowed",
            hint="there are too many groups: name fewer columns in `per`, or use `cap`",
        )
    return table


def _considered(task: Task, generation: Generation, run: RunStore, keys: dict[int, str]) -> pa.Table:
    """Return the rows that the first pass of a step looks at."""
    plan = generation.plan
    partition = generation.partitions[task.unit] if generation.partitions else NOTHING
    view = PartitionView(run, plan, keys, partition)
    if task.unit in task.inputs:
        record = run.record(task.inputs[task.unit])
        assert record is not None
        state = State.alive_in(run.state_of(record))
    else:  # a partition that was given up
        state = State.start(0, np.zeros(0, dtype=np.int64), [])
    if task.step < len(plan.stages):
        return considered(view, plan.steps[task.step], state)
    return _with_number(view, view.columns(plan_homes(view, plan), state.alive, state.space))


def considered(view: PartitionView, step: Step, state: State) -> pa.Table:
    """Return the rows of a partition that a GlobalFilter looks at: those kept so far, or all that have the columns."""
    rows = state.alive
    # A partition of which nothing was left to split still stands in the space before.
    if isinstance(step.stage, GlobalFilter) and step.stage.over == "all" and state.space == step.space:
        rows = _all_reached(view, step.sources, state)
    return _with_number(view, view.columns(step.sources, rows, state.space))


def _with_number(view: PartitionView, table: pa.Table) -> pa.Table:
    return table.add_column(0, PARTITION, pa.array(np.full(table.num_rows, view.partition.number, np.int64)))


def plan_homes(view: PartitionView, plan: Plan) -> dict[str, int]:
    """Return where the columns lie that the sink reads."""
    assert plan.sink is not None
    homes = view.homes_after(len(plan.steps))
    return {name: homes[name] for name in plan.sink.reads(plan.fields)}


def _all_reached(view: PartitionView, homes: dict[str, int], state: State) -> np.ndarray:
    """Return the rows that have the columns in this generation: whoever was there when the last of them was written."""
    last = max((home for home in homes.values() if view.home_space(home) == state.space), default=SOURCE)
    rows: np.ndarray = state.rows[(last == SOURCE) | (state.stage == NOBODY) | (state.stage >= last)]
    return rows


def _scatter(this: Scatter, rows: pa.Table, buckets: int) -> list[pa.Table]:
    return _in_buckets(this, this.prepare(rows), buckets)


def _in_buckets(this: Scatter, records: pa.Table, buckets: int) -> list[pa.Table]:
    if this.bucket is None:
        return [records]
    where = this.bucket(records, buckets) if records.num_rows else np.zeros(0, dtype=np.int64)
    records = records.take(pa.array(np.argsort(where.astype(np.uint8), kind="stable")))
    num = np.bincount(where, minlength=buckets)
    return [records.slice(stop - length, length) for stop, length in zip(np.cumsum(num).tolist(), num.tolist(), strict=True)]


def _share(this: Share, task: Task, generation: Generation, run: RunStore) -> pa.Table:
    num, before = len(generation.partitions), passes_of(generation.plan, task.step)[task.pass_index - 1]
    records = pa.concat_tables([run.read_pass(f"{task.key}/0/{unit}") for unit in range(num_scattered(generation))])
    found = None
    if isinstance(before, Share):
        parts = (run.read_pass(f"{task.key}/{task.pass_index - 1}/{part}") for part in range(num_parts(before, num)))
        found = pa.concat_tables(parts)
    return this.work(records, found, task.unit, num_parts(this, num))


def _sort(name: str, task: Task, generation: Generation, run: RunStore, scratch: Path) -> list[pa.Table]:
    """Sort the media of neighbouring partitions; return their records anew, one table a bucket."""
    passes, buckets = passes_of(generation.plan, task.step), num_buckets(len(generation.partitions))
    first, this = passes[0], passes[task.pass_index]
    assert isinstance(first, Scatter)
    assert isinstance(this, Sort)
    num = num_scattered(generation)
    size = this.group(run.read_pass(f"{task.key}/value"), num)
    units = range(task.unit * size, min((task.unit + 1) * size, num))
    records = pa.concat_tables([run.read_pass(f"{task.key}/0/{unit}", bucket) for unit in units for bucket in range(buckets)])
    place = SortPlace(run.store, f"passes/{name.rpartition('/')[0]}", task.unit, scratch, this.memory)
    found = this.work(place, records)
    if found.num_rows != records.num_rows:
        raise PartitionError(f"{task.label}: {records.num_rows} records went into a sort, {found.num_rows} came out")
    return _in_buckets(first, found, buckets)


def _bucket(run: RunStore, folder: str, num_files: int, bucket: int) -> pa.Table:
    tables = [run.read_pass(f"{folder}/{number}", bucket) for number in range(num_files)]
    return pa.concat_tables(tables).combine_chunks()


def _emit(name: str, task: Task, generation: Generation, run: RunStore, scratch: Path) -> dict[str, Any]:
    commit = f"passes/{name}.json"
    if run.store.exists(commit):
        found: dict[str, Any] = run.read_json(commit)
        return found
    passes, value = passes_of(generation.plan, task.step), run.read_pass(f"{task.key}/value")
    this, before = passes[task.pass_index], passes[task.pass_index - 1]
    assert isinstance(this, Emit)
    folder, num = "0", num_scattered(generation)
    if isinstance(before, Sort) and before.wanted(value, run.store):
        folder, num = folder_of(passes, task.pass_index - 1), num_sorted(before, value, run, generation)
    needed = this.buckets(value, task.unit, num_buckets(len(generation.partitions)))
    names = ((f"{task.key}/{folder}/{number}", bucket) for bucket in needed for number in range(num))
    # Of what belongs to other units, nothing is held longer than it is looked at.
    records = pa.concat_tables([this.choose(value, task.unit, run.read_pass(*file)) for file in names])
    place = EmitPlace(run.store, f"corpora/{task.key}", task.unit, scratch)
    record = {"key": task.key, "files": this.write(place, value, records)}
    with step("unit"):
        run.store.create_same(commit, json.dumps(record, sort_keys=True).encode())
    return record
