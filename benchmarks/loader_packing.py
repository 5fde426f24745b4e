"""How others fill rows of tokens, for `benchmarks/loader.py`; each written small, from its description.

A rule takes lengths in the order they come and returns the tokens in each row; what a row does not hold is padding.

Axes: N samples, R rows.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmdata.loader import pack

ROW_TOKENS = 4096
BINS = 10
# BAGEL's published settings, 32,768 expected and 16,384 preferred of 36,864 tokens, as shares of the row.
EXPECTED, PREFER, BUFFER = 32_768 / 36_864, 16_384 / 36_864, 50

Rule = Callable[[np.ndarray], list[int]]


def ours(lengths_N: np.ndarray) -> list[int]:
    """Fill rows as the loader does, window by window."""
    found: list[int] = []
    for first in range(0, len(lengths_N), 65_536):
        window = lengths_N[first : first + 65_536]
        places, starts = pack(window, ROW_TOKENS)
        found += np.add.reduceat(window[places], starts[:-1]).tolist()
    return found


def next_fit(lengths_N: np.ndarray) -> list[int]:
    """Close the row when the next sample does not fit."""
    rows, held = [], 0
    for length in lengths_N.tolist():
        if held + length > ROW_TOKENS:
            rows.append(held)
            held = 0
        held += length
    return [*rows, held]


def first_fit(lengths_N: np.ndarray) -> list[int]:
    """Put each sample into the first of ten open rows that has room; when none has, close the fullest."""
    rows: list[int] = []
    held: list[int] = []
    for length in lengths_N.tolist():
        place = next((at for at, tokens in enumerate(held) if tokens + length <= ROW_TOKENS), None)
        if place is not None:
            held[place] += length
            continue
        if len(held) == BINS:
            rows.append(held.pop(held.index(max(held))))
        held.append(length)
    return rows + held


def bagel(lengths_N: np.ndarray) -> list[int]:
    """Fill a row to what is expected; a sample that would go over the row waits in a buffer, which young rows take from first.

    When the buffer is full the sample is left out: those are not in the rows.
    """
    rows: list[int] = []
    buffer: list[int] = []
    held = 0
    for length in lengths_N.tolist():
        while buffer and held < PREFER * ROW_TOKENS and held + buffer[0] <= ROW_TOKENS:
            held += buffer.pop(0)
        if held + length <= ROW_TOKENS:
            held += length
        elif len(buffer) < BUFFER:
            buffer.append(length)
        if held >= EXPECTED * ROW_TOKENS:
            rows.append(held)
            held = 0
    return [*rows, held]


RULES: dict[str, Rule] = {"next-fit": next_fit, "first-fit 10": first_fit, "BAGEL's": bagel}


def synthetic(num: int) -> np.ndarray:
    """Return lengths of log-normal texts with 0 to 2 images, capped at a row: about 754 tokens on average."""
    rng = np.random.default_rng(0)
    texts = rng.lognormal(5.2, 1.0, num)
    images = rng.choice((0, 1, 2), num, p=(0.4, 0.45, 0.15)) * rng.choice((256, 576, 1024), num)
    lengths: np.ndarray = np.clip(texts + images, 1, ROW_TOKENS).astype(np.int64)
    return lengths


def of_corpus(corpus: str, num: int) -> np.ndarray:
    """Return the lengths of the benchmark's pairs, drawn again and again: caption bytes and patches of 16 px."""
    samples, blocks = (np.load(Path(corpus) / f"index/{name}.npy", mmap_mode="r") for name in ("samples", "blocks"))
    patches = -(-blocks["height"].astype(np.int64) // 16) * -(-blocks["width"].astype(np.int64) // 16)
    lengths: np.ndarray = np.add.reduceat(patches + blocks["characters"], samples["first_block"].astype(np.int64))
    found: np.ndarray = np.random.default_rng(0).choice(lengths, num)
    return found


def padding(rows: list[int]) -> float:
    """Return the share of the rows' room that holds nothing."""
    return 1 - sum(rows) / (len(rows) * ROW_TOKENS)
