"""Digests: SHA-256, in hex, of bytes, of JSON and of files; and a mixer of numbers that is the same everywhere, for ever."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    """Return the SHA-256 of a value in canonical JSON: sorted keys, no spaces."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mix64(x_N: np.ndarray) -> np.ndarray:
    """Return numbers, (N,) uint64, mixed by SplitMix64's finalizer (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
    Generators", 2014): a permutation of all numbers of 64 bits.
    """
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x_N ^ (x_N >> np.uint64(31)))
