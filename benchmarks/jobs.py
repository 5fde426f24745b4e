"""What the download benchmark runs, each in a process tree of its own: our stage, and the limit.

    python -m benchmarks.jobs ours|limit OPTIONS.json

`ours` is the real engine: a plan of one `download` on a list, two workers, default limits and manners. `limit` is what no
fetcher can beat: the same bytes from one file, decoded, resized and encoded on all cores, nothing fetched and nothing kept.
The last line printed is a JSON object with `good`, the number of images made.
"""

import json
import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmdata.media import Resize, transcode

WORKERS = os.cpu_count() or 1


def ours(options: dict[str, Any]) -> int:
    """Run the plan; `stage` holds the fields of `download`."""
    from mmdata.engine import Runner
    from mmdata.executors import open_executor
    from mmdata.plan import Plan
    from mmdata.stages.download import Download
    from mmdata.stages.sources import Catalog

    source = Catalog(file=options["catalog"], entry="web", partition_rows=options["partition_rows"])
    plan = Plan(name="bench", source=(source,), stages=(Download(**options["stage"]),))
    executor = open_executor("processes", WORKERS)
    try:
        result = Runner(plan, options["run_dir"], tuple(options["allow"])).execute(executor, quiet=True)
    finally:
        executor.close()
    return int(result.funnel["kept"])


def limit(options: dict[str, Any]) -> int:
    """Make every image of a set, in one process a core."""
    with get_context("fork").Pool(WORKERS) as pool:
        return sum(pool.starmap(_make_part, [(options, part) for part in range(WORKERS)]))


def _make_part(options: dict[str, Any], part: int) -> int:
    images, resize = Path(options["images"]), Resize(**options["resize"])
    table = pq.read_table(images.with_suffix(".parquet")).to_pydict()
    spans = list(zip(table["offset"], table["size"], strict=True))[part::WORKERS]
    with images.with_suffix(".bin").open("rb") as file:
        for offset, size in spans:
            file.seek(offset)
            transcode(file.read(size), resize)
    return len(spans)


def main() -> None:
    jobs: dict[str, Callable[[dict[str, Any]], int]] = {"ours": ours, "limit": limit}
    good = jobs[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    sys.stdout.write("\n" + json.dumps({"good": good}) + "\n")


if __name__ == "__main__":
    main()
