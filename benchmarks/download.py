"""The download stage beside img2dataset: CPU and wall time a good image, on a web of 500 hosts with default manners.

    python -m benchmarks.download [--quick] [--json FILE] [--cache FOLDER] [--images N] [--runs N] [--cases NAME ...] [--sweep]

Each run is a process tree of its own, and all its CPU time counts, start and end included. Runs alternate. The web is
outside of every tree. `--sweep` tries numbers of processes and threads for the peer instead, and writes a page of them.
"""

import argparse
import compileall
import json
import math
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fidelity import Quality, fidelity
from benchmarks.harness import HERE, Result, publish, summary
from benchmarks.images import make_sets
from benchmarks.jobs import WORKERS
from benchmarks.measure import Cost, measure
from benchmarks.web import CLEAN, DIRTY, Bad, Web, serving
from mmdata.stages.download import Download

IMAGE_PX = 256
TIMEOUT_S = 240.0
PSNR_IMAGES = 500
# Of the peer, on two cores; `--sweep` tries others: processes, threads.
PEER_COUNTS = (2, 32)
RESIZE = {"image_size": IMAGE_PX, "resize_mode": "keep_ratio_largest", "encode_quality": 95}
HAS_DECODE = "decode" in Download.model_fields
NOTES = """
The unit is milliseconds of CPU time of the whole process tree a good image (`_wall`: of wall time); lower is better. `large`
has 512 to 1600 px on its longest side and is made to 256 px, `small` has 256 px already; 85 % JPEG, 8 % WebP, 7 % PNG.
Ours is a plan of one `download` stage on the real engine, two worker processes, default limits and manners (robots.txt, 4
connections and 0.25 s a host); the peer has neither robots.txt nor limits a host. Both make 256 px on the longest side
(`keep_ratio_largest`), JPEG of quality 95, SHA-256 of what came, EXIF, and webdataset tars. The limit decodes, resizes and
encodes the same bytes on all cores, with nothing fetched, stored or hashed. PSNR is to a full decode and a Lanczos resize.
`dirty` has 10 % dead rows (connection refused, 404, resets) and 5 % tarpits at 1 byte/s; its unit is milliseconds of wall
time a good row until the last good row was served, and its limit is our own clean run by the same measure; `dirty_wall` is
until the end.
"""


SWEEP = """# download: the peer's setting

Made by `python -m benchmarks.download --sweep`: img2dataset {peer} on `large`, {rows} rows, one run each; milliseconds a good
image. The benchmark runs it with the setting of the least wall time.

| processes_count | thread_count | CPU ms | wall ms | good rows |
|---|---|---|---|---|"""
CURVE = (
    "Ours with more and more bad rows, once each; `rate` is the rate of good rows beside that of a clean list.", "",
    "| bad rows | good rows | ms a good row until the last was served | rate | CPU ms a good row | end, s |",
    "|---|---|---|---|---|---|",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of one side."""

    case: str
    who: str
    good: int
    wall_s: float
    cpu_s: float
    ended: bool
    served_s: float
    quality: Quality | None = None

    @property
    def cpu_ms(self) -> float:
        """CPU time a good image, in milliseconds."""
        return self.cpu_s / self.good * 1e3

    @property
    def wall_ms(self) -> float:
        """Wall time a good image, in milliseconds."""
        return self.wall_s / self.good * 1e3

    @property
    def served_ms(self) -> float:
        """Wall time a good image, from the start until the last good one was served, in milliseconds."""
        return self.served_s / self.good * 1e3


@dataclass(frozen=True)
class Bench:
    """A web, the images that it serves, and a list of urls; `home` is scratch."""

    web: Web
    images: Path
    num_rows: int
    home: Path

    def list_of(self, bad: Bad) -> Path:
        """Write the list of urls with a caption each, and the catalog beside it; return the list."""
        folder = self.home / f"dead-{bad.dead}-tarpits-{bad.tarpits}"
        path = folder / "list.parquet"
        if not path.exists():
            folder.mkdir(parents=True)
            num = pq.read_metadata(self.images.with_suffix(".parquet")).num_rows
            urls = [self.web.url(row, num, bad) for row in range(self.num_rows)]
            pq.write_table(pa.table({"url": urls, "text": [f"picture number {row}" for row in range(self.num_rows)]}), path)
            (folder / "catalog.yaml").write_text("entries:\n  web: {files: [list.parquet]}\n", encoding="utf-8")
        return path

    def ours(self, case: str, *, bad: Bad = CLEAN, decode: str = "exact", psnr: bool = False) -> Run:
        """Run our stage once."""
        stage = RESIZE | ({"decode": decode} if HAS_DECODE else {})
        source = self.list_of(bad).with_name("catalog.yaml")
        with tempfile.TemporaryDirectory(dir=self.home) as out:
            options = {
                "catalog": str(source), "partition_rows": math.ceil(self.num_rows / WORKERS), "stage": stage,
                "run_dir": f"{out}/run", "allow": self.web.allow(),
            }  # fmt: skip
            return self._run(case, "ours", ["-m", "benchmarks.jobs", "ours"], options, Path(out) if psnr else None)

    def peer(self, case: str, *, bad: Bad = CLEAN, counts: tuple[int, int] = PEER_COUNTS, psnr: bool = False) -> Run:
        """Run img2dataset once."""
        with tempfile.TemporaryDirectory(dir=self.home) as out:
            options = RESIZE | {
                "url_list": str(self.list_of(bad)), "input_format": "parquet", "url_col": "url", "caption_col": "text",
                "output_format": "webdataset", "output_folder": f"{out}/images", "processes_count": counts[0],
                "thread_count": counts[1], "number_sample_per_shard": math.ceil(self.num_rows / counts[0]),
                "resize_only_if_bigger": True, "timeout": 10, "enable_wandb": False,
            }  # fmt: skip
            command = [str(HERE / "peers/img2dataset_download.py")]
            return self._run(case, "img2dataset", command, options, Path(out) if psnr else None)

    def limit(self, case: str, decode: str = "exact") -> Run:
        """Decode, resize and encode the same bytes once."""
        options = {"images": str(self.images), "resize": RESIZE | ({"decode": decode} if HAS_DECODE else {})}
        return self._run(case, "limit", ["-m", "benchmarks.jobs", "limit"], options, None)

    def _run(self, case: str, who: str, command: list[str], options: dict[str, Any], out: Path | None) -> Run:
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=self.home) as file:
            json.dump(options, file)
            file.flush()
            self.web.stats()
            cost, printed = measure([sys.executable, *command, file.name], TIMEOUT_S)
        stats = self.web.stats()
        run = _run_of(case, who, cost, printed, stats)
        quality = fidelity(out, self.images, PSNR_IMAGES) if out is not None and cost.ended else None
        run = replace(run, quality=quality)
        sys.stderr.write(
            f"  {case:<12}{who:<12}{run.good} good, {run.cpu_ms:.3f} ms CPU, {run.wall_ms:.3f} ms wall{_told(quality)}\n"
        )
        return run


def _told(quality: Quality | None) -> str:
    return "" if quality is None else f", PSNR {quality.mean_db:.2f} dB, p10 {quality.p10_db:.2f} dB, {quality.mean_kib:.1f} KiB"


def _run_of(case: str, who: str, cost: Cost, printed: str, stats: dict[str, float]) -> Run:
    told = json.loads(printed.strip().splitlines()[-1]) if cost.ended else {}
    good = int(told.get("good", stats.get("good", 0)))
    if not good:
        raise RuntimeError(f"{case}: {who} made no image; the web counts {stats}")
    wall_s, cpu_s = told.get("wall_s", cost.wall_s), told.get("cpu_s", cost.cpu_s)
    return Run(case, who, good, wall_s, cpu_s, cost.ended, stats["last_good"] - cost.started)


def large(bench: Bench, runs: int) -> list[Run]:
    """Run ours exact and fast, each with its limit, and the peer in turn."""
    found = []
    for turn in range(runs):
        first = turn == 0
        for decode in ("exact", "fast") if HAS_DECODE else ("exact",):
            found.append(bench.ours(f"large_{decode}", decode=decode, psnr=first))
            found.append(bench.limit(f"large_{decode}", decode))
        found.append(bench.peer("large", psnr=first))
    return found


def small(bench: Bench, runs: int) -> list[Run]:
    """Run ours, the peer and the limit in turn."""
    found = []
    for turn in range(runs):
        found += [bench.ours("small", psnr=turn == 0), bench.peer("small", psnr=turn == 0), bench.limit("small")]
    return found


def dirty(bench: Bench, runs: int) -> list[Run]:
    """Run ours clean and dirty in turn; the peer once, for it does not end by itself."""
    found = []
    for _ in range(runs):
        found += [bench.ours("clean"), bench.ours("dirty", bad=DIRTY)]
    return [*found, bench.peer("dirty", bad=DIRTY)]


def curve(bench: Bench, runs: int) -> list[Run]:
    """Run ours with more and more bad rows; once, whatever the number of runs."""
    shares = [Bad(dead=dead) for dead in (0, 1, 5, 10, 25, 50)] + [Bad(tarpits=tarpits) for tarpits in (1, 5, 20)]
    return [bench.ours(f"{bad.dead} % dead, {bad.tarpits} % tarpits", bad=bad) for bad in shares]


def sweep(bench: Bench) -> None:
    """Write a page of what the peer costs on `large` by numbers of processes and threads, one run each."""
    lines = [SWEEP.format(rows=bench.num_rows, peer=version("img2dataset"))]
    for processes in (1, 2, 4):
        for threads in (8, 16, 32, 64):
            run = bench.peer("sweep", counts=(processes, threads))
            lines.append(f"| {processes} | {threads} | {run.cpu_ms:.2f} | {run.wall_ms:.2f} | {run.good} |")
    (HERE / "results/download-peer.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


CASES = {"large": large, "small": small, "dirty": dirty, "curve": curve}


def results(found: list[Run]) -> list[Result]:
    """Make the lines of the page from all runs."""
    lines: list[Result] = []
    for name, other in (("large_exact", "large"), ("large_fast", "large"), ("small", "small")):
        mine, theirs, limits = _of(found, name, "ours"), _of(found, other, "img2dataset"), _of(found, name, "limit")
        if mine:
            lines += [_line(name, (mine, theirs, limits), "cpu_ms"), _line(f"{name}_wall", (mine, theirs, limits), "wall_ms")]
    mine, theirs, clean = (
        _of(found, case, who) for case, who in (("dirty", "ours"), ("dirty", "img2dataset"), ("clean", "ours"))
    )
    if mine:
        lines += [_line("dirty", (mine, theirs, clean), "served_ms"), _line("dirty_wall", (mine, theirs, clean), "wall_ms")]
        lines.append(_line("dirty_cpu", (mine, theirs, clean), "cpu_ms"))
    return lines


def _of(found: list[Run], case: str, who: str) -> list[Run]:
    return [run for run in found if run.case == case and run.who == who]


def _line(name: str, runs: tuple[list[Run], list[Run], list[Run]], figure: str) -> Result:
    mine, theirs, limits = ([float(getattr(run, figure)) for run in side] for side in runs)
    peer = ("img2dataset", version("img2dataset")) if theirs else (None, None)
    return summary(name, (mine, theirs, limits), peer, "ms")


def notes(found: list[Run], options: argparse.Namespace) -> str:
    """Return what stands under the table: how it was measured, and how good the images are."""
    times = f"{options.rows / options.images:g}"
    head = f"{options.images} images, each under {times} urls: {options.rows} rows a run, {options.runs} runs. {_peer_note()}"
    lines = [head, "", "| images of | PSNR mean | PSNR p10 | file, mean |", "|---|---|---|---|"]
    judged = [(run, run.quality) for run in found if run.quality is not None]
    lines += [f"| {run.case}, {run.who} | {q.mean_db:.2f} dB | {q.p10_db:.2f} dB | {q.mean_kib:.1f} KiB |" for run, q in judged]
    curved = [run for run in found if run.case.endswith("tarpits")]
    if curved:
        lines += ["", *CURVE]
        clean = curved[0]
        lines += [
            f"| {run.case} | {run.good} | {run.served_ms:.3f} | {clean.served_ms / run.served_ms:.2f} | {run.cpu_ms:.3f} |"
            f" {run.wall_s:.0f} |" for run in curved
        ]  # fmt: skip
    lines += [
        f"\n{run.case}: {run.who} had not ended after {TIMEOUT_S:.0f} s and was stopped; its good rows are those served by then."
        for run in found if not run.ended
    ]  # fmt: skip
    return NOTES + "\n" + "\n".join(lines)


def _peer_note() -> str:
    counts = f"processes_count {PEER_COUNTS[0]} and thread_count {PEER_COUNTS[1]} (download-peer.md has others)"
    return f"The peer runs with {counts}, its other options at their defaults (timeout 10)."


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of 600 images; never committed")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache/mmdata-bench", help="where packages and images are kept"
    )
    parser.add_argument("--images", type=int, default=3000, help="how many different images")
    parser.add_argument("--rows", type=int, help="how many rows a run; default: each image under three urls")
    parser.add_argument("--runs", type=int, default=5, help="how many alternating runs")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="which cases")
    parser.add_argument("--sweep", action="store_true", help="only try the peer's counts of processes and threads")
    options = parser.parse_args()
    if options.quick:
        options.images, options.runs = 600, 1
    options.rows = options.rows or options.images * (1 if options.quick else 3)
    return options


def main() -> None:
    options = _arguments()
    compileall.compile_dir(HERE.parent / "mmdata", quiet=1)  # as an installer does, and did for the peer
    home = make_sets(options.cache, options.images)
    found: list[Run] = []
    for name in options.cases:
        images = home / ("small" if name == "small" else "large")
        scratch = Path(tempfile.mkdtemp(dir=options.cache))
        try:
            with serving(images) as web:
                bench = Bench(web, images, options.rows, scratch)
                if options.sweep:
                    sweep(bench)
                    return
                found += CASES[name](bench, options.runs)
        finally:
            shutil.rmtree(scratch)
    publish("download", results(found), options, notes(found, options))
    if not options.quick:
        text = "".join(json.dumps(asdict(run)) + "\n" for run in found)
        (HERE / "results/download.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
