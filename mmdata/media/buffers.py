"""Memory for pixels that is used again: fresh pages cost a tenth of a small image's decoding.

An array that is lent keeps its memory as long as it or a view of it lives; then the memory waits for the next image of about
its size. What waits is bounded, and nothing takes a lock: objects die in the middle of anything.
"""

from collections import deque

import numpy as np

GRAIN = 1 << 16  # memory is kept by its size in these
WAITING = 64 << 20  # bytes of each size that may wait


class _Loan:
    """Owns memory for as long as arrays over it live."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: np.ndarray, size: int) -> None:
        self._memory = memory
        self.__array_interface__ = {**memory.__array_interface__, "shape": (size,)}

    def __del__(self) -> None:
        _WAITING[len(self._memory) // GRAIN].append(self._memory)


class _ByGrains(dict[int, deque[np.ndarray]]):
    def __missing__(self, grains: int) -> deque[np.ndarray]:
        return self.setdefault(grains, deque(maxlen=WAITING // (grains * GRAIN)))


_WAITING = _ByGrains()


def lend(size: int) -> np.ndarray:
    """Return an array of `size` bytes, (size,) uint8, that holds whatever was there before."""
    grains = max(1, -(-size // GRAIN))
    try:
        memory = _WAITING[grains].pop()
    except IndexError:
        memory = np.empty(grains * GRAIN, np.uint8)
    return np.asarray(_Loan(memory, size))
