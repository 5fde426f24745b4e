"""Scoring beside clip-retrieval's inference, and beside what the machine can do at best, from the tars of a real download.

    python -m benchmarks.score [--quick] [--json FILE] [--device cuda] [MODEL...]

What is compared, and with what, is said in `NOTES` and on the result page.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import HERE, Result, peer_python, publish, summary
from benchmarks.images import make_sets
from benchmarks.loader_data import CACHE, DEMO
from benchmarks.score_jobs import plan_of
from benchmarks.web import serving
from mmdata.engine import Runner
from mmdata.executors import open_executor
from mmdata.models import TINY_CLIP_FOLDER

TIMEOUT_S = 1200
PARTITIONS = 4  # the first opens the model and does not count
IMAGES = 600
ROWS = {"mmdata-tiny": 1024, "cpu": 256, "cuda": 16_384}  # multiples of the batch in each partition
NAMED = {"ViT-B-32": 11, "ViT-L-14": 13}  # with random weights, of these seeds
NOTES = """\
The unit is milliseconds of wall time an image (`_cpu`: of CPU time, which other work on the machine does not lengthen as much);
lower is better. Pairs of the small set (256 px, encoded by our own download, captions of the demo; 1,024 for the small model, 256
for the others on a CPU) lie in payload tars of a run whose download is done. *Ours* is the real engine: a plan with `clip_score`
added, one worker; the partitions after the first, which opens the model. It reads ranges of the tars, compares each payload's
SHA-256, decodes, prepares, cuts texts into tokens, runs both towers, and writes columns. Where the machine is not idle, as when
this page was made, `_cpu` is the line that counts.

On a CPU everything is held to one core (`taskset`), one thread of torch. The *limit* is the sum of the CPU time that its parts
take alone, from memory, each in a loop of its own: decoding, preparing, tokens, and both towers by open_clip's own functions on
batches that are full. On a GPU the limit is the slower of the bare forward, and of decoding and preparing on all cores.

*clip-retrieval* {peer} reads the same tars by its own classes (`WebdatasetReader`, `ClipMapper`, `NumpyWriter`, `Runner`), the
same model in the same batches of 32, with the number of loader processes that is best of 0, 1 and 2; from its first batch to the
last file written, without loading the model. It has neither checksums nor a record of what it did. Its environment has torch
{peer_torch}, ours {torch}.

`mmdata-tiny` is the small CLIP that ships (EfficientNet-Lite0 at 128 px); the others have random weights, which take as long as
trained ones. bf16 is chosen where the processor has it: these numbers are in {dtype}.
{parts}
"""


@dataclass(frozen=True)
class Bench:
    """A downloaded run, and how it is scored."""

    home: Path
    run_dir: Path
    catalog: Path
    rows: int
    device: str

    def options(self, model: dict[str, Any], run_dir: Path) -> dict[str, Any]:
        """Return what a job is told."""
        cores = os.cpu_count() or 1
        return {
            "catalog": str(self.catalog), "partition_rows": self.rows // PARTITIONS, "run_dir": str(run_dir), "model": model,
            "device": self.device, "threads": cores if self.device == "cuda" else 1, "limit_images": self.rows // 2,
        }  # fmt: skip

    def job(self, what: str, model: dict[str, Any]) -> dict[str, Any]:
        """Run a job over a copy of the run, in a process of its own; return what it printed."""
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            copy = Path(folder) / "run"
            shutil.copytree(self.run_dir, copy, copy_function=os.link, symlinks=True)
            options = Path(folder) / "options.json"
            options.write_text(json.dumps(self.options(model, copy)), encoding="utf-8")
            return self.printed([sys.executable, "-m", "benchmarks.score_jobs", what, str(options)])

    def peer(self, model: dict[str, Any], workers: int) -> dict[str, Any]:
        """Run clip-retrieval over the payload's tars."""
        tars = sorted(str(path) for path in self.run_dir.glob("payload/*/download/*.tar"))
        name, weights = model.get("model", str(TINY_CLIP_FOLDER)), model.get("weights", "")
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            options = Path(folder) / "options.json"
            facts = {"tars": tars, "model": name, "weights": weights, "batch": 32, "workers": workers, "out": f"{folder}/out"}
            options.write_text(json.dumps(facts), encoding="utf-8")
            script = str(HERE / "peers/score_clip_retrieval.py")
            return self.printed([str(peer_python("clip-retrieval")), script, str(options)])

    def printed(self, command: list[str]) -> dict[str, Any]:
        """Run a command, on one core unless a GPU does the work; return the JSON that it printed last."""
        held = [] if self.device == "cuda" else ["taskset", "-c", "0"]
        done = subprocess.run([*held, *command], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if done.returncode:
            raise ValueError(done.stderr.strip()[-600:])
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def make_bench(rows: int, device: str) -> Bench:
    """Download the images into a run folder, unless it is there."""
    home = CACHE / f"score-{rows}"
    catalog = home / "catalog.yaml"
    if not (home / ".done").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        images = make_sets(CACHE, IMAGES) / "small"
        with serving(images) as web:
            lines = DEMO.read_text(encoding="utf-8").splitlines()
            captions = [text for line in lines if (text := json.loads(line)["text"]) and text.strip()]
            table = {
                "url": [web.url(row, IMAGES) for row in range(rows)],
                "text": [captions[row % len(captions)] for row in range(rows)],
            }
            pq.write_table(pa.table(table), home / "list.parquet")
            catalog.write_text("entries:\n  web: {files: [list.parquet]}\n", encoding="utf-8")
            bench = Bench(home, home / "run", catalog, rows, device)
            executor = open_executor("processes", 2)
            try:
                plan = plan_of(bench.options({}, bench.run_dir), scored=False)
                Runner(plan, str(bench.run_dir), tuple(web.allow())).execute(executor, quiet=True)
            finally:
                executor.close()
        (home / ".done").touch()
    return Bench(home, home / "run", catalog, rows, device)


def weights_of(name: str) -> dict[str, Any]:
    """Return a model as a plan names it; weights of a large one are drawn once."""
    if name not in NAMED:
        return {}
    path = CACHE / f"{name}-random.pt"
    if not path.exists():
        import open_clip
        import torch

        torch.manual_seed(NAMED[name])
        torch.save(open_clip.create_model(name).state_dict(), path)
    return {"model": name, "weights": str(path)}


def model_lines(bench: Bench, name: str, runs: int) -> tuple[list[Result], dict[str, Any], dict[str, Any]]:
    """Run ours, the limit and the peer in turn; return the lines, the last limit's parts, and the peer's facts."""
    model = weights_of(name) | ({"batch": 256} if bench.device == "cuda" else {})
    best: int | None = None
    facts: dict[str, Any] = {}
    error = None
    try:
        tried = {workers: bench.peer(model, workers)["seconds"] for workers in ((0, 1, 2) if runs > 1 else (0,))}
        best = min(tried, key=tried.__getitem__)
    except (subprocess.SubprocessError, OSError, ValueError) as problem:
        error = f"{type(problem).__name__}: {getattr(problem, 'stderr', '') or problem}".strip()[-400:]
        print(f"clip-retrieval: {error}", file=sys.stderr)
    mine, limits, theirs = [], [], []
    for _ in range(runs):
        mine.append(bench.job("ours", model))
        limits.append(bench.job("limit", model))
        if best is not None:
            theirs.append(facts := bench.peer(model, best))
    label = None if best is None else f"{facts['version']} ({best} workers)"
    lines = []
    for end, figure in (("", "seconds"), *((("_cpu", "cpu"),) if bench.device == "cpu" else ())):
        sides = ([1e3 * run[what] for run in side] for side, what in ((mine, figure), (theirs, figure), (limits, "seconds")))
        mine_ms, theirs_ms, limit_ms = sides
        lines.append(summary(f"{name}{end}", (mine_ms, theirs_ms, limit_ms), ("clip-retrieval", label), "ms", error))
    return lines, limits[-1], facts


def told(name: str, parts: dict[str, Any]) -> str:
    """Say what the limit consists of."""
    names = [part for part in ("decode", "prepare", "tokens", "loading", "forward") if part in parts]
    return f"`{name}`: " + ", ".join(f"{part} {parts[part] * 1e3:.2f} ms" for part in names) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of fewer images; never committed")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: mmdata-tiny ViT-B-32, and ViT-L-14 on a GPU")
    options = parser.parse_args()
    import torch

    chosen = options.models or ["mmdata-tiny", "ViT-B-32", *(["ViT-L-14"] if options.device == "cuda" else [])]
    runs = 1 if options.quick else options.runs
    found: list[Result] = []
    lines: list[str] = []
    peer: dict[str, Any] = {}
    dtypes: set[str] = set()
    for name in chosen:
        rows = 256 if options.quick else ROWS.get(name if options.device == "cpu" else "", ROWS[options.device])
        some, parts, facts = model_lines(make_bench(rows, options.device), name, runs)
        found += some
        lines.append(told(name, parts))
        dtypes.add(str(parts["profile"]["dtype"]))
        peer |= facts
    words = {
        "peer": peer.get("version", "(not installed)"), "peer_torch": peer.get("torch", "-"),
        "torch": torch.__version__, "dtype": ", ".join(sorted(dtypes)), "parts": "\n" + " ".join(lines),
    }  # fmt: skip
    publish("score" if options.device == "cpu" else "score-gpu", found, options, NOTES.format(**words))


if __name__ == "__main__":
    main()
