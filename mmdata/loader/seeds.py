"""Randomness that depends on what is drawn, never on who draws it.

A generator is keyed by (seed, epoch, sample, purpose), so noise, crops and drops do not change with the number of ranks,
workers or the place in a packed row.
"""

import hashlib

import numpy as np


def key_of(*key: object) -> int:
    """Return 128 bits that stand for a key."""
    digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def keyed(*key: object) -> np.random.Generator:
    """Return a counter-based generator for a key: the same numbers everywhere, for ever."""
    return np.random.Generator(np.random.Philox(key=key_of(*key)))
