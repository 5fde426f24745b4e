"""Plan, then read: the whole order of samples and rows follows from lengths and a seed, before a byte is read.

Draws are numbered from 0 for ever; draw g is sample `permutation(epoch)[g % n]` of epoch `g // n`. Rows are packed in
windows of 65,536 draws, each on its own, so that restoring a state replays one window at most.
"""

from functools import lru_cache

import numpy as np

from mmdata.errors import ConfigError
from mmdata.loader.seeds import keyed

WINDOW = 65_536
POOL = 64


class RowPlan:
    """The rows of a split, window by window.

    lengths_N   (N,) tokens of each sample
    samples_N   (N,) their indexes in the corpus
    row_tokens  tokens of one row
    """

    def __init__(self, lengths_N: np.ndarray, samples_N: np.ndarray, row_tokens: int, seed: int, window: int = WINDOW) -> None:
        if not len(lengths_N):
            raise ConfigError("there is no sample to draw from", hint="the split is empty: train on another, or keep more rows")
        if int(lengths_N.max()) > row_tokens:
            longest = int(samples_N[int(lengths_N.argmax())])
            raise ConfigError(
                f"sample {longest} has {int(lengths_N.max())} tokens, a row has {row_tokens}",
                hint="raise `layout.row_tokens`, or filter long texts when building the corpus",
            )
        self.lengths_N, self.samples_N = lengths_N, samples_N
        self.row_tokens, self.seed, self.window = row_tokens, seed, window

    def draws(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return epoch and place (into `samples_N`) of every draw of a window."""
        num = len(self.samples_N)
        g = np.arange(window * self.window, (window + 1) * self.window)
        epochs = g // num
        places = np.empty(self.window, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            places[inside] = self._permutation(epoch)[g[inside] % num]
        return epochs, places

    @lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its loader
    def rows(self, window: int) -> list[list[tuple[int, int]]]:
        """Return the rows of a window: lists of (epoch, index in the corpus)."""
        epochs, places = self.draws(window)
        samples = self.samples_N[places]
        rows = pack(self.lengths_N[places], self.row_tokens)
        return [[(int(epochs[draw]), int(samples[draw])) for draw in row] for row in rows]

    def _permutation(self, epoch: int) -> np.ndarray:
        return keyed(self.seed, epoch, "order").permutation(len(self.samples_N))


def pack(lengths_N: np.ndarray, row_tokens: int, pool: int = POOL) -> list[list[int]]:
    """Choose a row for each sample: best fit among at most `pool` open rows; the fullest is closed for a new one.

    lengths_N   (N,) tokens of each sample, each in 1..row_tokens
    returns     rows as lists of places in 0..N-1; every place once, no row above row_tokens
    """
    rows: list[list[int]] = []
    open_: list[tuple[int, list[int]]] = []  # (tokens left, places)
    for place, length in enumerate(lengths_N.tolist()):
        fits = [(left, at) for at, (left, _) in enumerate(open_) if left >= length]
        if fits:
            left, at = min(fits)
            open_[at][1].append(place)
            open_[at] = (left - length, open_[at][1])
        else:
            if len(open_) == pool:
                rows.append(open_.pop(min(range(pool), key=lambda at: open_[at][0]))[1])
            open_.append((row_tokens - length, [place]))
    return rows + [places for _, places in open_]
