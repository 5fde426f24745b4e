"""Token counts of a corpus: counted once, kept beside its index, named by what counted them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import xxhash

from mmdata.errors import MmdataError, RunError
from mmdata.loader.fetch import Fetcher
from mmdata.loader.sample import Sample
from mmdata.shards import Corpus
from mmdata.storage import digest_json

CHUNK = 256


@dataclass(frozen=True)
class TokenCounts:
    """Lengths by a function of a sample that reads its texts and the sizes of its blocks, but no pixels.

    version  names the function and all that it depends on, such as the tokenizer's digest
    count    returns the most tokens that a sample can take
    threads  how many read

    Counts are kept as `index/tokens-DIGEST.npy` where the corpus can be written to; the last two numbers are their xxh3.
    """

    version: str
    count: Callable[[Sample], int]
    threads: int = 1

    def __call__(self, corpus: Corpus, first: int, num: int) -> np.ndarray:
        """Return the tokens of `num` samples from `first` on, (num,) int32."""
        name = f"index/tokens-{digest_json([self.version, corpus.digest, first, num])[:32]}.npy"
        kept = _kept(corpus, name, num)
        if kept is not None:
            return kept
        found = self._counted(corpus, first, num)
        buffer = BytesIO()
        np.save(buffer, np.concatenate([found, _seal(found)]), allow_pickle=False)
        with suppress(OSError, MmdataError):  # a corpus that can only be read is counted anew each time
            corpus.store.create_same(name, buffer.getvalue())
        return found

    def _counted(self, corpus: Corpus, first: int, num: int) -> np.ndarray:
        fetcher = Fetcher([corpus])

        def some(at: int) -> list[int]:
            index_D = np.arange(at, min(at + CHUNK, first + num))
            datas = fetcher.read(np.zeros(len(index_D), np.int64), index_D)
            return [self._one(corpus, int(index), data) for index, data in zip(index_D, datas, strict=True)]

        try:
            with ThreadPoolExecutor(self.threads, "count") as pool:
                counts = [count for part in pool.map(some, range(first, first + num, CHUNK)) for count in part]
        finally:
            fetcher.close()
        return np.asarray(counts, np.int32)

    def _one(self, corpus: Corpus, index: int, data: bytes | RunError) -> int:
        if isinstance(data, RunError):
            raise data
        return self.count(Sample(corpus, index, "corpus", 0, data))


def _kept(corpus: Corpus, name: str, num: int) -> np.ndarray | None:
    """Return counts that are whole; null where there are none."""
    try:
        found = np.load(BytesIO(corpus.store.read(name)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if found.dtype != np.int32 or found.shape != (num + 2,) or not np.array_equal(found[-2:], _seal(found[:-2])):
        return None
    return np.asarray(found[:-2])


def _seal(counts: np.ndarray) -> np.ndarray:
    return np.frombuffer(xxhash.xxh3_64_digest(counts.astype(np.int32).tobytes()), dtype=np.int32)
