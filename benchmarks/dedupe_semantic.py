"""Near vectors, exactly and by clusters: beside the peak of matrix products, and beside faiss.

    python -m benchmarks.dedupe_semantic [--quick] [--json FILE]

What is compared, and with what, is said in `NOTES` and on the result page.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dedupe_data import CACHE, ask_peer, has_peer, vectors
from benchmarks.harness import Result, arguments, publish, summary
from mmdata.dedupe.clustered import Clustering, Looked, near_clustered
from mmdata.dedupe.cosine import Screen, best_screen, near_vectors, numpy_screen, tiles, torch_screen
from mmdata.dedupe.pairs import Pairs

DIM = 512
THRESHOLD, REAL_THRESHOLD = 0.9, 0.95
SHARE = 0.05  # of the tiles of the large set
WANTED = 0.99
NOTES = """\
Lower is better; ours and the limit ran in turn in one process, the peer in one of its own, all on both cores. Vectors have
{dim} numbers in float16, the last hundredth are copies of others with noise, of a cosine of about 0.9 to 1; pairs of at least
{threshold} are looked for. *Limit* is the time that the products alone would take at the fp32 peak of the same moments:
numpy's product of two squares of {side}, {peak}. Counted are the products of each pair once.

**exact_N**: `near_vectors`. The mark is 80 % of the limit. **exact_N_some** is {share:.0%} of the tiles of the large set,
memory-mapped from a file. {screens}

**clustered**: `near_clustered` beside `near_vectors` over the same vectors; the ratio is how much faster it is, the mark 10
at a recall of {wanted}. Its time includes k-means and the measuring of its own recall. *Recall* here is against the exact
pairs. *real* are {real} embeddings by a copy detection model (SSCD, its small form) of clip art, stamps, wallpapers and of
twelve edits of each, at {real_threshold}. The table has the defaults; others, and what each run itself said of its recall:

{borders}

**faiss**: its exhaustive index (`range_search`), and an inverted file with the number of lists and probes that first reach a
recall of {wanted}, over the planted vectors; the queries are {queries:,} of the vectors, and the time of asking is scaled to
all. {faiss}
"""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    num      vectors of which all tiles are looked at      large   those of which some are
    real     embeddings of pictures                        queries   vectors that ask faiss
    side     of the squares whose product gives the peak
    """

    num: int
    large: int
    real: int
    runs: int
    queries: int
    side: int


FULL = Scale(num=100_000, large=1_000_000, real=100_000, runs=3, queries=5000, side=4096)
QUICK = Scale(num=4000, large=10_000, real=0, runs=1, queries=500, side=512)


@dataclass
class Told:
    """What the page says beside the table."""

    peaks: list[float] = field(default_factory=list)
    borders: list[str] = field(default_factory=list)
    screens: str = ""
    faiss: str = ""


def peak(told: Told, side: int) -> float:
    """Return and note the float32 operations a second of one product of squares, the best of three."""
    dice = np.random.default_rng(0)
    one, other = (dice.normal(size=(side, side)).astype(np.float32) for _ in range(2))
    best = min(timed(lambda: one @ other)[0] for _ in range(3))
    told.peaks.append(2 * side**3 / best)
    return told.peaks[-1]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that some work took, and what it gave."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def exact(name: str, given: np.ndarray, how: tuple[float, float], told: Told, scale: Scale) -> tuple[Result, Pairs]:
    """Return the line of all tiles, or, once, of a share of them, and the pairs; `how` are the threshold and the share."""
    threshold, share = how
    screen = best_screen("cpu")
    chosen = tiles(len(given), screen)
    rows = sorted({tall.start for tall, _ in chosen})
    if share < 1:  # whole rows of tiles, from the long to the short ones
        keep = set(rows[:: round(1 / share)])
        chosen = [tile for tile in chosen if tile[0].start in keep]
    products = sum(products_of(tall, wide) for tall, wide in chosen)
    mine, limits, pairs = [], [], None
    for _ in range(scale.runs if share == 1 else 1):
        before = peak(told, scale.side)
        seconds, pairs = timed(lambda: near_vectors(given, threshold, screen, only=chosen))
        mine.append(seconds)
        limits.append(2 * products * given.shape[1] / statistics.mean([before, peak(told, scale.side)]))
    assert pairs is not None
    return summary(name, (mine, [], limits), (None, None), "s"), pairs


def products_of(tall: slice, wide: slice) -> int:
    """Return how many pairs of different rows a tile of the upper triangle holds."""
    rows = np.arange(tall.start, tall.stop)
    return int(np.maximum(wide.stop - np.maximum(wide.start, rows + 1), 0).sum())


def screens(given: np.ndarray, told: Told) -> list[Result]:
    """Compare the screens over some of the vectors: they must give the same pairs."""
    found: list[tuple[Screen, float, Pairs]] = []
    for screen in (numpy_screen(), torch_screen("cpu")):
        seconds, pairs = timed(lambda screen=screen: near_vectors(given, THRESHOLD, screen))  # type: ignore[misc]
        found.append((screen, seconds, pairs))
    (_, one, first), (_, other, second) = found
    if not (np.array_equal(first.left_P, second.left_P) and np.array_equal(first.right_P, second.right_P)):
        raise ValueError("the two screens give different pairs")
    chosen = best_screen("cpu").label
    why = "" if "bfloat16" in chosen else "; this processor does not multiply bfloat16 in hardware, so that nothing is gained"
    told.screens = f"The screen chosen here is {chosen}{why}. Both give the same {len(first):,} pairs of {len(given):,} vectors."
    return [summary("screen_bfloat16", ([other], [one], []), ("float32 screen", ""), "s")]


def recall(found: Pairs, truth: Pairs, num: int) -> float:
    """Return the share of the pairs that were found."""
    there = np.isin(truth.left_P * num + truth.right_P, found.left_P * num + found.right_P)
    return float(there.mean()) if len(truth) else 1.0


@dataclass(frozen=True)
class Truth:
    """The exact pairs of vectors at a threshold, and the seconds that they took."""

    threshold: float
    pairs: Pairs
    seconds: float


def clustered(name: str, given: np.ndarray, truth: Truth, told: Told, runs: int) -> Result:
    """Return the line of the defaults; the page also tells what other borders and numbers of visits give."""
    lines: list[Result] = []
    for how in (Clustering(), Clustering(border=0.5), Clustering(visits=4), Clustering(visits=16)):
        mine, looked = [], None
        for _ in range(runs if not lines else 1):
            took, looked = timed(lambda how=how: near_clustered(given, truth.threshold, how))  # type: ignore[misc]
            mine.append(took)
        assert isinstance(looked, Looked)
        share = recall(looked.pairs, truth.pairs, len(given))
        said = "none" if looked.recall is None else f"{looked.recall:.4f}"
        seconds = statistics.median(mine)
        told.borders.append(
            f"- `{name}` of {len(given):,}, border {how.border}, {how.visits} visits: {seconds:.2f} s, "
            f"{truth.seconds / seconds:.1f} times, "
            f"recall {share:.4f} of {len(truth.pairs):,} pairs (it said {said} of {looked.num_pairs:,})"
        )
        if not lines:
            lines.append(summary(name, (mine, [truth.seconds], []), ("near_vectors", ""), "s"))
    return lines[0]


def beside_faiss(
    home: Path, given: np.ndarray, truth: Pairs, ours: tuple[float, float], told: Told, queries: int
) -> list[Result]:
    """Return the lines of faiss' exhaustive index and of its inverted file."""
    np.save(home / "vectors.npy", given.astype(np.float32))
    both = np.concatenate([np.stack([truth.left_P, truth.right_P], 1), np.stack([truth.right_P, truth.left_P], 1)])
    np.save(home / "truth.npy", both)
    options = {"job": "vectors", "vectors": str(home / "vectors.npy"), "truth": str(home / "truth.npy"), "threshold": THRESHOLD}
    lists = int(4 * len(given) ** 0.5)
    lines = []
    for config, mine, name in (
        (["flat"], ours[0], "faiss_exact"),
        (["ivf", lists, [1, 2, 4, 8, 16, 32, 64]], ours[1], "faiss_clustered"),
    ):
        try:
            found = ask_peer("faiss", "dedupe_faiss.py", {**options, "config": config, "queries": queries}, home)
        except (subprocess.SubprocessError, OSError, ValueError) as problem:
            lines.append(summary(name, ([mine], [], []), ("faiss", None), "s", str(problem)[-300:]))
            continue
        good = [line for line in found["lines"] if line["recall"] >= WANTED]
        best = min(good or found["lines"], key=lambda line: float(line["seconds"]))
        tried = [f"probes {line['config'][-1]} {line['seconds']:.3g} s, recall {line['recall']:.4f}" for line in found["lines"]]
        told.faiss += f"`{name}`: {'; '.join(tried)}. "
        label = f"{found['version']} " + ("Flat" if config == ["flat"] else f"IVF{lists}, {best['config'][-1]} probes")
        lines.append(summary(name, ([mine], [best["seconds"]], []), ("faiss", label), "s"))
    return lines


def measured(home: Path, scale: Scale, *, quick: bool) -> tuple[list[Result], str]:
    """Return all lines, and what is said beside them."""
    told = Told()
    keep = home if quick else CACHE / "dedupe"
    given = np.load(vectors(keep / f"vectors-{scale.num}.npy", scale.num, DIM))
    large = np.load(vectors(keep / f"vectors-{scale.large}.npy", scale.large, DIM), mmap_mode="r")
    peak(told, scale.side)
    whole, pairs = exact(f"exact_{scale.num:.0e}".replace("e+0", "e"), given, (THRESHOLD, 1), told, scale)
    some, _ = exact(f"exact_{scale.large:.0e}_some".replace("e+0", "e"), large, (THRESHOLD, SHARE), told, scale)
    lines = [whole, some, *screens(given[:: max(1, scale.num // 10_000)], told)]
    by_clusters = clustered("clustered_planted", given, Truth(THRESHOLD, pairs, whole.ours), told, scale.runs)
    lines.append(by_clusters)
    if scale.real:
        from benchmarks.dedupe_pictures import real_vectors

        real = real_vectors(scale.real)
        line, pairs_there = exact("exact_real", real, (REAL_THRESHOLD, 1), told, scale)
        lines += [line, clustered("clustered_real", real, Truth(REAL_THRESHOLD, pairs_there, line.ours), told, scale.runs)]
    if has_peer("faiss", quick=quick):
        lines += beside_faiss(home, given, pairs, (whole.ours, by_clusters.ours), told, scale.queries)
    rates = [rate / 1e9 for rate in told.peaks]
    notes = NOTES.format(
        dim=DIM, threshold=THRESHOLD, side=scale.side, share=SHARE, wanted=WANTED, real_threshold=REAL_THRESHOLD,
        screens=told.screens, borders="\n".join(told.borders),
        faiss=told.faiss, queries=scale.queries, real=f"{scale.real:,}",
        peak=f"{statistics.median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f})",
    )  # fmt: skip
    return lines, notes


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="mmdata-semantic-") as home:
        lines, notes = measured(Path(home), QUICK if options.quick else FULL, quick=options.quick)
    sys.stdout.write(notes)
    publish("dedupe_semantic", lines, options, notes)


if __name__ == "__main__":
    main()
