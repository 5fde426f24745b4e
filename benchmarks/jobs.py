"""What the download benchmark runs, each in a process tree of its own: our stage, and the limit.

    python -m benchmarks.jobs ours|limit OPTIONS.json

`ours` is the real engine: a plan of one `download` on a list, two workers, default limits and manners. `limit` is what no
fetcher can beat: the same bytes from one file, decoded, resized and encoded on all cores, nothing fetched and nothing kept.
The last line printed is a JSON object with `good`, the number of images made; where it has `cpu_s` and `wall_s`, they count.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmdata.media import Resize, transcode

WORKERS = os.cpu_count() or 1


def ours(options: dict[str, Any]) -> dict[str, float]:
    """Run the plan; `stage` holds the fields of `download`."""
    from mmdata.engine import Runner
    from mmdata.executors import open_executor
    from mmdata.plan import Plan
    from mmdata.stages.download import Download
    from mmdata.stages.sources import Catalog

    source = Catalog(file=options["catalog"], entry="web", partition_rows=options["partition_rows"])
    plan = Plan(name="bench", source=(source,), stages=(Download(**options["stage"]),))
    executor = open_executor("processes", options.get("workers", WORKERS))
    try:
        result = Runner(plan, options["run_dir"], tuple(options["allow"])).execute(executor, quiet=True)
    finally:
        executor.close()
    return {"good": result.funnel["kept"]}


def limit(options: dict[str, Any]) -> dict[str, float]:
    """Make every image of a set, in one process a core; tell the CPU and wall time of that alone, without imports."""
    with get_context("fork").Pool(WORKERS) as pool:
        pool.map(_make_part, [(options, part, 8) for part in range(WORKERS)])  # codecs and tables are loaded
        parts = pool.map(_make_part, [(options, part, None) for part in range(WORKERS)], chunksize=1)
    good, cpu_s, wall_s = zip(*parts, strict=True)
    return {"good": sum(good), "cpu_s": sum(cpu_s), "wall_s": max(wall_s)}


def _make_part(job: tuple[dict[str, Any], int, int | None]) -> tuple[int, float, float]:
    options, part, most = job
    images, resize = Path(options["images"]), Resize(**options["resize"])
    table = pq.read_table(images.with_suffix(".parquet")).to_pydict()
    spans = list(zip(table["offset"], table["size"], strict=True))[part:most:WORKERS]
    data = images.with_suffix(".bin").read_bytes()
    cpu, wall = time.process_time(), time.monotonic()
    for offset, size in spans:
        transcode(data[offset : offset + size], resize)
    return len(spans), time.process_time() - cpu, time.monotonic() - wall


def main() -> None:
    jobs: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {"ours": ours, "limit": limit}
    found = jobs[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
