"""What a loader of two large corpora holds and takes: a process of its own, so that nothing else is counted.

    python -m benchmarks.loader_probe CORPUS FIRST SECOND

FIRST and SECOND are made by `benchmarks.loader_data.make_large`; the samples that the first batches draw are written into
them before the clock starts. Prints JSON: seconds, MiB, open files.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.loader_data import fill
from mmdata.loader import Loader, Options
from mmdata.shards import open_corpus

BATCHES = 60
OPTIONS = Options(batch_size=32, threads=2, seed=3)


def resident() -> dict[str, float]:
    """Return this process's memory in MiB: all, its own, and its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "RssAnon", "VmHWM"))}
    return {"rss": found["VmRSS"], "own": found["RssAnon"], "peak": found["VmHWM"]}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make(first: str, second: str) -> Loader:  # type: ignore[type-arg]
    return Loader({"first": first, "second": second}, {"first": 0.7, "second": 0.3}, OPTIONS)


def prepare(corpus: str, first: str, second: str) -> None:
    """Write the samples that the first batches, and what is read ahead of them, will draw."""
    loader = make(first, second)
    window = loader.plan.window(loader.plan.first)
    num = (BATCHES + 20) * OPTIONS.batch_size + OPTIONS.ahead
    corpora = [part.corpus for source in loader.sources for part in source.parts]
    for number, large in enumerate(corpora):
        fill(large, window.index_D[:num][window.corpus_D[:num] == number], open_corpus(corpus).raw(0))
    loader.close()


def main() -> None:
    corpus, first, second = sys.argv[1:]
    if os.fork() == 0:
        prepare(corpus, first, second)
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit("the samples could not be written")
    before = resident()
    started = time.perf_counter()
    loader = make(first, second)
    found: dict[str, float] = {"open_s": time.perf_counter() - started}
    num = sum(len(batch.items) for batch in islice(loader, BATCHES))
    found["batches_s"] = time.perf_counter() - started - found["open_s"]
    state = loader.state_dict()
    found |= {"state_s": float(np.median([timed(loader.state_dict) for _ in range(5)]))}
    found |= {"restore_s": timed(lambda: loader.restore(state)), "samples": num, "state_bytes": len(json.dumps(state))}
    fresh = make(first, second)
    found["restore_fresh_s"] = timed(lambda: fresh.restore(state))
    memory = resident()
    found |= {"files": len(list(Path("/proc/self/fd").iterdir())), "before_mib": before["rss"], **memory}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
