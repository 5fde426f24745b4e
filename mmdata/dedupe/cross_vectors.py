"""All pairs of a held and an asked vector whose cosine is at least a threshold, exactly; equal vectors are one.

Decided here: as in `cosine`, products only screen, and candidates are computed anew in float64. Tiles of the held vectors stay
loaded where they fit into memory, since rows ask a few at a time.
"""

from functools import partial
from typing import Any

import numpy as np

from mmdata.dedupe.cosine import Screen, Unit, best_screen, check_threshold
from mmdata.dedupe.hamming import collapse
from mmdata.dedupe.lines import Lines
from mmdata.dedupe.met import Met, first_of, met_of

_ROWS = 8192  # vectors that are looked at together


class VectorIndex:
    """Vectors that others are compared with by their cosine; products only screen, see `cosine`."""

    def __init__(self, vectors: np.ndarray | Lines, cosine: float, screen: Screen | None = None, memory_mib: int = 512) -> None:
        """Take (N, D) float16 or float32 vectors and a cosine in (0, 1]."""
        check_threshold(cosine)
        self._unit, self._screen = Unit(vectors, memory_mib), screen or best_screen()
        self._bound, self._least = cosine - self._screen.margin(self._unit.dim), min(cosine, 1 - 1e-12)
        self._loaded: dict[int, Any] = {}
        self._keeps = len(self._unit) * self._unit.dim * 4 <= memory_mib << 20

    def near(self, asked: np.ndarray | Lines) -> Met:
        """Return all pairs of at least the cosine; the distance is one minus it. A tile of candidates is held at a time."""
        other, parts = Unit(asked), []
        for top in range(0, len(other), self._screen.tall):
            left = self._screen.load(other.rows(slice(top, top + self._screen.tall)))
            for first in range(0, len(self._unit), self._screen.wide):
                places, held = self._screen.hits(left, self._tile(first), self._bound)
                held, places = held + first, places + top
                cosine = self._unit.cosines(held, places, other)
                near = cosine >= self._least
                parts.append(Met(held[near], places[near], np.maximum(1 - cosine[near], 0).astype(np.float32)))
        return met_of(parts)

    def _tile(self, first: int) -> Any:  # noqa: ANN401 - of the screen's own kind
        load = partial(self._screen.load, self._unit.rows(slice(first, first + self._screen.wide)))
        if not self._keeps:
            return load()
        if first not in self._loaded:
            self._loaded[first] = load()
        return self._loaded[first]


class Picked(Lines):
    """Some of the vectors of others, (n, D), read where they are asked for."""

    def __init__(self, vectors: np.ndarray | Lines, places: np.ndarray) -> None:
        """Take vectors, and places of them."""
        self._of, self._places = vectors, places

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return len(self._places), int(self._of.shape[1])

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self._places) * self.shape[1]

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Return some of them, (m, D)."""
        return np.asarray(self._of[self._places[which]])


def distinct(vectors: np.ndarray | Lines) -> tuple[np.ndarray | Lines, np.ndarray]:
    """Return (N, D) float16 vectors, each once, and which of them each is, (N,) int64.

    A picture that many sites show in place of another has one embedding, and would make pairs without end.
    """
    hash_N = np.zeros(len(vectors), np.uint64)
    weights = np.random.default_rng(0).integers(0, 1 << 64, vectors.shape[1], np.uint64, endpoint=False) | np.uint64(1)
    for start in range(0, len(vectors), _ROWS):
        hash_N[start : start + _ROWS] = (_bits(vectors, slice(start, start + _ROWS)) * weights).sum(axis=1, dtype=np.uint64)
    once = collapse(hash_N)
    first_U = first_of(once.of_N, len(once.values_UW))
    # Of vectors with one hash those that differ from the first stay by themselves.
    copies = np.flatnonzero(first_U[once.of_N] != np.arange(len(vectors)))
    true = np.ones(len(copies), bool)
    for start in range(0, len(copies), _ROWS):
        some = copies[start : start + _ROWS]
        true[start : start + _ROWS] = (_bits(vectors, some) == _bits(vectors, first_U[once.of_N[some]])).all(axis=1)
    of_N, others = once.of_N.copy(), copies[~true]
    of_N[others] = len(first_U) + np.arange(len(others))
    if len(copies) == len(others):
        return vectors, np.arange(len(vectors))
    return Picked(vectors, np.concatenate([first_U, others])), of_N


def _bits(vectors: np.ndarray | Lines, which: slice | np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors[which], np.float16).view(np.uint16).astype(np.uint64)
