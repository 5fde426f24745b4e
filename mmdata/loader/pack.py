"""Packing: which samples share a row of tokens.

Best fit over a pool of open rows; when nothing fits, the fullest row is closed for a new one. A few samples at a time are placed
from the longest to the shortest: short ones then fill what long ones leave. So is the last part of a list, with no row closed:
otherwise every list would end in a pool of half-filled rows.

Axes: N samples, R rows.
"""

from bisect import bisect_left, insort

import numpy as np

POOL = 64
TOGETHER = 256  # samples that are placed by length
TAIL = 16  # the last sixteenth of a list


def pack(lengths_N: np.ndarray, row_tokens: int, pool: int = POOL) -> tuple[np.ndarray, np.ndarray]:
    """Choose a row for each sample.

    lengths_N  (N,) tokens of each sample, each in 0..row_tokens
    returns    (N,) places in 0..N-1, each once, and (R + 1,) where rows start among them; no row is above row_tokens
    """
    lengths = lengths_N.tolist()
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of open rows, the fullest first: tokens left, number of the row
    tail = len(lengths) - len(lengths) // TAIL
    closed: list[int] = []
    for first in range(0, tail, TOGETHER):
        for place in _longest_first(lengths, range(first, min(first + TOGETHER, tail))):
            if _no_room(rooms, lengths[place]) and len(rooms) == pool:
                closed.append(rooms.pop(0)[1])
            _put(rooms, rows, place, lengths[place], row_tokens)
    for place in _longest_first(lengths, range(tail, len(lengths))):
        _put(rooms, rows, place, lengths[place], row_tokens)
    order = [*closed, *sorted(number for _, number in rooms)]
    sizes = [len(rows[number]) for number in order]
    places = [place for number in order for place in rows[number]]
    return np.asarray(places, np.int64), np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _longest_first(lengths: list[int], places: range) -> list[int]:
    return sorted(places, key=lambda place: -lengths[place])


def _no_room(rooms: list[tuple[int, int]], length: int) -> bool:
    return not rooms or rooms[-1][0] < length


def _put(rooms: list[tuple[int, int]], rows: list[list[int]], place: int, length: int, row_tokens: int) -> None:
    """Put a sample into the open row with the least room that is enough, or into a new one."""
    at = bisect_left(rooms, (length, -1))
    if at == len(rooms):
        rows.append([])
        room, number = row_tokens, len(rows) - 1
    else:
        room, number = rooms.pop(at)
    rows[number].append(place)
    insort(rooms, (room - length, number))
