"""What two sets of hashes or vectors have near each other, and of it what is nearest to each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Met:
    """What is near each other, in any order: places of held and asked ones, (M,) int64, and distances, (M,) float32."""

    held_M: np.ndarray
    asked_M: np.ndarray
    distance_M: np.ndarray

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.held_M)


def met_of(parts: Sequence[Met]) -> Met:
    """Return several as one."""
    none = Met(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    held, asked, distance = zip(*((part.held_M, part.asked_M, part.distance_M) for part in (none, *parts)), strict=True)
    return Met(np.concatenate(held), np.concatenate(asked), np.concatenate(distance))


class Index(Protocol):
    """What is held, ready to be asked."""

    def near(self, asked: Any) -> Met:  # noqa: ANN401 - words or vectors
        """Return what is near: places among the held and among the asked."""


@dataclass
class Nearest:
    """Of all that is met the nearest, then the smallest number of its set, then the smallest place: in whatever order it comes.

    distance_N  (N,) float32, infinite where nothing was met    of_N  (N,) int32, the set    place_N  (N,) int64, the place in it
    """

    num: int
    distance_N: np.ndarray = field(init=False)
    of_N: np.ndarray = field(init=False)
    place_N: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.distance_N = np.full(self.num, np.inf, np.float32)
        self.of_N = np.full(self.num, -1, np.int32)
        self.place_N = np.full(self.num, -1, np.int64)

    def add(self, at_M: np.ndarray, of: np.ndarray | int, place_M: np.ndarray, distance_M: np.ndarray) -> None:
        """Take what was met: by whom, in which set, at which place, how far."""
        of_M = np.broadcast_to(np.asarray(of, np.int32), len(at_M))
        order = np.lexsort((place_M, of_M, distance_M, at_M))
        at, of_M, place, distance = at_M[order], of_M[order], place_M[order], distance_M[order].astype(np.float32)
        first = np.ones(len(at), bool)
        first[1:] = at[1:] != at[:-1]
        at, of_M, place, distance = at[first], of_M[first], place[first], distance[first]
        nearer = distance < self.distance_N[at]
        same = distance == self.distance_N[at]
        nearer |= same & (of_M < self.of_N[at])
        nearer |= same & (of_M == self.of_N[at]) & (place < self.place_N[at])
        self.distance_N[at[nearer]], self.of_N[at[nearer]], self.place_N[at[nearer]] = (
            distance[nearer],
            of_M[nearer],
            place[nearer],
        )

    @property
    def met(self) -> np.ndarray:
        """The places of those that met something, (M,) int64."""
        return np.flatnonzero(self.of_N >= 0)


def first_of(of_N: np.ndarray, num: int) -> np.ndarray:
    """Return the first place of each value, (U,) int64, by the value of each place."""
    found = np.empty(num, np.int64)
    found[of_N[::-1]] = np.arange(len(of_N))[::-1]
    return found
