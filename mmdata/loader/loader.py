"""The loader: rows of samples in planned order, read ahead by threads, with a state of a few numbers."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Generic, TypeVar

from mmdata.errors import ConfigError
from mmdata.loader.plan import RowPlan
from mmdata.loader.read import Sample, read_sample
from mmdata.shards import Corpus
from mmdata.storage import digest_json

T = TypeVar("T")
PEEK = 1024
AHEAD = 8


@dataclass(frozen=True)
class LoaderState:
    """Where a loader stands: nothing is buffered, nothing is per worker.

    `upcoming` is a digest of the next 1,024 sample ids; restoring checks it, so a stream cannot silently change.
    """

    config: str
    window: int
    row: int
    upcoming: str

    def to_json(self) -> dict[str, object]:
        """Return the state as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Row(Generic[T]):
    """One packed row: what `transform` made of each sample, and the state after this row."""

    items: tuple[T, ...]
    samples: tuple[tuple[int, int], ...]  # (epoch, index)


class Loader(Generic[T]):
    """Iterates for ever over packed rows; `transform(sample, epoch)` turns each sample into what the trainer wants."""

    def __init__(
        self, corpus: Corpus, plan: RowPlan, transform: Callable[[Sample, int], T], *, config: str, threads: int = 1
    ) -> None:
        self.corpus, self.plan, self.transform = corpus, plan, transform
        self.config = digest_json([config, corpus.digest, plan.seed, plan.row_tokens, plan.window])
        self.window = self.row = 0
        self.wait_s = 0.0
        self._pool = ThreadPoolExecutor(threads, "read")
        self._ahead: deque[tuple[list[tuple[int, int]], list[Future[T]]]] = deque()
        self._source = self._rows(0, 0)

    def __iter__(self) -> Iterator[Row[T]]:
        return self

    def __next__(self) -> Row[T]:
        while len(self._ahead) < AHEAD:
            samples = next(self._source)
            self._ahead.append((samples, [self._pool.submit(self._one, *sample) for sample in samples]))
        samples, futures = self._ahead[0]
        started = time.monotonic()
        items = tuple(future.result() for future in futures)
        self.wait_s += time.monotonic() - started
        self._ahead.popleft()  # not before: a row that cannot be read stays the next one, and the state says so
        self._advance()
        return Row(items, tuple(samples))

    def state(self) -> LoaderState:
        """Return where the loader stands: the next row to come."""
        return LoaderState(self.config, self.window, self.row, self._upcoming(self.window, self.row))

    def restore(self, state: LoaderState) -> None:
        """Go to a state; one of another corpus, configuration or code is refused."""
        if state.config != self.config:
            raise ConfigError(
                "the loader's state is of another corpus or configuration",
                hint="use the corpus and the config it was saved with",
            )
        if state.upcoming != self._upcoming(state.window, state.row):
            raise ConfigError("the next samples are not those that were planned when the state was saved")
        for _, futures in self._ahead:
            for future in futures:
                future.cancel()
        self._ahead.clear()
        self.window, self.row = state.window, state.row
        self._source = self._rows(state.window, state.row)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, epoch: int, index: int) -> T:
        return self.transform(read_sample(self.corpus, index), epoch)

    def _rows(self, window: int, row: int) -> Iterator[list[tuple[int, int]]]:
        while True:
            yield from self.plan.rows(window)[row:]
            window, row = window + 1, 0

    def _advance(self) -> None:
        self.row += 1
        if self.row == len(self.plan.rows(self.window)):
            self.window, self.row = self.window + 1, 0

    def _upcoming(self, window: int, row: int) -> str:
        draws = (draw for samples in self._rows(window, row) for draw in samples)
        return digest_json([[epoch, self.corpus.sample_id(index)] for epoch, index in islice(draws, PEEK)])
