"""Vectors that lie in several pieces, read where they are asked for: one array to whoever asks for lines, never one in memory."""

import numpy as np
import pyarrow as pa


class Lines:
    """The vectors of a column of embeddings without nulls, (N, D) float16: by a slice, or by an array of places."""

    ndim = 2

    def __init__(self, column: pa.ChunkedArray) -> None:
        """Take the column; nothing is copied."""
        self._dim = int(column.type.list_size)
        self._pieces = [_array(chunk, self._dim) for chunk in column.chunks if len(chunk)]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)

    def __len__(self) -> int:
        """Return how many there are."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self._dim

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self) * self._dim

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Return some of them, (n, D) float16."""
        places = np.arange(*which.indices(len(self))) if isinstance(which, slice) else np.asarray(which, np.int64)
        found = np.empty((len(places), self._dim), np.float16)
        piece = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(piece):
            mine = piece == number
            first = int(self._ends[number]) - len(self._pieces[number])
            found[mine] = self._pieces[number][places[mine] - first]
        return found


def _array(chunk: pa.Array, dim: int) -> np.ndarray:
    array: np.ndarray = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return array
