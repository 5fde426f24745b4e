"""Packing: which samples share a row of tokens.

A row takes the samples that have waited longest, so that none waits long and rows stay near the order of the draws; then, of
a small pool of waiting samples, the longest that fits, as often as one does. What is still empty is filled by exchange: a
sample of the row goes back for a longer one that fits exactly, or nearly. Rows fill up when lengths vary little, too.

Axes: N samples, R rows.
"""

from bisect import bisect_left, insort

import numpy as np

POOL = 128  # samples that wait
EXCHANGES = 3  # a row
_BITS = 32  # a waiting sample is one number that sorts by length, then by place: length << 32 | place
_PLACE = (1 << _BITS) - 1


def pack(lengths_N: np.ndarray, row_tokens: int, pool: int = POOL) -> tuple[np.ndarray, np.ndarray]:
    """Choose a row for each sample.

    lengths_N  (N,) tokens of each sample, each in 0..row_tokens
    returns    (N,) places in 0..N-1, each once, and (R + 1,) where rows start among them; no row is above row_tokens
    """
    waiting = _Waiting(lengths_N.tolist(), pool)
    order: list[int] = []
    starts = [0]
    while waiting.refill():
        order += _row(waiting, row_tokens)
        starts.append(len(order))
    return np.asarray(order, np.int64), np.asarray(starts, np.int64)


def _row(waiting: "_Waiting", room: int) -> list[int]:
    lengths, row = waiting.lengths, []
    for take in (waiting.take_oldest, waiting.take_longest):
        while (place := take(room)) is not None:
            row.append(place)
            room -= lengths[place]
    for _ in range(EXCHANGES):
        # The first one stays: whoever has waited longest is in some row soon.
        gain, at = max(((waiting.gain(lengths[place], room), at) for at, place in enumerate(row) if at), default=(0, 0))
        longer = waiting.take_longest(lengths[row[at]] + room) if gain > 0 else None
        if longer is None:
            break
        waiting.add(row[at])
        row[at] = longer
        room -= gain
    return row


class _Waiting:
    """Samples that wait for a row, sorted by length."""

    def __init__(self, lengths: list[int], pool: int) -> None:
        self.lengths, self._pool = lengths, pool
        self._keys: list[int] = []
        self._next = self._oldest = 0
        self._waits = bytearray(len(lengths))

    def refill(self) -> bool:
        """Let the next samples wait, as many as there is room for; false when there is none."""
        while self._next < len(self.lengths) and len(self._keys) < self._pool:
            self.add(self._next)
            self._next += 1
        return bool(self._keys)

    def add(self, place: int) -> None:
        """Let a sample wait."""
        insort(self._keys, self.lengths[place] << _BITS | place)
        self._waits[place] = True
        self._oldest = min(self._oldest, place)

    def take_oldest(self, room: int) -> int | None:
        """Return the place of the sample that has waited longest, if it fits; it waits no more."""
        if not self._keys:
            return None
        self._oldest = self._waits.index(True, self._oldest)
        key = self.lengths[self._oldest] << _BITS | self._oldest
        return self._take(bisect_left(self._keys, key)) if key >> _BITS <= room else None

    def take_longest(self, room: int) -> int | None:
        """Return the place of the longest that fits, of equals the one drawn last; it waits no more."""
        at = self._fits(room)
        return self._take(at) if at >= 0 else None

    def gain(self, length: int, room: int) -> int:
        """Return what is filled of a room when the longest that then fits comes in place of a sample; 0 or less if nothing is."""
        at = self._fits(length + room)
        return (self._keys[at] >> _BITS) - length if at >= 0 else 0

    def _fits(self, room: int) -> int:
        return bisect_left(self._keys, (room + 1) << _BITS) - 1

    def _take(self, at: int) -> int:
        place = self._keys.pop(at) & _PLACE
        self._waits[place] = False
        return place
