"""Which place of a source a draw is: a permutation an epoch, computed where it is asked for and never stored.

A permutation of n places is a Feistel network over a x b >= n cells that walks on while it lands outside (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains"), with SplitMix64's finalizer as its round function. Numbers follow from the key alone,
for ever: not from a library's version, the size of a window, or which draws were asked for before.

Axes: D draws.
"""

from typing import Literal

import numpy as np

from mmdata.storage import mix64

ROUNDS = 6
BLOCK = 1024  # samples next to each other in a shard
SPREAD = 16  # blocks that are shuffled into each other

Shuffle = Literal["samples", "blocks", "none"]

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step
_BITS = (1 << 64) - 1


def places(draws_D: np.ndarray, num: int, key: int, shuffle: Shuffle = "samples", block: int = BLOCK) -> np.ndarray:
    """Return the places, 0..num-1, of draws 0, 1, ... of a source of `num` samples; draw g is of epoch g // num.

    draws_D  (D,) int64
    shuffle  `samples`: each next to any; `blocks`: SPREAD blocks of neighbours at a time are shuffled into each other, so that
             a reader has only those to hold; `none`: as they lie
    returns  (D,) int64
    """
    epochs_D, inside_D = np.divmod(draws_D.astype(np.uint64), np.uint64(num))
    if shuffle == "none":
        return _signed(inside_D)
    keys_D = mix64(epochs_D * np.uint64(_GOLDEN) + np.uint64(key & _BITS))
    if shuffle == "samples":
        return _signed(permute(inside_D, np.uint64(num), keys_D))
    return _signed(_by_blocks(inside_D, num, keys_D, block))


def _signed(x_D: np.ndarray) -> np.ndarray:
    return np.asarray(x_D, np.int64)


def _by_blocks(inside_D: np.ndarray, num: int, keys_D: np.ndarray, block: int) -> np.ndarray:
    group, size = np.uint64(block * SPREAD), np.uint64(block)
    first_D = inside_D // group * group
    sizes_D = np.minimum(group, np.uint64(num) - first_D)
    slots_D: np.ndarray = first_D + permute(inside_D - first_D, sizes_D, mix64(keys_D + first_D))
    whole = num // block  # what is left over after the whole blocks stays where it is, in the last group
    if not whole:
        return slots_D
    moved_D = permute(np.minimum(slots_D // size, np.uint64(whole - 1)), np.uint64(whole), keys_D) * size + slots_D % size
    return np.asarray(np.where(slots_D < np.uint64(whole * block), moved_D, slots_D))


def permute(x_D: np.ndarray, size: np.ndarray | np.uint64, keys_D: np.ndarray) -> np.ndarray:
    """Return where each x goes in the permutation of 0..size-1 that its key names, all uint64."""
    size_D = np.broadcast_to(np.asarray(size, np.uint64), x_D.shape)
    out_D = _once(x_D, size_D, keys_D)
    while (outside := np.flatnonzero(out_D >= size_D)).size:
        out_D[outside] = _once(out_D[outside], size_D[outside], keys_D[outside])
    return out_D


def _once(x_D: np.ndarray, size_D: np.ndarray, keys_D: np.ndarray) -> np.ndarray:
    across_D: np.ndarray = np.ceil(np.sqrt(size_D.astype(np.float64))).astype(np.uint64)
    down_D = (size_D + across_D - np.uint64(1)) // across_D
    low_D, high_D = x_D % across_D, x_D // across_D
    for number in range(ROUNDS):
        round_D = keys_D + np.uint64((number + 1) * _GOLDEN & _BITS)
        if number % 2:
            high_D = (high_D + mix64(low_D + round_D) % down_D) % down_D
        else:
            low_D = (low_D + mix64(high_D + round_D) % across_D) % across_D
    result: np.ndarray = high_D * across_D + low_D
    return result
