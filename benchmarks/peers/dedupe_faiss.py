"""The peer of `benchmarks/dedupe.py` and `dedupe_semantic.py`: faiss looks for all pairs of hashes or vectors.

    python dedupe_faiss.py OPTIONS.json

job "binary"   hashes.npy (N,) uint64: each configuration answers the same few queries; what an exhaustive index finds is truth
job "pairs"    hashes.npy: one configuration answers each row, or one of `every` rows
job "vectors"  vectors.npy (N, D) float32 of length 1: `flat` or an inverted file, `queries` rows or all of them

A time is that of building and of answering; where not all rows ask, the answering is scaled to all, and the JSON says how
many did. faiss counts distances below a radius, so it is given one more. The last line printed is JSON.
"""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import json
import math
import sys
import time
from pathlib import Path

import faiss
import numpy as np

BITS = 64
FEW, MOST_S = 512, 8.0  # queries that tell how long the others would take, and what a configuration may take in a sweep


def binary_index(words: np.ndarray, config: list) -> faiss.IndexBinary:
    """Build an index of (N, 8) uint8 codes."""
    kind, *rest = config
    if kind == "flat":
        index = faiss.IndexBinaryFlat(BITS)
    elif kind == "hash":
        index = faiss.IndexBinaryHash(BITS, rest[0])
        index.nflip = rest[1]
    elif kind == "multihash":
        index = faiss.IndexBinaryMultiHash(BITS, rest[0], rest[1])
        index.nflip = rest[2]
    else:
        quantizer = faiss.IndexBinaryFlat(BITS)
        index = faiss.IndexBinaryIVF(quantizer, BITS, rest[0])
        index.nprobe = rest[1]
        index.train(words[:: max(1, len(words) // (64 * rest[0]))])
        index.kept_alive = quantizer
    index.add(words)
    return index


def asked(index: faiss.IndexBinary, words: np.ndarray, rows: np.ndarray, radius: int) -> tuple[float, np.ndarray]:
    """Return the seconds that the rows' queries took, and the pairs (row, neighbour) without the row itself."""
    started = time.perf_counter()
    lims, _, found = index.range_search(words[rows], radius + 1)
    seconds = time.perf_counter() - started
    left = np.repeat(rows, np.diff(lims).astype(np.int64))
    other = left != found
    return seconds, np.stack([left[other], found[other]], axis=1)


def codes(path: str) -> np.ndarray:
    return np.ascontiguousarray(np.load(path)).view(np.uint8).reshape(-1, 8)


def keyed(pairs: np.ndarray, num: int) -> np.ndarray:
    return np.unique(pairs[:, 0].astype(np.int64) * num + pairs[:, 1])


def binary(options: dict) -> dict:
    """Try each configuration on a few queries."""
    words, rows, radius = codes(options["hashes"]), np.load(options["rows"]), options["radius"]
    truth_index = binary_index(words, ["flat"])
    _, truth = asked(truth_index, words, rows, radius)
    np.save(options["truth"], truth)
    lines, index, made, built = [], None, None, 0.0
    for config in options["configs"]:
        if config[0] == "ivf" and config[:2] == made:  # only how many lists are looked at differs
            index.nprobe = config[2]
        else:
            started = time.perf_counter()
            index, made = binary_index(words, config), config[:2]
            built = time.perf_counter() - started
        few, _ = asked(index, words, rows[:FEW], radius)
        num = max(FEW, min(len(rows), int(FEW * MOST_S / max(few, 1e-6))))
        seconds, pairs = asked(index, words, rows[:num], radius)
        due = keyed(truth[np.isin(truth[:, 0], rows[:num])], len(words))
        recall = np.isin(due, keyed(pairs, len(words))).mean() if len(due) else 1.0
        total = built + seconds * len(words) / num
        lines.append({"config": config, "built": built, "asked": num, "seconds": total, "recall": float(recall)})
    return {"lines": lines}


def pairs(options: dict) -> dict:
    """Ask the rows of one configuration, all of them or as many as there is time for."""
    words, radius = codes(options["hashes"]), options["radius"]
    started = time.perf_counter()
    index = binary_index(words, options["config"])
    built = time.perf_counter() - started
    rows = np.arange(0, len(words), options["every"])
    seconds, found = 0.0, []
    for start in range(0, len(rows), 1 << 20):
        took, some = asked(index, words, rows[start : start + (1 << 20)], radius)
        seconds += took
        found.append(some)
    found = np.concatenate(found)
    # Rows and neighbours: a pair counts for each of its ends that asks.
    return {"seconds": built + seconds * len(words) / len(rows), "built": built, "asked": len(rows), "neighbours": len(found)}


def vectors(options: dict) -> dict:
    """Ask all vectors, or some, of an exhaustive index or of an inverted file."""
    vectors, threshold, config = np.load(options["vectors"]), options["threshold"], options["config"]
    dim = vectors.shape[1]
    started = time.perf_counter()
    if config[0] == "flat":
        index = faiss.IndexFlatIP(dim)
    else:
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(quantizer, dim, config[1], faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: max(1, len(vectors) // (64 * config[1]))])
    index.add(vectors)
    built = time.perf_counter() - started
    rows = np.linspace(0, len(vectors) - 1, min(options["queries"], len(vectors)), dtype=int)
    lines = []
    for probes in config[2] if len(config) > 2 else [0]:
        if probes:
            index.nprobe = probes
        started = time.perf_counter()
        lims, _, found = index.range_search(vectors[rows], math.nextafter(threshold, 0))
        seconds = time.perf_counter() - started
        left = np.repeat(rows, np.diff(lims).astype(np.int64))
        due = np.load(options["truth"])
        due = keyed(due[np.isin(due[:, 0], rows)], len(vectors))
        recall = np.isin(due, keyed(np.stack([left, found], axis=1), len(vectors))).mean() if len(due) else 1.0
        total = built + seconds * len(vectors) / len(rows)
        lines.append({"config": [*config[:2], probes], "seconds": total, "asked": len(rows), "recall": float(recall)})
    return {"lines": lines}


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {"binary": binary, "pairs": pairs, "vectors": vectors}[options["job"]](options)
    peak = next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(json.dumps({**found, "version": faiss.__version__, "peak_mib": peak, "threads": faiss.omp_get_max_threads()}))


if __name__ == "__main__":
    main()
