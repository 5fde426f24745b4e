"""What the scoring benchmark runs, each in a process of its own: our stage, and the limit.

    python -m benchmarks.score_jobs ours|limit OPTIONS.json

`ours` is the real engine: `clip_score` added to a run whose download is done, so that it reads payload tars. The first
partition opens the model and does not count. `limit` takes the same bytes from memory: decode, prepare, and the bare forward
of both towers, each in a loop of its own, with nothing read, checked or kept. The last line printed is a JSON object.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mmdata.engine import Runner, RunStore
from mmdata.engine.task import Task, TaskReport
from mmdata.executors import InlineExecutor
from mmdata.media import decode
from mmdata.models import OpenClip, ScorerSpec
from mmdata.models.openclip import OpenClipTowers
from mmdata.plan import Plan
from mmdata.report.fates import fates
from mmdata.shards.payloads import read_payloads
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.download import Download
from mmdata.stages.sources import Catalog
from mmdata.stages.verbs import Resources

T = TypeVar("T")
DOWNLOAD = Download(image_size=256)


def plan_of(options: dict[str, Any], *, scored: bool) -> Plan:
    """Return the plan of the download, with the score or without."""
    source = Catalog(file=options["catalog"], entry="web", partition_rows=options["partition_rows"])
    gpu = options["device"] == "cuda"
    resources = Resources(cpus=options["threads"], gpus=1.0 if gpu else 0.0, memory_mib=16_384, row_s=60)
    stage = ClipScore(scorer=ScorerSpec(open_clip=OpenClip(**options["model"])), resources=resources)
    return Plan(name="score-bench", source=(source,), stages=(DOWNLOAD, stage) if scored else (DOWNLOAD,))


class Clocked(InlineExecutor):
    """Runs tasks here, and notes the wall and CPU seconds of each that scores."""

    def __init__(self) -> None:
        self.took: list[tuple[float, float]] = []

    def submit(self, task: Task) -> "Future[TaskReport]":
        wall, cpu = time.perf_counter(), time.process_time()
        done = super().submit(task)
        if task.label == "clip_score":
            self.took.append((time.perf_counter() - wall, time.process_time() - cpu))
        return done


def ours(options: dict[str, Any]) -> dict[str, Any]:
    """Run the plan; return the wall and CPU seconds an image of all partitions but the first."""
    plan, executor = plan_of(options, scored=True), Clocked()
    result = Runner(plan, options["run_dir"]).execute(executor, quiet=True)
    images = sum(record["kept"] for record in _records(RunStore(options["run_dir"]), result.generation)[1:])
    seconds, cpu = (sum(took) / images for took in zip(*executor.took[1:], strict=True))
    return {"seconds": seconds, "cpu": cpu, "images": images}


def _records(run: RunStore, number: int) -> list[dict[str, Any]]:
    found = [run.record(head) for head in run.manifest(number)["heads"]]
    return [record for record in found if record is not None]


def limit(options: dict[str, Any]) -> dict[str, Any]:
    """Return CPU seconds an image of decoding, preparing and both towers (of a GPU: wall seconds of its forward)."""
    run = RunStore(options["run_dir"])
    rows = [row for row in fates(run, ["payload", "text"]).to_pylist() if row["reason"] is None][: options["limit_images"]]
    datas = [data for _, data in sorted(read_payloads(run.store, [row["payload"] for row in rows]))]
    texts = [row["text"] for row in rows]
    spec = OpenClip(**options["model"])
    gpu = options["device"] == "cuda"
    with spec.open(options["device"], options["threads"]) as towers:
        torch.set_num_threads(options["threads"])
        cut = open_clip_tokenizer(towers)
        _forward(towers, [towers.prepare(decode(data, trusted=True)) for data in datas[: spec.batch]], cut(texts[: spec.batch]))
        pixels, decoding = _timed(lambda: [decode(data, trusted=True) for data in datas])
        prepared, preparing = _timed(lambda: [towers.prepare(image) for image in pixels])
        ids, cutting = _timed(lambda: cut(texts))
        clock = time.perf_counter if gpu else time.process_time
        num = len(prepared) // spec.batch * spec.batch
        started = clock()
        for first in range(0, num, spec.batch):
            _forward(towers, prepared[first : first + spec.batch], ids[first : first + spec.batch])
        forward = (clock() - started) / num
        if gpu:
            loading = _loading(towers, datas)
            return {"seconds": max(loading, forward), "loading": loading, "forward": forward, "profile": towers.profile}
    parts = {
        "decode": decoding / len(datas),
        "prepare": preparing / len(datas),
        "tokens": cutting / len(datas),
        "forward": forward,
    }
    return {"seconds": sum(parts.values()), **parts, "profile": towers.profile}


def open_clip_tokenizer(towers: OpenClipTowers) -> Callable[[list[str]], np.ndarray]:
    """Return the model's tokenizer without our memory of what was cut before."""
    return lambda texts: np.asarray(towers.tokens.tokenizer(texts))


@torch.inference_mode()
def _forward(towers: OpenClipTowers, prepared: list[np.ndarray], ids: np.ndarray) -> None:
    """Run both towers over a full batch, by open_clip's own functions; the pixels are made floats as its transform does it."""
    pixels = towers.pixels(np.stack(prepared))
    left = towers.model.encode_image(pixels, normalize=True)
    right = towers.model.encode_text(torch.from_numpy(ids).to(pixels.device), normalize=True)
    (left * right).sum(-1).cpu()


def _loading(towers: OpenClipTowers, datas: list[bytes]) -> float:
    """Return the wall seconds an image of decoding and preparing on all cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        started = time.perf_counter()
        list(pool.map(lambda data: towers.prepare(decode(data, trusted=True)), datas))
        return (time.perf_counter() - started) / len(datas)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def main() -> None:
    jobs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"ours": ours, "limit": limit}
    found = jobs[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
