"""What the deduping benchmark runs, each in a process of its own: `python -m benchmarks.dedupe_jobs NAME WORD...`.

hamming  HASHES.npy RADIUS OUT.npy   all pairs by `near_hashes`; the pairs go into a file
sorted   HASHES.npy                  one sort of the hashes: no exact method can do with less
exact    FOLDER SCRATCH WORKERS      the passes of `dedupe` over partitions in files, as the engine runs them
polars   FOLDER FORM                 one group-by of the column, all of it in memory
copied   FOLDER SCRATCH WORKERS      the same bytes read, written bucket by bucket and read again, with nothing looked at

The last line printed is JSON: `seconds`, `cpu`, `peak_mib` (the sum over processes), and what was found.
"""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.dedupe_data import peak_mib

BUCKETS = 64  # as many as the engine makes
POLARS = ("len", "first", "unique", "is_first")


def hamming(words: list[str]) -> dict[str, Any]:
    """Return the cost of all pairs within a radius."""
    from mmdata.dedupe.hamming import near_hashes

    hashes = np.load(words[0])
    near_hashes(hashes[:1000], int(words[1]))
    started, used = time.perf_counter(), time.process_time()
    found = near_hashes(hashes, int(words[1]))
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    peak = peak_mib()
    np.save(words[2], np.stack([found.left_P, found.right_P], axis=1))
    return {"seconds": seconds, "cpu": cpu, "peak_mib": peak, "pairs": len(found)}


def ordered(words: list[str]) -> dict[str, Any]:
    """Return the cost of one sort."""
    hashes = np.load(words[0])
    started = time.perf_counter()
    np.sort(hashes)
    return {"seconds": time.perf_counter() - started}


def exact(words: list[str]) -> dict[str, Any]:
    """Scatter all partitions, then gather all buckets, some at a time."""
    return _passes(words, _warm, (_scatter, _gather))


def copied(words: list[str]) -> dict[str, Any]:
    """Read and write the same files as `exact`, without looking at a row."""
    return _passes(words, _warm_arrow, (_spread, _read_back))


def _passes(words: list[str], warm: Callable[[int], None], work: tuple["Work", "Work"]) -> dict[str, Any]:
    folder, scratch, workers = Path(words[0]), Path(words[1]), int(words[2])
    parts = sorted(folder.glob("*.parquet"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(warm, range(4 * workers)))
        started = time.perf_counter()
        list(pool.map(work[0], [(str(path), str(scratch), number) for number, path in enumerate(parts)]))
        scattered = time.perf_counter() - started
        told = list(pool.map(work[1], [("", str(scratch), bucket) for bucket in range(BUCKETS)]))
        seconds = time.perf_counter() - started
    # A process's peak never falls: the last of each is the greatest.
    peaks: dict[int, float] = {}
    for _, pid, peak in told:
        peaks[pid] = max(peak, peaks.get(pid, 0.0))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(scratch)
    found = {"dropped": sum(num for num, _, _ in told), "scatter": scattered, "cpu": used.ru_utime + used.ru_stime}
    return {"seconds": seconds, "peak_mib": sum(peaks.values()) + peak_mib(), **found}


Job = tuple[str, str, int]
Work = Callable[[Job], tuple[int, int, float]]


def _warm(_: int) -> None:
    import polars  # noqa: F401 - a worker loads what it needs before it is timed

    import mmdata.stages.dedupe  # noqa: F401

    time.sleep(0.05)


def _warm_arrow(_: int) -> None:
    time.sleep(0.05)


def _records(path: str, number: int) -> pa.Table:
    """Return the rows of a partition as a GlobalFilter gets them."""
    table = pq.read_table(path)
    rows = table.num_rows
    added = {
        "_partition": pa.array(np.full(rows, number, np.int64)), "_row": pa.array(np.arange(rows)),
        "position": pa.array(np.zeros(rows, np.int32)),
    }  # fmt: skip
    return pa.table({**added, **{name: table.column(name) for name in table.column_names}})


def _stage() -> tuple[Any, Any]:
    from mmdata.stages.dedupe import Dedupe

    scatter, gather = Dedupe(by="raw_sha256").passes()
    return scatter, gather


def _scatter(job: Job) -> tuple[int, int, float]:
    path, scratch, number = job
    scatter, _ = _stage()
    records = scatter.prepare(_records(path, number))
    where = scatter.bucket(records, BUCKETS)
    order = np.argsort(where.astype(np.uint8), kind="stable")
    ends = np.cumsum(np.bincount(where, minlength=BUCKETS))
    _write(records.take(pa.array(order)), [0, *ends.tolist()], scratch, number)
    return 0, os.getpid(), peak_mib()


def _spread(job: Job) -> tuple[int, int, float]:
    path, scratch, number = job
    records = _records(path, number)
    _write(records, np.linspace(0, records.num_rows, BUCKETS + 1).astype(int).tolist(), scratch, number)
    return 0, os.getpid(), peak_mib()


def _write(records: pa.Table, borders: list[int], scratch: str, number: int) -> None:
    """Write one batch a bucket, as the engine does."""
    records = records.combine_chunks()
    with pa.ipc.new_file(f"{scratch}/{number}.arrow", records.schema) as writer:
        for first, stop in pairwise(borders):
            some = records.slice(first, stop - first).to_batches()
            writer.write_batch(some[0] if some else pa.RecordBatch.from_pylist([], records.schema))


def _bucket(scratch: str, bucket: int) -> pa.Table:
    files = sorted(Path(scratch).glob("*.arrow"), key=lambda path: int(path.stem))
    batches = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(bucket) for path in files]
    return pa.Table.from_batches(batches).combine_chunks()


def _gather(job: Job) -> tuple[int, int, float]:
    _, gather = _stage()
    verdicts = gather.work(_bucket(job[1], job[2]))
    with pa.ipc.new_file(f"{job[1]}/verdicts-{job[2]}", verdicts.schema) as writer:
        writer.write_table(verdicts)
    return verdicts.num_rows, os.getpid(), peak_mib()


def _read_back(job: Job) -> tuple[int, int, float]:
    _bucket(job[1], job[2])
    return 0, os.getpid(), peak_mib()


def by_polars(words: list[str]) -> dict[str, Any]:
    """Group the whole column in memory, in one of several ways; return the cost without that of reading it."""
    import polars as pl

    frame = pl.read_parquet(f"{words[0]}/*.parquet", columns=["raw_sha256"]).with_row_index("row").rechunk()
    column = pl.col("raw_sha256")
    forms: dict[str, Callable[[], int]] = {
        "len": lambda: len(frame.group_by("raw_sha256").len()),
        "first": lambda: len(frame.group_by("raw_sha256").agg(pl.col("row").min())),
        "unique": lambda: len(frame.unique("raw_sha256", keep="any")),
        "is_first": lambda: int(frame.select(column.is_first_distinct().sum()).item()),
    }
    started, used = time.perf_counter(), time.process_time()
    distinct = forms[words[1]]()
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return {"seconds": seconds, "cpu": cpu, "peak_mib": peak_mib(), "distinct": distinct, "version": pl.__version__}


JOBS = {"hamming": hamming, "sorted": ordered, "exact": exact, "copied": copied, "polars": by_polars}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(JOBS[sys.argv[1]](sys.argv[2:])) + "\n")
