"""Deduping by equal values and by hashes within a radius: beside faiss, imagededup and polars, on made data.

    python -m benchmarks.dedupe [--quick] [--json FILE]

What is compared, and with what, is said in `NOTES` and on the result page. Every side runs in a process of its own.
"""

import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dedupe_data import CACHE, Planted, ask_peer, digests, has_peer, job, planted, printed
from benchmarks.dedupe_jobs import POLARS
from benchmarks.harness import HERE, Result, arguments, peer_python, publish, summary
from mmdata.dedupe.hamming import near_hashes

NOTES = """\
Lower is better; ours, the peer and the limit ran in turn, each in a process of its own, on both cores.

**perceptual_N_rR**: all pairs of N 64-bit hashes within R bits. Of the hashes one in a hundred is a copy of another with 0 to 8 bits
turned. *Ours* is `near_hashes`, from the hashes to the pairs. The peer is the fastest configuration of faiss' binary indexes
whose recall is 1.0; its time is that of building the index and of asking every hash. The mark is a ratio of 20. The limit is
one sort of the hashes. {scaled}

Recall of ours was 1.0 in every run: all planted pairs within the radius, and all pairs of some thousands of sampled hashes, as
faiss' exhaustive index finds them. {brute}

{sweeps}

{memory}

**imagededup_N_rR**: its own search (`brute_force_cython`, its default, and `bktree`), at sizes that it can do.

**growth**: ours at radius 4. {growth}

**exact_N**: of N rows with 32 hex digits each, a tenth copies, one of each is kept. *Ours* are the passes of the `dedupe` stage
as the engine runs them, in two processes: {buckets} bucket files a partition, then bucket by bucket to verdicts, from parquet files
to files of verdicts. It also carries the ids of the rows. The peer is one polars group-by of the column alone, already in memory,
in the best of its forms; the mark is half of its rate, a ratio of 0.5. The limit reads the same files, writes the same bytes
in as many pieces, and reads them again, without looking at a row. {polars}
"""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    sizes     hashes, radius and runs of each line, ascending     growth   hashes
    alone     hashes that imagededup gets                         rows     of the exact table
    sampled   hashes of which faiss' exhaustive index tells all neighbours
    patience  seconds that one whole run of a peer may take: beyond it only some of the hashes ask
    """

    sizes: tuple[tuple[int, int, int], ...]
    growth: tuple[int, ...]
    alone: tuple[int, ...]
    brute: int
    rows: int
    sampled: int
    runs: int
    patience: float


FULL = Scale(
    sizes=((10**6, 4, 3), (10**6, 8, 3), (10**7, 4, 3), (10**7, 8, 1)), growth=(10**5, 10**6, 10**7), alone=(10**4,),
    brute=10**5, rows=50_000_000, sampled=2000, runs=3, patience=60.0,
)  # fmt: skip
QUICK = Scale(
    sizes=((20_000, 4, 1), (20_000, 8, 1)), growth=(10**4, 20_000), alone=(),
    brute=3000, rows=100_000, sampled=200, runs=1, patience=5.0,
)  # fmt: skip


@dataclass
class Told:
    """What the page says beside the table."""

    scaled: list[str] = field(default_factory=list)
    sweeps: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    growth: list[str] = field(default_factory=list)
    brute: str = ""
    polars: str = ""


def grid(radius: int, num: int, *, short: bool = False) -> list[list[object]]:
    """Return the configurations of faiss: exhaustive, one table, several tables, an inverted file."""
    if short:
        return [["flat"], ["multihash", 3, 16, radius // 3]]
    tables: list[list[object]] = [
        ["multihash", blocks, min(64 // blocks, bits), radius // blocks]
        for blocks, bits in ((2, 32), (3, 21), (3, 19), (4, 16), (5, 12), (6, 10), (radius + 1, 64 // (radius + 1)))
        if radius // blocks <= 3
    ]
    fewer: list[list[object]] = [["multihash", 3, 21, max(radius // 3 - 1, 0)]]
    lists = int(num**0.5)
    probes: list[list[object]] = [["ivf", lists, max(1, lists // share)] for share in (64, 32, 16, 8, 4)]
    one: list[list[object]] = [["hash", 16, radius]] if radius <= 4 else []
    return [["flat"], *one, *tables, *fewer, *probes]


def name_of(config: list[object]) -> str:
    """Say a configuration as people do."""
    kind, *rest = config
    words = {
        "flat": "Flat", "hash": "Hash b={} nflip={}", "multihash": "MultiHash nhash={} b={} nflip={}", "ivf": "IVF nlist={} nprobe={}",
    }  # fmt: skip
    return words[str(kind)].format(*rest)


class Hashes:
    """Hashes in a file, and what is run over them."""

    def __init__(self, home: Path, num: int, radius: int, sampled: int) -> None:
        """Make the hashes; sample places, half of them copies."""
        self.home, self.num, self.radius = home, num, radius
        self.made: Planted = planted(num)
        self.path = home / f"hashes-{num}.npy"
        np.save(self.path, self.made.hashes)
        dice = np.random.default_rng(5)
        copies = dice.choice(self.made.right, min(sampled // 2, len(self.made.right)), replace=False)
        rows = np.unique(np.concatenate([copies, dice.choice(num, sampled // 2, replace=False)]))
        np.save(home / "rows.npy", dice.permutation(rows))

    def ours(self) -> dict[str, Any]:
        """Run `near_hashes`; raise where a planted pair is missing."""
        found = job("benchmarks.dedupe_jobs", "hamming", str(self.path), str(self.radius), str(self.home / "pairs.npy"))
        keys = self.keys()
        near = self.made.bits <= self.radius
        due = self.made.left[near] * self.num + self.made.right[near]
        if not np.isin(due, keys).all():
            raise ValueError(f"of {len(due)} planted pairs some were not found")
        return found

    def keys(self) -> np.ndarray:
        """Return the pairs of the last run as numbers, left * N + right."""
        pairs = np.load(self.home / "pairs.npy")
        keys: np.ndarray = pairs[:, 0] * self.num + pairs[:, 1]
        return keys

    def check(self) -> int:
        """Compare with what the exhaustive index says of the sampled hashes; return how many pairs that were."""
        truth = np.load(self.home / "truth.npy")
        due = np.unique(truth.min(axis=1) * self.num + truth.max(axis=1))
        keys = self.keys()
        mine = keys[
            np.isin(keys // self.num, truth_rows := np.load(self.home / "rows.npy")) | np.isin(keys % self.num, truth_rows)
        ]
        if not np.array_equal(np.sort(mine), due):
            raise ValueError(f"{len(mine)} pairs of the sampled hashes were found, {len(due)} there are")
        return len(due)

    def sweep(self, configs: list[list[object]]) -> dict[str, Any]:
        """Try configurations of faiss over the sampled hashes."""
        options = {
            "job": "binary",
            "rows": str(self.home / "rows.npy"),
            "truth": str(self.home / "truth.npy"),
            "configs": configs,
        }
        return self._faiss(options)

    def peer(self, config: list[object], every: int) -> dict[str, Any]:
        """Ask one configuration for each hash, or for one of so many; say whether it found all that ours did."""
        found = self._faiss({"job": "pairs", "config": config, "every": every})
        ends = np.load(self.home / "pairs.npy").reshape(-1)
        return {**found, "whole": found["neighbours"] == int((ends % every == 0).sum())}

    def _faiss(self, options: dict[str, Any]) -> dict[str, Any]:
        return ask_peer("faiss", "dedupe_faiss.py", {"hashes": str(self.path), "radius": self.radius, **options}, self.home)


def perceptual(home: Path, scale: Scale, told: Told, *, quick: bool) -> list[Result]:
    """Return a line for each size and radius."""
    lines, known = [], {}
    for num, radius, runs in scale.sizes:
        hashes = Hashes(home, num, radius, scale.sampled)
        name = f"perceptual_{num:.0e}_r{radius}".replace("e+0", "e")
        first = hashes.ours()
        peer: Peer | None = None
        error = None
        if has_peer("faiss", quick=quick):
            try:
                swept = hashes.sweep(known.get(radius, grid(radius, num, short=quick)))
                known[radius] = worth_trying(name, swept, told)
                peer = fastest(name, hashes, swept, scale, told)
            except (subprocess.SubprocessError, OSError, ValueError) as problem:
                error = f"{type(problem).__name__}: {getattr(problem, 'stderr', '') or problem}"[-500:]
        lines.append(in_turn(name, hashes, (first, peer, error), runs, told))
    return lines


def worth_trying(name: str, swept: dict[str, Any], told: Told) -> list[list[object]]:
    """Note a sweep; return the configurations that are worth trying at a larger size."""
    lines = sorted(swept["lines"], key=lambda line: float(line["seconds"]))
    said = [f"{name_of(line['config'])} {line['seconds']:.3g} s, recall {line['recall']:.4f}" for line in lines]
    told.sweeps.append(f"`{name}`: {'; '.join(said)} (of the sampled hashes; seconds scaled to all).")
    whole = [line for line in lines if line["recall"] == 1.0]
    close = [line["config"] for line in whole if line["seconds"] < 3 * whole[0]["seconds"]]
    return [["flat"], *(config for config in close if config != ["flat"])]


@dataclass(frozen=True)
class Peer:
    """The fastest configuration of faiss that finds all, and one of how many hashes asks it."""

    label: str
    config: list[object]
    every: int
    first: dict[str, Any]


def fastest(name: str, hashes: Hashes, swept: dict[str, Any], scale: Scale, told: Told) -> Peer:
    """Run configurations in the order of their promise until one finds all pairs that ours did, also those not sampled."""
    for line in sorted(swept["lines"], key=lambda line: float(line["seconds"])):
        if line["recall"] < 1:
            continue
        asking = line["seconds"] - line["built"]
        every = max(1, int(np.ceil(asking / max(scale.patience - line["built"], scale.patience / 4))))
        found = hashes.peer(line["config"], every)
        if found["whole"]:
            if every > 1:
                told.scaled.append(
                    f"In `{name}` {found['asked']:,} of the hashes asked faiss, and the time of asking is scaled to all."
                )
            return Peer(f"{found['version']} {name_of(line['config'])}", line["config"], every, found)
        told.sweeps.append(f"{name_of(line['config'])} does not count: beyond the sampled hashes it missed pairs.")
    raise ValueError("no configuration found all pairs")


def in_turn(name: str, hashes: Hashes, before: tuple[dict[str, Any], Peer | None, str | None], runs: int, told: Told) -> Result:
    """Run ours, a sort and the peer in turn; check what was found. Ours and the peer have run once before."""
    first, best, error = before
    mine, limits = [first], []
    theirs = [best.first] if best is not None else []
    for turn in range(runs):
        limits.append(float(job("benchmarks.dedupe_jobs", "sorted", str(hashes.path))["seconds"]))
        if turn:
            mine.append(hashes.ours())
        if turn and best is not None:
            theirs.append(hashes.peer(best.config, best.every))
    sampled = f", {hashes.check():,} of them of sampled hashes" if best is not None else ""
    other = f", faiss {max(run['peak_mib'] for run in theirs):.0f}" if theirs else ""
    peak = max(run["peak_mib"] for run in mine)
    told.memory.append(f"`{name}`: {mine[0]['pairs']:,} pairs{sampled}; peak memory in MiB: ours {peak:.0f}{other}.")
    seconds = [run["seconds"] for run in mine], [run["seconds"] for run in theirs], limits
    return summary(name, seconds, ("faiss", best.label if best is not None else None), "s", error)


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
        f"Forms of polars tried: {words}. Ours drops the {scale.rows - distinct:,} copies at {rate / 1e6:.2f} million rows a second; peak "
        f"memory of all its processes {max(found['peak_mib'] for found in mine):.0f} MiB, of polars {theirs[0]['peak_mib']:.0f} MiB."
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
    home = Path(tempfile.mkdtemp(prefix="mmdata-dedupe-"))
    try:
        lines, notes = measured(home, QUICK if options.quick else FULL, quick=options.quick)
    finally:
        shutil.rmtree(home)
    print(notes)
    publish("dedupe", lines, options, notes)


if __name__ == "__main__":
    main()
