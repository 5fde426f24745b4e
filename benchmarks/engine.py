"""Engine overhead: an empty stage over 10^4 to 10^6 rows, on each executor, beside Ray Data on the same parquet.

    python -m benchmarks.engine [--quick] [--json FILE]

Ours reads the list, makes ids, keeps every row by `score >= -1`, and commits column files, fates and a record a partition.
The limit is pyarrow reading and writing the same rows in one thread of one process.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import HERE, Peer, Result, arguments, compare, line, peer_python, publish
from mmdata.engine import Executor, Runner
from mmdata.executors import EXECUTORS, open_executor
from mmdata.plan import Plan
from mmdata.stages.keep import Keep
from mmdata.stages.sources import Catalog

PARTITION = 10_000
NOTES = """
`rows_N` is a whole run of N rows in partitions of 10,000 (for 10^4 rows: one partition); lower is better. `per_row` is the
slope between 10^5 and 10^6 rows in partitions of 10,000, in microseconds; `per_partition` is what 100 partitions of 1,000
rows cost above 10 partitions of 10,000 rows, a partition, in milliseconds. A partition pays for four synced files (its
rows, its verdicts, its fates, its record), each synced with its folder: that is most of it.
Executors are open and warm before the clock starts; so is Ray Data's cluster, which runs the job once before.
"""


def make_input(folder: Path, num: int) -> Path:
    home = folder / f"rows-{num}"
    home.mkdir()
    numbers = np.arange(num)
    table = pa.table({
        "url": pa.array([f"http://host-{n % 999}/{n}.jpg" for n in numbers]),
        "text": pa.array([f"a caption of picture number {n}" for n in numbers]),
        "score": np.random.default_rng(0).random(num).astype(np.float32),
    })  # fmt: skip
    pq.write_table(table, home / "list.parquet", row_group_size=PARTITION)
    (home / "catalog.yaml").write_text("entries:\n  x: {files: [list.parquet], carry: {score: float32}}\n", encoding="utf-8")
    return home


def ours(home: Path, executor: Executor, partition: int) -> float:
    source = Catalog(file=str(home / "catalog.yaml"), entry="x", partition_rows=partition)
    plan = Plan(name="bench", source=(source,), stages=(Keep(column="score", at_least=-1),))
    with tempfile.TemporaryDirectory() as run:
        gc.collect()
        started = time.perf_counter()
        result = Runner(plan, run).execute(executor, quiet=True)
        seconds = time.perf_counter() - started
    assert result.funnel["kept"] == result.funnel["rows_in"]
    return seconds


def bare(home: Path) -> float:
    with tempfile.TemporaryDirectory() as target:
        started = time.perf_counter()
        table = pq.read_table(home / "list.parquet", use_threads=False)
        pq.write_table(table, Path(target) / "out.parquet", compression="zstd")
        return time.perf_counter() - started


def ray_data(home: Path, num: int) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as target:
        command = [
            str(peer_python("ray-data")), str(HERE / "peers/ray_data_engine.py"), str(home / "list.parquet"),
            f"{target}/out", str(max(1, num // PARTITION)),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["seconds"], found["version"]


def main() -> None:
    options = arguments(__doc__ or "")
    sizes = (10_000, 100_000) if options.quick else (10_000, 100_000, 1_000_000)
    runs = 2 if options.quick else 5
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        homes = {num: make_input(Path(folder), num) for num in sizes}
        for name in EXECUTORS:
            executor = open_executor(name, workers=2)
            try:
                ours(homes[10_000], executor, 1_000)  # workers start, modules load
                results += measure(name, executor, homes, runs)
            finally:
                executor.close()
    publish("engine", results, options, NOTES)


def measure(name: str, executor: Executor, homes: dict[int, Path], runs: int) -> list[Result]:
    found = []
    for num, home in homes.items():

        def peer(num: int = num, home: Path = home) -> tuple[float, str]:
            return ray_data(home, num)

        mine = compare(
            f"{name}_rows_{num}", lambda home=home: ours(home, executor, PARTITION),  # type: ignore[misc]
            Peer("Ray Data", peer) if name == "ray" else None, lambda home=home: bare(home), runs,  # type: ignore[misc]
        )  # fmt: skip
        found.append(mine)
    small, large = sorted(homes)[-2:]
    times = {result.name: result.ours for result in found}
    slope = (times[f"{name}_rows_{large}"] - times[f"{name}_rows_{small}"]) / (large - small)
    found.append(derived(f"{name}_per_row", slope * 1e6, "us", runs))
    many = compare(f"{name}_100_partitions", lambda: ours(homes[100_000], executor, 1_000), None, None, runs)
    found += [many, derived(f"{name}_per_partition", (many.ours - times[f"{name}_rows_100000"]) / 90 * 1e3, "ms", runs)]
    return found


def derived(name: str, value: float, unit: str, runs: int) -> Result:
    result = Result(name, value, None, None, None, None, None, None, unit, runs, (value, value))
    sys.stdout.write(line(result) + "\n")
    return result


if __name__ == "__main__":
    main()
