"""Deduping by equal values and by hashes within a radius: beside faiss, imagededup and polars, on made data.

    python -m benchmarks.dedupe [--quick] [--json FILE]

What is compared, and with what, is said in `NOTES` and on the result page. Every side runs in a process of its own.
"""

import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dedupe_data import CACHE, digests, job, planted, printed
from benchmarks.dedupe_hashes import Hashes, Scale, Told, perceptual
from benchmarks.dedupe_jobs import POLARS
from benchmarks.harness import HERE, Result, arguments, peer_python, publish, summary
from mmdata.dedupe.hamming import near_hashes

NOTES = """\
Lower is better; ours, the peer and the limit ran in turn, each in a process of its own, on both cores.

**perceptual_N_rR**: all pairs of N 64-bit hashes within R bits. Of the hashes one in a hundred is a copy of another with 0 to
8 bits turned. *Ours* is `near_hashes`, from the hashes to the pairs. The peer is the fastest configuration of faiss' binary
indexes whose recall is 1.0; its time is that of building the index and of asking every hash. The mark is a ratio of 20. The
limit is one sort of the hashes. {scaled}

Recall of ours was 1.0 in every run: all planted pairs within the radius, and all pairs of some thousands of sampled hashes,
as faiss' exhaustive index finds them. {brute}

{sweeps}

{memory}

**imagededup_N_rR**: its own search (`brute_force_cython`, its default, and `bktree`), at sizes that it can do.

**growth**: ours at radius 4. {growth}

**exact_N**: of N rows with 32 hex digits each, a tenth copies, one of each is kept. *Ours* are the passes of the `dedupe`
stage as the engine runs them, in two processes: {buckets} bucket files a partition, then bucket by bucket to verdicts, from
parquet files to files of verdicts. It also carries the ids of the rows. The peer is one polars group-by of the column alone,
already in memory, in the best of its forms; the mark is half of its rate, a ratio of 0.5. The limit reads the same files,
writes the same bytes in as many pieces, and reads them again, without looking at a row. {polars}
"""


FULL = Scale(
    sizes=((10**6, 4, 3), (10**6, 8, 3), (10**7, 4, 3)), growth=(10**5, 10**6, 10**7), alone=(10**4,),
    brute=10**5, rows=50_000_000, sampled=2000, runs=3, patience=60.0,
)  # fmt: skip
QUICK = Scale(
    sizes=((20_000, 4, 1), (20_000, 8, 1)), growth=(10**4, 20_000), alone=(),
    brute=3000, rows=100_000, sampled=200, runs=1, patience=5.0,
)  # fmt: skip


def brute_force(num: int, told: Told) -> None:
    """Compare with all pairs of fewer hashes, at radius 0 to 12, by a loop over rows."""
    hashes = planted(num, seed=3).hashes
    found = [[], []]  # type: list[list[np.ndarray]]
    for row in range(num - 1):
        bits = np.bitwise_count(hashes[row + 1 :] ^ hashes[row])
        near = np.flatnonzero(bits <= 12)
        found[0].append(np.stack([np.full(len(near), row), near + row + 1], axis=1))
        found[1].append(bits[near])
    pairs, bits = (np.concatenate(part) for part in found)
    for radius in (0, 1, 4, 8, 12):
        mine = near_hashes(hashes, radius)
        if not np.array_equal(np.stack([mine.left_P, mine.right_P], axis=1), pairs[bits <= radius]):
            raise ValueError(f"at radius {radius} the pairs are not those of brute force")
    told.brute = f"At radius 0, 1, 4, 8 and 12 the pairs of {num:,} hashes are those of brute force, {len(pairs):,} at 12."


def alone(home: Path, sizes: tuple[int, ...]) -> list[Result]:
    """Return the lines beside imagededup."""
    lines = []
    for num in sizes:
        hashes = Hashes(home, num, 4, 0)
        for method in ("brute_force_cython", "bktree"):
            mine, theirs, label, error = [hashes.ours()["seconds"] for _ in range(3)], [], None, None
            script = str(HERE / "peers/dedupe_imagededup.py")
            try:
                found = printed([str(peer_python("imagededup")), script, str(hashes.path), "4", method], 900)
                theirs, label = [found["seconds"]], f"{found['version']} {method}"
            except (subprocess.SubprocessError, OSError, ValueError) as problem:
                error = f"imagededup {method}: {type(problem).__name__}: {getattr(problem, 'stderr', '') or problem}"[-300:]
            name = f"imagededup_{num:.0e}_r4".replace("e+0", "e")
            lines.append(summary(name, (mine, theirs, []), ("imagededup", label), "s", error))
    return lines


def growth(home: Path, sizes: tuple[int, ...], runs: int, told: Told) -> list[Result]:
    """Return a line for each size, and say how the time grows."""
    lines: list[Result] = []
    for num in sizes:
        hashes = Hashes(home, num, 4, 0)
        found = [hashes.ours() for _ in range(runs)]
        lines.append(
            summary(f"growth_{num:.0e}".replace("e+0", "e"), ([run["seconds"] for run in found], [], []), (None, None), "s")
        )
        told.growth.append(
            f"{num:,} hashes: {lines[-1].ours / num * 1e9:.0f} ns and {found[0]['peak_mib'] * 2**20 / num:.0f} bytes a hash"
        )
    return lines


def exact(home: Path, scale: Scale, told: Told) -> list[Result]:
    """Return the line of equal values, with all three sides in turn."""
    data = (home if scale is QUICK else CACHE / "dedupe") / f"digests-{scale.rows}"
    distinct = digests(data, scale.rows)
    forms = POLARS if scale.runs > 1 else POLARS[:1]
    run: Callable[..., dict[str, Any]] = lambda *words: job("benchmarks.dedupe_jobs", *words)  # noqa: E731
    workers = "2" if scale.runs > 1 else "1"
    tried = {form: run("polars", str(data), form) for form in forms}
    best = min(tried, key=lambda form: float(tried[form]["seconds"]))
    mine, theirs, limits = [], [], []
    for _ in range(scale.runs):
        mine.append(run("exact", str(data), str(home / "scratch"), workers))
        theirs.append(run("polars", str(data), best))
        limits.append(float(run("copied", str(data), str(home / "scratch"), workers)["seconds"]))
        if mine[-1]["dropped"] != scale.rows - distinct or theirs[-1]["distinct"] != distinct:
            raise ValueError(f"{scale.rows - distinct} copies: {mine[-1]} {theirs[-1]}")
    words = ", ".join(f"`{form}` {found['seconds']:.3g} s" for form, found in tried.items())
    rate = scale.rows / statistics.median(found["seconds"] for found in mine)
    told.polars = (
        f"Forms of polars tried: {words}. Ours drops the {scale.rows - distinct:,} copies at {rate / 1e6:.2f} million rows "
        f"a second; peak memory of all its processes {max(found['peak_mib'] for found in mine):.0f} MiB, "
        f"of polars {theirs[0]['peak_mib']:.0f} MiB."
    )
    label = f"{theirs[0]['version']} {best}"
    seconds = [found["seconds"] for found in mine], [found["seconds"] for found in theirs], limits
    return [summary(f"exact_{scale.rows:.0e}".replace("e+0", "e"), seconds, ("polars", label), "s")]


def measured(home: Path, scale: Scale, *, quick: bool) -> tuple[list[Result], str]:
    """Return all lines, and what is said beside them."""
    told = Told()
    brute_force(scale.brute, told)
    lines = [
        *perceptual(home, scale, told, quick=quick), *alone(home, scale.alone),
        *growth(home, scale.growth, scale.runs, told), *exact(home, scale, told),
    ]  # fmt: skip
    notes = NOTES.format(
        scaled=" ".join(told.scaled), brute=told.brute, sweeps="\n\n".join(told.sweeps) or "faiss was not there.",
        memory="\n".join(told.memory), growth="; ".join(told.growth) + ".", buckets=64, polars=told.polars,
    )  # fmt: skip
    return lines, notes


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="mmdata-dedupe-") as home:
        lines, notes = measured(Path(home), QUICK if options.quick else FULL, quick=options.quick)
    print(notes)
    publish("dedupe", lines, options, notes)


if __name__ == "__main__":
    main()
