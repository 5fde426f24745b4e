"""The data of the deduping benchmarks: hashes, digests and vectors in which who is a copy of whom is known.

Decided here: all of it follows from a seed, so that two machines measure the same. Files that take long to make are kept
in the cache. Copies lie far from what they were made of, in other partitions and other tiles.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import HERE, PEERS, peer_python
from benchmarks.loader_data import CACHE

PLANTED_SHARE = 100  # one hash of so many is a copy
MOST_BITS = 8
COPIED = 0.1  # of the rows of the exact table
PARTITION = 400_000
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@dataclass(frozen=True)
class Planted:
    """Hashes, (N,) uint64, and who was made of whom: places, (P,) int64, and in how many bits they differ, (P,) int64."""

    hashes: np.ndarray
    left: np.ndarray
    right: np.ndarray
    bits: np.ndarray


def planted(num: int, seed: int = 0) -> Planted:
    """Return random hashes of which the last hundredth are copies of others with 0 to 8 bits turned, as many of each."""
    dice = np.random.default_rng(seed)
    copies = num // PLANTED_SHARE
    hashes = dice.integers(0, 1 << 64, num, dtype=np.uint64, endpoint=False)
    left = np.sort(dice.choice(num - copies, copies, replace=False))
    right = np.arange(num - copies, num)
    bits = np.arange(copies) % (MOST_BITS + 1)
    order = dice.random((copies, 64)).argsort(axis=1)[:, :MOST_BITS].astype(np.uint64)
    turned = np.where(np.arange(MOST_BITS) < bits[:, None], np.uint64(1) << order, np.uint64(0))
    hashes[right] = hashes[left] ^ np.bitwise_or.reduce(turned, axis=1)
    return Planted(hashes, left, right, bits)


def vectors(path: Path, num: int, dim: int = 512, seed: int = 0) -> Path:
    """Write (num, dim) float16 unit vectors, the last hundredth near copies of cosine about 0.9 to 1; return their file."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_suffix(".tmp.npy")
    out = np.lib.format.open_memmap(temp, mode="w+", dtype=np.float16, shape=(num, dim))
    copies = num // PLANTED_SHARE
    for start in range(0, num, 1 << 16):
        dice = np.random.default_rng([seed, start])
        block = dice.normal(size=(min(1 << 16, num - start), dim)).astype(np.float32)
        rows = np.arange(start, start + len(block))
        out[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        copied = rows[rows >= num - copies]
        if len(copied):
            source = np.asarray(out[(copied * 7919) % (num - copies)], np.float32)
            noise = block[copied - start] / np.sqrt(dim) * dice.uniform(0, 0.48, (len(copied), 1)).astype(np.float32)
            out[copied] = (source + noise) / np.linalg.norm(source + noise, axis=1, keepdims=True)
    out.flush()
    del out
    temp.rename(path)
    return path


def _mixed(words: np.ndarray) -> np.ndarray:
    """Spread numbers over 64 bits, each to another (SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed


def hex_of(numbers: np.ndarray, salt: int) -> pa.Array:
    """Return 32 hex digits for each number, the same for the same number."""
    seeds = (2 * numbers.astype(np.uint64) + np.uint64(salt << 40)) * np.uint64(0x9E3779B97F4A7C15)
    data = _mixed(np.stack([seeds, seeds + np.uint64(0x9E3779B97F4A7C15)], axis=1)).view(np.uint8).reshape(-1)
    digits = _HEX[np.stack([data >> 4, data & 15], axis=1)].tobytes()
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(digits))


def digests(home: Path, num: int) -> int:
    """Write partitions of ids and digests as parquet, a tenth of them copies; return how many different digests there are."""
    note = home / "rows.json"
    if not note.exists():
        home.mkdir(parents=True, exist_ok=True)
        seen = np.zeros(num, bool)
        for number, start in enumerate(range(0, num, PARTITION)):
            rows = np.arange(start, min(start + PARTITION, num))
            dice = np.random.default_rng([1, start])
            what = np.where(dice.random(len(rows)) < COPIED, dice.integers(0, num, len(rows)), rows)
            seen[what] = True
            table = pa.table({"sample_id": hex_of(rows, 1), "raw_sha256": hex_of(what, 2)})
            pq.write_table(table, home / f"{number:05d}.parquet", compression="none", use_dictionary=False)
        note.write_text(json.dumps(int(seen.sum())), encoding="utf-8")
    found: int = json.loads(note.read_text(encoding="utf-8"))
    return found


def has_peer(name: str, *, quick: bool) -> bool:
    """Say whether a peer is to run: a quick run makes no environments."""
    return not quick or (PEERS / name / ".done").exists()


def ask_peer(name: str, script: str, options: dict[str, Any], home: Path, timeout_s: float = 3600) -> dict[str, Any]:
    """Run a peer's script over options; return the JSON that it printed last."""
    told = home / f"{name}.json"
    told.write_text(json.dumps(options), encoding="utf-8")
    command = [str(peer_python(name)), str(HERE / "peers" / script), str(told)]
    return printed(command, timeout_s)


def printed(command: list[str], timeout_s: float = 3600) -> dict[str, Any]:
    """Run a command; return the JSON that it printed last."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise ValueError(done.stderr.strip()[-600:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def job(module: str, *words: str) -> dict[str, Any]:
    """Run a part of a benchmark in a process of its own; return what it says."""
    return printed([sys.executable, "-m", module, *words])


def peak_mib() -> float:
    """Return the most memory that this process held."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


__all__ = [
    "CACHE", "Planted", "ask_peer", "digests", "has_peer", "job", "peak_mib", "planted", "printed", "vectors",
]  # fmt: skip
