"""The loader beside webdataset, LitData, MosaicML Streaming, Energon and Grain, and beside what the machine can do at best.

    python -m benchmarks.loader [--quick] [--json FILE] [CASE...]

Same pixels, warm cache, 2 cores, verification on. What is compared, and with what, is said in `NOTES` and on the result page.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.harness import HERE, Result, peer_python, publish, summary
from benchmarks.loader_data import CACHE, IMAGES, linked, make_corpus, make_large, media, pairs, ranges
from benchmarks.loader_packing import ROW_TOKENS, RULES, of_corpus, ours, padding, synthetic
from benchmarks.loader_write import TMPFS, make_samples, write
from mmdata.loader import Loader, Options, Sample
from mmdata.shards import Corpus, open_corpus
from mmdata.shards.verify import verify

BATCH = 32
TIMEOUT_S = 300
Clock = Callable[[], float]
PEERS = ("webdataset", "litdata", "mosaicml-streaming", "megatron-energon", "grain")


@dataclass(frozen=True)
class Data:
    """The same samples as a corpus, as a corpus of strangers' images, and in the peers' formats under `peers/`."""

    home: Path
    corpus: str
    jail: str
    num: int

    def of(self, peer: str) -> str:
        """Return the folder that a peer reads."""
        return self.corpus if peer == "webdataset" else str(self.home / "peers" / peer)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    num: int = 10_000
    images: int = IMAGES
    raw_runs: int = 7
    decoded_runs: int = 3
    sweep: tuple[int, ...] = (1, 2, 3)
    lengths: int = 1_000_000
    shards: int = 1000
    indexed: int = 10_000_000


QUICK = Scale(num=3000, raw_runs=2, decoded_runs=1, sweep=(2,), lengths=100_000, shards=100, indexed=200_000)


def make_data(scale: Scale) -> Data:
    """Make the corpus, unless it is there."""
    home = CACHE / f"loader-{scale.num}"
    corpus, jail = home / "corpus", home / "jail"
    if not jail.is_dir():
        shutil.rmtree(home, ignore_errors=True)
        make_corpus(home, pairs(CACHE, scale.images), scale.num)
        linked(str(corpus), jail, trusted=False)
    return Data(home, str(corpus), str(jail), scale.num)


# Ours, and the limits


def read_all(corpus: str, options: Options, clock: Clock = time.perf_counter) -> float:
    """Return the microseconds a sample of a whole epoch, from asking for the first batch to having the last."""
    num = size = 0
    with Loader(corpus, options=options) as loader:
        started = clock()
        for batch in loader:
            for sample in batch.items:
                size += _held(sample) if options.decode else sum(map(len, sample.members.values()))
            num += len(batch.items)
        took = (clock() - started) / num * 1e6
    assert size > 0
    return took


def _held(sample: Sample) -> int:
    """Return the bytes of a decoded sample's pixels."""
    image = sample.blocks[0].image
    assert image is not None
    return image.nbytes


def plain_pread(corpus: str) -> float:
    """Return the CPU time in microseconds a sample of reading an epoch's ranges in the loader's order, with all files open."""
    opened = open_corpus(corpus)
    plan = Loader(opened, options=Options(epochs=1, threads=0)).plan
    window = plan.window(plan.first)
    order = list(ranges(opened, np.concatenate([window.index_D])))
    files = [os.open(Path(corpus) / name, os.O_RDONLY) for name in opened.shards]
    try:
        started = time.process_time()
        for shard, start, size in order:
            os.pread(files[shard], size, start)
        return (time.process_time() - started) / len(order) * 1e6
    finally:
        for file in files:
            os.close(file)


def pure_decoding(images: Sequence[bytes], threads: int) -> float:
    """Return the microseconds an image of decoding what lies in memory on so many threads, nothing kept."""

    def some(first: int) -> None:
        for data in images[first::threads]:
            simplejpeg.decode_jpeg(data, "RGB")

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(some, range(threads)))
        return (time.perf_counter() - started) / len(images) * 1e6


# The peers


def script(peer: str) -> str:
    """Return the script of a peer."""
    return str(HERE / "peers" / f"loader_{peer.replace('-', '_').removeprefix('megatron_')}.py")


def call(peer: str, *words: object) -> dict[str, Any]:
    """Run a peer's script in its own environment; return what it printed last. Raises SubprocessError."""
    command = [str(peer_python(peer)), script(peer), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return found


def prepared(data: Data, peer: str) -> str:
    """Return the folder that a peer reads, made by its own script when it is not there."""
    folder = Path(data.of(peer))
    if peer != "webdataset" and not (folder / ".done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        call(peer, "prepare", data.corpus, folder)
        (folder / ".done").touch()
    return str(folder)


def peer_run(data: Data, peer: str, case: str, workers: int, how: str = "own/list") -> tuple[float, str]:
    """Return a peer's microseconds a sample (CPU time in `raw`), and its version."""
    found = call(peer, case, prepared(data, peer), workers, how)
    if found["samples"] < data.num * 0.99:
        raise ValueError(f"{peer} gave {found['samples']} samples of {data.num}")
    return found["cpu" if case == "raw" else "seconds"] / found["samples"] * 1e6, found["version"]


@dataclass(frozen=True)
class Way:
    """A way to use a peer: worker processes (or threads), whose decoder, how a batch comes over."""

    workers: int
    how: str


def best_way(data: Data, peer: str, sweep: Iterable[int]) -> tuple[Way, str]:
    """Try two workers each way, then the best way with other numbers, once each; return the quickest, and what all took.

    Raises the first error when none worked.
    """
    found: dict[Way, float] = {}
    problems: list[Exception] = []

    def attempt(way: Way) -> None:
        try:
            found[way] = peer_run(data, peer, "decoded", way.workers, way.how)[0]
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            problems.append(error)

    for how in ("own/list", "own/flat", "same/list", "same/flat"):
        attempt(Way(2, how))
    if not found:
        raise problems[0]
    best = min(found, key=found.__getitem__)
    for workers in sweep:
        if workers != best.workers:
            attempt(Way(workers, best.how))
    told = ", ".join(f"{way.workers} {way.how} {took:.0f}" for way, took in sorted(found.items(), key=lambda item: item[1]))
    return min(found, key=found.__getitem__), told


def alternate(sides: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Run all sides in turn; one that fails is left out from then on, its error said."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    broken: set[str] = set()
    for _ in range(runs):
        for name, side in sides.items():
            if name in broken:
                continue
            try:
                found[name].append(side())
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                broken.add(name)
                print(f"{name}: {_told(error)}", file=sys.stderr)
    return found


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(getattr(error, 'stderr', '') or str(error)).strip()[-400:]}"


# The cases


def raw(data: Data, scale: Scale, peers: Sequence[str] = PEERS) -> list[Result]:
    """All members as bytes, without decoding."""
    one = Options(batch_size=BATCH, epochs=1, threads=0, decode=False)
    versions: dict[str, str] = {}

    def webdataset(buffer: int) -> float:
        took, versions["webdataset"] = peer_run(data, "webdataset", "raw", buffer)
        return took

    cpu = time.process_time

    def mine(**changes: Any) -> float:  # noqa: ANN401 - of Options
        return read_all(data.corpus, replace(one, **changes), cpu)

    sides: dict[str, Callable[[], float]] = {
        "ours": mine, "limit": lambda: plain_pread(data.corpus), "unverified": lambda: mine(verify=False),
        "in_order": lambda: mine(shuffle="none"), "two": lambda: read_all(data.corpus, replace(one, threads=2)),
        "wall": lambda: read_all(data.corpus, one),
    }  # fmt: skip
    if peers:
        sides |= {"plain": lambda: webdataset(0), "shuffled": lambda: webdataset(1000)}
    read_all(data.corpus, one)
    found = alternate(sides, scale.raw_runs)
    version = versions.get("webdataset")
    plain, shuffled, limit = found.get("plain", []), found.get("shuffled", []), found["limit"]
    return [
        summary("raw", (found["ours"], plain, limit), ("webdataset", version), "us"),
        summary("raw_beside_shuffle_1000", (found["ours"], shuffled, limit), ("webdataset shuffle(1000)", version), "us"),
        summary("raw_wall_time", (found["wall"], [], []), (None, None), "us"),
        summary("raw_wall_time_2_threads", (found["two"], [], []), (None, None), "us"),
        summary("raw_unverified", (found["unverified"], plain, limit), ("webdataset", version), "us"),
        summary("raw_unshuffled", (found["in_order"], plain, limit), ("webdataset", version), "us"),
    ]


def decoded(data: Data, scale: Scale, peers: Sequence[str] = PEERS) -> list[Result]:
    """RGB arrays in the consumer's hands, by both cores."""
    images = media(data.corpus)
    options = Options(batch_size=BATCH, epochs=1, threads=2)
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: read_all(data.corpus, options),
        "limit": lambda: pure_decoding(images, 2),
        "jail": lambda: read_all(data.jail, options),
    }
    versions: dict[str, str] = {}
    results: list[Result] = []
    for name in peers:
        try:
            way, told = best_way(make_data(QUICK), name, scale.sweep)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            results.append(_missing(f"decoded_{name}", name, _told(error)))
            continue
        print(f"  {name}: workers, decoder/batch, us: {told}", file=sys.stderr)

        def side(name: str = name, way: Way = way) -> float:
            took, version = peer_run(data, name, "decoded", way.workers, way.how)
            versions[name] = f"{version} ({way.workers} workers, {way.how})"
            return took

        sides[name] = side
    read_all(data.corpus, options)
    found = alternate(sides, scale.decoded_runs)
    limit = found["limit"]
    for name, version in versions.items():
        results.append(summary(f"decoded_{name}", (found["ours"], found[name], limit), (name, version), "us"))
    best = min(versions, key=lambda name: statistics.median(found[name])) if versions else None
    theirs = (found[best], (best, versions[best])) if best else ([], (None, None))
    results.append(summary("decoded", (found["ours"], theirs[0], limit), theirs[1], "us"))
    results.append(summary("decoded_in_the_jail", (found["jail"], theirs[0], limit), theirs[1], "us"))
    return results


def _missing(name: str, peer: str, error: str) -> Result:
    nothing = float("nan")
    return Result(name, nothing, None, peer, None, None, None, None, "us", 0, (nothing, nothing), error)


def packing(data: Data, scale: Scale) -> list[Result]:
    """Padding of rows of 4,096 tokens, and how quickly they are planned."""
    results = []
    for name, lengths_N in (("synthetic", synthetic(scale.lengths)), ("corpus", of_corpus(data.corpus, scale.lengths))):
        started = time.process_time()
        mine = padding(ours(lengths_N)) * 100
        took = (time.process_time() - started) / len(lengths_N) * 1e6
        for rule, pack_by in RULES.items():
            theirs = padding(pack_by(lengths_N)) * 100
            results.append(summary(f"packing_{name}", ([mine], [theirs], []), (rule, "rule"), "%"))
        results.append(summary(f"packing_{name}_time", ([took], [], []), (None, None), "us"))
    return results


def first_batch(data: Data, scale: Scale) -> list[Result]:
    """Seconds from constructing to the first batch, not decoded, of 1,000 shards."""
    home = data.home / f"shards-{scale.shards}"
    if not (home / "corpus/corpus.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        make_corpus(home, pairs(CACHE, scale.images)[:50], 4 * scale.shards, per_shard=4)
    many = Data(home, str(home / "corpus"), "", 4 * scale.shards)

    def mine() -> float:
        started = time.perf_counter()
        with Loader(many.corpus, options=Options(batch_size=BATCH, decode=False)) as loader:
            assert len(next(loader)) == BATCH
            return time.perf_counter() - started

    results = []
    for peer in ("webdataset", "litdata", "mosaicml-streaming"):
        versions: list[str] = []

        def theirs(peer: str = peer, versions: list[str] = versions) -> float:
            found = call(peer, "first", prepared(many, peer), 0)
            versions.append(found["version"])
            return float(found["seconds"])

        found = alternate({"ours": mine, peer: theirs}, scale.decoded_runs)
        results.append(summary("first_batch", (found["ours"], found[peer], []), (peer, next(iter(versions), None)), "s"))
    return results


def memory(data: Data, scale: Scale) -> list[Result]:
    """What 10^7 indexed samples take: memory, open files, the time to save and to restore."""
    with tempfile.TemporaryDirectory(dir=data.home) as folder:
        half = scale.indexed // 2
        homes = [make_large(Path(folder) / name, data.corpus, half, scale.shards // 2) for name in ("first", "second")]
        command = [sys.executable, "-m", "benchmarks.loader_probe", data.corpus, *homes]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    found = json.loads(done.stdout)
    units = {
        "open_s": "s", "batches_s": "s", "state_s": "s", "restore_s": "s", "restore_fresh_s": "s", "state_bytes": "B",
        "files": "files", "before_mib": "MiB", "rss": "MiB", "own": "MiB", "peak": "MiB",
    }  # fmt: skip
    return [summary(f"indexed_{name}", ([found[name]], [], []), (None, None), unit) for name, unit in units.items()]


def verifying(data: Data, scale: Scale) -> list[Result]:
    """Comparing all bytes with the manifest, beside the slower of reading and hashing them."""
    paths = [Path(data.corpus) / name for name in open_corpus(data.corpus).shards]
    megabytes = sum(path.stat().st_size for path in paths) / 1e6

    def spread(work: Callable[[Path], object]) -> float:
        with ThreadPoolExecutor(2) as pool:
            started = time.perf_counter()
            list(pool.map(work, paths))
            return (time.perf_counter() - started) / megabytes * 1e6

    def check() -> float:
        started = time.perf_counter()
        assert verify(data.corpus).whole
        return (time.perf_counter() - started) / megabytes * 1e6

    whole = [path.read_bytes() for path in paths]
    found = alternate({"ours": check, "read": lambda: spread(_read_through)}, scale.raw_runs)
    hashed = []
    for _ in range(scale.raw_runs):
        with ThreadPoolExecutor(2) as pool:
            started = time.perf_counter()
            list(pool.map(lambda data: hashlib.sha256(data).digest(), whole))
            hashed.append((time.perf_counter() - started) / megabytes * 1e6)
    limit = hashed if statistics.median(hashed) > statistics.median(found["read"]) else found["read"]
    return [summary("verify_per_MB", (found["ours"], [], limit), (None, None), "us")]


def _read_through(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb") as file:
        while file.readinto(buffer):
            pass


class Lengths:
    """Lengths that no text has to be read for."""

    version = "bench"

    def __call__(self, corpus: Corpus, first: int, num: int) -> np.ndarray:
        assert first + num <= len(corpus.samples)
        return synthetic(first + num)[first:]


def mixing(data: Data, scale: Scale) -> list[Result]:
    """The largest distance of a source's tokens from its share of all, after any draw and after any step."""
    shares = {"docs": 0.2, "pairs": 0.7, "web": 0.1}
    options = Options(batch_size=16, row_tokens=ROW_TOKENS, threads=0)
    with Loader(dict.fromkeys(shares, data.corpus), shares, options, lengths=Lengths()) as loader:
        window = loader.plan.window(loader.plan.first)
    weights_S = np.asarray(list(shares.values()))
    results = []
    for name, order_D in (("draw", np.arange(len(window.tokens_D))), ("step", window.order_D)):
        tokens_SD = (window.source_D[order_D] == np.arange(3)[:, None]) * window.tokens_D[order_D]
        total_D = np.cumsum(tokens_SD.sum(0))
        away_SD = np.abs(np.cumsum(tokens_SD, axis=1) - weights_S[:, None] * total_D)
        ends = np.arange(len(total_D)) if name == "draw" else window.starts_R[16::16] - 1
        worst = away_SD[:, ends].max(0)
        results.append(summary(f"mixture_away_after_a_{name}", ([float(worst.max())], [], []), (None, None), "tokens"))
        later = total_D[ends] > 1_000_000
        share = float((worst[later] / total_D[ends][later]).max() * 100)
        results.append(summary(f"mixture_share_after_a_{name}", ([share], [], []), (None, None), "%"))
    return results


def writing(data: Data, scale: Scale) -> list[Result]:
    """Write shards with hashes on, beside webdataset's ShardWriter, to memory."""
    memory_disk = str(TMPFS) if TMPFS.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory_disk) as folder:
        found = [Result(**result) for result in write(make_samples(scale.num), Path(folder), scale.raw_runs)]  # type: ignore[arg-type]
    return [replace(result, name=f"write; limit: {result.name.rpartition('; ')[2]}") for result in found]


CASES: dict[str, Callable[[Data, Scale], list[Result]]] = {
    "raw": raw, "decoded": decoded, "packing": packing, "first_batch": first_batch, "memory": memory, "verify": verifying,
    "mixture": mixing, "write": writing,
}  # fmt: skip
NOTES = """
Lower is better everywhere. All samples are pairs (jpg, txt, json) of 256 px on the longer side, encoded by our own code at
quality 95, 12 to 16 KB a sample, in tars of 1,000. webdataset and Energon read the very tars of the corpus; LitData, MosaicML
Streaming and Grain (ArrayRecord) have their own formats, made from the same members. The page cache is warm. Ours compares
every sample with its xxh3; peers are as they come, which is with fewer checks or none.
A side runs one epoch that does not count, then one that does, from
asking for the first batch to having the last; sides take turns, and the medians are shown.

- `raw`: every member as bytes, in batches of 32, nothing decoded. CPU time of the one thread, so that neighbours on the
  machine count less. webdataset goes through the tars in order; `_beside_shuffle_1000` is its shuffled stream; ours is a
  global shuffle in both. The limit is `os.pread` of the same ranges in the same order with all files open, nothing kept and
  nothing parsed.
- `decoded`: RGB arrays and captions in the consumer's hands, wall time on both cores; ours has two threads. Each peer was
  tried with its own decoder and with ours (simplejpeg), with batches of arrays and with all pixels of a batch in one shared
  array (for Grain: `list` is threads, `flat` is worker processes), and with 1 to 3 workers; its quickest way is in the table,
  named behind its version. The limit is simplejpeg alone on the same bytes, two threads, nothing read and nothing kept.
  `_in_the_jail` is the same corpus said to be of strangers' images, which are decoded in a sandboxed child each thread.
- `packing`: what rows of 4,096 tokens do not hold. `synthetic` is log-normal text with 0 to 2 images, `corpus` the captions'
  bytes and the images' patches of 16 px. The rivals are written small in `benchmarks/loader_packing.py`, BAGEL's from its
  published settings.
- `first_batch`: from constructing to the first 32 raw samples, of 1,000 shards; imports do not count.
- `indexed`: a process with two corpora of 5 million samples each in 500 shards. `rss` counts the mapped index, `own` does
  not.
- `verify`: `mmdata verify`, a MB. The limit is the slower of reading and SHA-256, on both cores.
- `write`: one shard of 10,000 samples in memory, index, xxh3 and SHA-256 included, to a tmpfs; the files are the same byte for
  byte. The limits are a plain write of them, and their SHA-256 alone on one core.
- `mixture`: shares 0.2, 0.7, 0.1 of tokens: how far a source is from its share after any draw, and after any step of 16
  packed rows (packing reorders draws inside a window); as a share of all tokens once a million were drawn.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which of {', '.join(CASES)}; all unless said")
    parser.add_argument("--quick", action="store_true", help="fewer runs and sizes; never committed")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    data = make_data(scale)
    load = os.getloadavg()[0]
    results = [result for name in options.cases or CASES for result in CASES[name](data, scale)]
    ended = os.getloadavg()[0]
    told = f"Load average of the machine when this began and ended: {load:.1f}, {ended:.1f} (its own work among it)."
    publish("loader", results, options, f"{NOTES}\n{told}")


if __name__ == "__main__":
    main()
