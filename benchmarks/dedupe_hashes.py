"""All pairs of hashes within a radius, beside the binary indexes of faiss: what `dedupe.py` runs for each size and radius.

Decided here: the peer is the fastest configuration whose recall is 1.0. A sweep over sampled hashes says which are promising;
one that then misses a pair beyond the sample does not count.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dedupe_data import Planted, ask_peer, has_peer, job, planted
from benchmarks.harness import Result, summary


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
        "flat": "Flat", "hash": "Hash b={} nflip={}", "multihash": "MultiHash nhash={} b={} nflip={}",
        "ivf": "IVF nlist={} nprobe={}",
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
    lines: list[Result] = []
    known: dict[int, list[str]] = {}
    for num, radius, runs in scale.sizes:
        hashes = Hashes(home, num, radius, scale.sampled)
        name = f"perceptual_{num:.0e}_r{radius}".replace("e+0", "e")
        first = hashes.ours()
        peer: Peer | None = None
        error = None
        if has_peer("faiss", quick=quick):
            try:
                configs = grid(radius, num, short=quick)
                swept = hashes.sweep(
                    [config for config in configs if shape_of(config) in known.get(radius, map(shape_of, configs))]
                )
                known[radius] = worth_trying(name, swept, told)
                peer = fastest(name, hashes, swept, scale, told)
            except (subprocess.SubprocessError, OSError, ValueError) as problem:
                error = f"{type(problem).__name__}: {getattr(problem, 'stderr', '') or problem}"[-500:]
        lines.append(in_turn(name, hashes, (first, peer, error), runs, told))
    return lines


def worth_trying(name: str, swept: dict[str, Any], told: Told) -> list[str]:
    """Note a sweep; return the shapes of configurations that are worth trying at a larger size."""
    lines = sorted(swept["lines"], key=lambda line: float(line["seconds"]))
    said = [f"{name_of(line['config'])} {line['seconds']:.3g} s, recall {line['recall']:.4f}" for line in lines]
    told.sweeps.append(f"`{name}`: {'; '.join(said)} (of the sampled hashes; seconds scaled to all).")
    whole = [line for line in lines if line["recall"] == 1.0]
    return [shape_of(line["config"]) for line in whole if line["seconds"] < 3 * whole[0]["seconds"]]


def shape_of(config: list[object]) -> str:
    """Return what of a configuration does not follow from the number of hashes."""
    return str(config) if config[0] != "ivf" else "ivf"


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
