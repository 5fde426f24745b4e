"""How fast a shard is written, hashes on, beside webdataset's ShardWriter on the same samples.

    python -m benchmarks.loader_write [--samples 10000] [--runs 5] [--folder FOLDER] [--json FILE] [--quick]

Ours is what the sink's tasks do with media at hand: the tar, an xxh3 a sample, the index, and the SHA-256 of the file. The
peer is told the time that ours writes (0), so that the files are the same; that is checked. Nobody calls fsync. Beside them
stand a plain write of the same bytes, and their SHA-256 alone on one core. All in turn, medians.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import summary
from mmdata.demo.server import DATA
from mmdata.shards.units import ShardFile

CHUNK = 1 << 20
OURS, THEIRS = "ours.tar", "peer-%05d.tar"
TMPFS = Path("/dev/shm")
Record = dict[str, Any]


def make_samples(num: int) -> list[dict[str, bytes]]:
    """Return pictures of the demo's set of about 20 KB, each with a caption and facts; no two share memory."""
    files = sorted(path for path in (DATA / "images").glob("*.jpg") if 14_000 < path.stat().st_size < 60_000)
    pictures = [path.read_bytes() for path in files]
    samples = []
    for number in range(num):
        caption = f"picture {number} of a set that is large enough to be measured"
        facts: dict[str, object] = {
            "sample_id": f"{number:032x}", "source": "demo", "url": f"http://example.org/{number:08d}.jpg", "caption": caption,
            "width": 256, "height": 256, "clip_score": 0.25, "sha256": f"{number:064x}",
        }  # fmt: skip
        jpg = bytearray(pictures[number % len(pictures)])
        samples.append({"jpg": bytes(jpg), "txt": caption.encode(), "json": json.dumps(facts).encode()})
    return samples


def write(samples: list[dict[str, bytes]], folder: Path, runs: int) -> list[dict[str, object]]:
    """Write samples of `jpg`, `txt` and `json` into a folder, ours and the peer's in turn; return a result a limit."""
    ways = _ways(samples, folder)
    ways["ours"]()
    ways["peer"]()
    if (folder / OURS).read_bytes() != (folder / (THEIRS % 0)).read_bytes():
        raise AssertionError("the two files differ")
    times = _in_turn(ways, folder, runs)
    name = f"{len(samples):,} samples"
    peer = ("webdataset ShardWriter", importlib.metadata.version("webdataset"))
    limits = {"plain write": "write", "SHA-256 alone": "sha256"}
    return [
        asdict(summary(f"{name}; {title}", (times["ours"], times["peer"], times[limit]), peer, "s"))
        for title, limit in limits.items()
    ]


def _ways(samples: list[dict[str, bytes]], folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; the two limits want what ours has written."""
    from webdataset import ShardWriter

    records = [_record(number, sample) for number, sample in enumerate(samples)]
    media = [[sample["jpg"]] for sample in samples]
    keyed = [{"__key__": f"{0:05d}{number:06d}", **sample} for number, sample in enumerate(samples)]

    def ours() -> None:
        with ShardFile(folder / OURS, 0) as shard:
            for record, data in zip(records, media, strict=True):
                shard.add(record, data)
        shard.arrays()

    def peer() -> None:
        with ShardWriter(str(folder / THEIRS), maxcount=len(keyed) + 1, maxsize=1 << 62, verbose=0, mtime=0) as writer:
            for sample in keyed:
                writer.write(sample)

    ours()
    content = (folder / OURS).read_bytes()

    def plain() -> None:
        with (folder / "plain.tar").open("wb", buffering=0) as file:
            for start in range(0, len(content), CHUNK):
                file.write(memoryview(content)[start : start + CHUNK])

    return {"ours": ours, "peer": peer, "write": plain, "sha256": lambda: hashlib.sha256(content).digest()}


def _record(number: int, sample: dict[str, bytes]) -> Record:
    """Return what a task of the sink knows of a sample."""
    block = {"kind": "image", "text": sample["txt"].decode(), "payload": {}, "position": 0, "width": 256, "height": 256}
    return {"sample_id": f"{number:032x}", "document": False, "json": sample["json"].decode(), "blocks": [block]}


def _in_turn(ways: dict[str, Callable[[], object]], folder: Path, runs: int) -> dict[str, list[float]]:
    """Time each way `runs` times, one after the other; what was written before is gone, and its writing over."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            for path in folder.glob("*.tar"):
                path.unlink()
            os.sync()
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Writing a shard, beside webdataset's ShardWriter.")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="a folder on a disk, by default a temporary one")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples, two runs")
    options = parser.parse_args()
    samples = make_samples(options.samples // 10 if options.quick else options.samples)
    runs = 2 if options.quick else options.runs
    results = []
    for title, home in (("tmpfs", TMPFS), ("disk", options.folder)):
        if home is None or home.is_dir():
            with tempfile.TemporaryDirectory(dir=home) as folder:
                sys.stdout.write(f"{title}:\n")
                results += [{**result, "where": title} for result in write(samples, Path(folder), runs)]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
