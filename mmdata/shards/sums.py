"""The two checksums of a shard, from one reading: its SHA-256 and the xxh3 of each sample."""

import hashlib
from collections.abc import Iterator
from typing import IO

import numpy as np
import xxhash

from mmdata.shards.members import TAR_BLOCK

CHUNK = 1 << 20  # stays in a core's cache between the two hashes


class SampleSums:
    """The xxh3 of each sample of a shard, while the shard's bytes stream by.

    lengths   (N,) what each sample takes, in blocks of 512 bytes; samples lie end to end from the shard's first byte
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.sums: list[int] = []  # of the samples that have streamed by whole
        self._ends = (np.cumsum(lengths, dtype=np.int64) * TAR_BLOCK).tolist()
        self._at = 0
        self._hash = xxhash.xxh3_64()

    def update(self, chunk: memoryview) -> None:
        """Take the next bytes of the shard."""
        while len(chunk) and len(self.sums) < len(self._ends):
            end = self._ends[len(self.sums)]
            piece = chunk[: end - self._at]
            self._hash.update(piece)
            self._at, chunk = self._at + len(piece), chunk[len(piece) :]
            if self._at == end:
                self.sums.append(self._hash.intdigest())
                self._hash.reset()


def chunks(file: IO[bytes]) -> Iterator[memoryview]:
    """Yield the rest of a file piece by piece; each piece is good until the next is asked for."""
    buffer = memoryview(bytearray(CHUNK))
    while got := file.readinto(buffer):  # type: ignore[attr-defined]
        yield buffer[:got]


def sums_of(file: IO[bytes], lengths: np.ndarray) -> tuple[str, np.ndarray]:
    """Read a shard once; return its SHA-256 and the xxh3 of its samples, (N,) uint64."""
    whole, samples = hashlib.sha256(), SampleSums(lengths)
    for chunk in chunks(file):
        whole.update(chunk)
        samples.update(chunk)
    return whole.hexdigest(), np.array(samples.sums, np.uint64)
