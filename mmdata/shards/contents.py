"""What the samples of a corpus are, by its index alone; a random choice of them; and reading many of them.

Decided here: a sample is a document when it has more blocks than a pair can have, or one that is not at position 0. What is
read ahead is bounded in bytes, for a sample may be a video.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mmdata.errors import RunError
from mmdata.shards.corpus import KINDS, Corpus
from mmdata.shards.members import TAR_BLOCK
from mmdata.shards.sealed import RESTORE

SAMPLE_KINDS = ("pair", "video pair", "document", "without media")
PAIR, VIDEO_PAIR, DOCUMENT, WITHOUT_MEDIA = range(4)
CHOSEN_BYTES = 256 << 20
AHEAD_BYTES = 64 << 20
AHEAD_SAMPLES = 256
THREADS = 8


class Read(NamedTuple):
    """A sample that was read: its bytes in the tar, and its members by suffix."""

    data: bytes
    members: dict[str, bytes]

    def media(self, block: np.void) -> bytes:
        """Return the bytes of a block of media. Where they lie is the index's word: strangers' tars name members as they like."""
        return self.data[int(block["offset"]) : int(block["offset"]) + int(block["size"])]


def kinds_of(corpus: Corpus) -> np.ndarray:
    """Return the kind of every sample, (N,) uint8: a place in SAMPLE_KINDS.

    Raises RunError for indexes that do not belong together.
    """
    blocks, num_blocks, owners = corpus.blocks, corpus.samples["num_blocks"], _owners(corpus)
    kinds = np.full(len(num_blocks), WITHOUT_MEDIA, dtype=np.uint8)
    kinds[owners[blocks["kind"] > 0]] = PAIR
    kinds[owners[blocks["kind"] == KINDS.index("video")]] = VIDEO_PAIR
    kinds[owners[blocks["position"] > 0]] = DOCUMENT
    kinds[num_blocks > 2] = DOCUMENT
    return kinds


def with_text(corpus: Corpus) -> np.ndarray:
    """Return which samples have a text, (N,) bool."""
    found = np.zeros(len(corpus.samples), dtype=bool)
    found[_owners(corpus)[corpus.blocks["kind"] == KINDS.index("text")]] = True
    return found


def _owners(corpus: Corpus) -> np.ndarray:
    """Return the sample of every block, (M,) uint32."""
    num_blocks = corpus.samples["num_blocks"]
    if int(num_blocks.sum(dtype=np.int64)) != len(corpus.blocks):
        raise RunError(f"{corpus.store.url}: its indexes do not belong together", hint=RESTORE)
    return np.repeat(np.arange(len(num_blocks), dtype=np.uint32), num_blocks)


def is_document(blocks: np.ndarray) -> bool:
    """Say whether a sample with these block records is a document; `kinds_of` says it of all samples at once."""
    return len(blocks) > 2 or bool((blocks["position"] > 0).any())


def choose_samples(corpus: Corpus, most: int, max_bytes: int = CHOSEN_BYTES) -> np.ndarray:
    """Return the indexes of samples chosen at random, the same each time, in order.

    most       how many at most
    max_bytes  fewer are chosen when they would have more bytes than this; one is chosen in any case
    """
    num = len(corpus.samples)
    chosen = np.random.default_rng(0).choice(num, min(most, num), replace=False)
    sizes = corpus.samples["length"][chosen].astype(np.int64) * TAR_BLOCK
    fit = int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right"))
    found: np.ndarray = np.sort(chosen[: max(1, fit)])
    return found


def read_samples(corpus: Corpus, indexes: Iterable[int]) -> Iterator[tuple[int, Future[Read]]]:
    """Read samples by several threads, ahead of whoever takes them; yield each index and what was read, in order.

    It is the result of a future: `result()` waits, and raises RunError for a sample that cannot be read.
    """
    lengths = corpus.samples["length"]
    ahead: deque[tuple[int, int, Future[Read]]] = deque()
    num_bytes = 0
    pool = ThreadPoolExecutor(THREADS, "read")
    try:
        for index in indexes:
            size = int(lengths[index]) * TAR_BLOCK
            while ahead and (num_bytes + size > AHEAD_BYTES or len(ahead) >= AHEAD_SAMPLES):
                done, freed, future = ahead.popleft()
                num_bytes -= freed
                yield done, future
            ahead.append((index, size, pool.submit(_read, corpus, index)))
            num_bytes += size
        while ahead:
            done, _, future = ahead.popleft()
            yield done, future
    finally:
        pool.shutdown(cancel_futures=True)


def _read(corpus: Corpus, index: int) -> Read:
    data = corpus.raw(index)
    return Read(data, corpus.cut(index, data))
