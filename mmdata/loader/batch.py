"""What a loader gives: one rank's part of a step, and which samples it was made of."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Draw(NamedTuple):
    """Which sample: the source's name, the epoch, the corpus's folder and the sample's index there."""

    source: str
    epoch: int
    corpus: str
    sample: int


@dataclass(frozen=True)
class Batch(Generic[T]):
    """One rank's part of a step.

    items   what became of each sample, in order, those that are bad left out
    starts  where rows start among them, and their number last
    bad     why samples are missing, one message each
    """

    step: int
    items: tuple[T, ...]
    starts: tuple[int, ...]
    bad: tuple[str, ...]
    _draws: "Chunk"
    _corpora: tuple[tuple[str, str], ...]

    @property
    def rows(self) -> list[tuple[T, ...]]:
        """The items of each row."""
        return [self.items[first:last] for first, last in pairwise(self.starts)]

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Which samples were drawn, in order, those that are bad among them."""
        return tuple(
            Draw(self._corpora[corpus][0], epoch, self._corpora[corpus][1], index)
            for corpus, index, epoch in zip(*(column.tolist() for column in self._draws), strict=True)
        )

    def __len__(self) -> int:
        return len(self.items)


class Chunk(NamedTuple):
    """Draws that a thread reads at once."""

    corpus_D: np.ndarray
    index_D: np.ndarray
    epoch_D: np.ndarray
