"""The loader: batches in planned order, read ahead by threads, with a state of a few numbers.

    loader = Loader("runs/web/corpus", options=Options(batch_size=64, epochs=1))
    for batch in loader:
        for sample in batch.items: ...

Every rank plans the whole order and reads its own rows of each step: row r of a step is rank r mod world's. So all ranks get
the same number of steps, and a state saved by one is the state of all. The last step of a stream that ends is what is left of it:
it may be smaller, on some ranks empty; with `last: drop` it is left out.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast, overload

import numpy as np

from mmdata.errors import ConfigError, RunError
from mmdata.loader.batch import Batch, Chunk
from mmdata.loader.fetch import Fetcher
from mmdata.loader.mixture import Weights, mixture_of
from mmdata.loader.options import Options, Transform, check_options
from mmdata.loader.plan import Plan, Start, Step, Window
from mmdata.loader.sample import Drawing, Sample
from mmdata.loader.seeds import keyed
from mmdata.loader.source import Corpora, Lengths, Reading, sources_of
from mmdata.loader.state import PEEK, LoaderState
from mmdata.loader.stats import Meter, Stats
from mmdata.storage import digest_json

T = TypeVar("T")
CHUNK = 64  # samples that a thread takes at once


class _Failure(NamedTuple):
    """What a transform raised."""

    error: Exception


@dataclass
class _Group:
    """The draws of neighbouring steps, read together however small a step is: chunks, and a result of each on its way."""

    draws: Chunk
    chunks: list[Chunk]
    results: "list[Future[list[Any]]]"
    made: list[Any] | None = None


class _Ahead(NamedTuple):
    """A step on its way: the sizes of this rank's rows, and where its samples are in its group."""

    step: Step
    sizes: np.ndarray
    group: _Group
    first: int
    last: int


class Loader(Generic[T]):
    """Iterates over batches, for ever or for a number of epochs.

    corpora    a corpus or its folder, a pattern such as `corpora/web-{000..007}`, or several by name
    mixture    weights by name, or a list of (from_step, weights); without one each source has the share of its size. Shares are
               of tokens where there are `lengths`, else of samples
    transform  what becomes of each sample; without one the sample itself
    lengths    tokens of each sample

    Raises ConfigError for settings that do not fit each other or the corpora.
    """

    @overload
    def __init__(
        self: "Loader[Sample]",
        corpora: Corpora,
        mixture: Weights | Sequence[tuple[int, Weights]] | None = None,
        options: Options | None = None,
        *,
        lengths: Lengths | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        corpora: Corpora,
        mixture: Weights | Sequence[tuple[int, Weights]] | None = None,
        options: Options | None = None,
        *,
        transform: Transform[T],
        lengths: Lengths | None = None,
    ) -> None: ...

    def __init__(
        self,
        corpora: Corpora,
        mixture: Weights | Sequence[tuple[int, Weights]] | None = None,
        options: Options | None = None,
        *,
        transform: Transform[T] | None = None,
        lengths: Lengths | None = None,
    ) -> None:
        self.options = options = options or Options()
        check_options(options, lengths)
        reading = Reading(options.split, lengths, options.epochs_of, options.seed, options.shuffle, options.block)
        self.sources = sources_of(corpora, reading)
        names = [source.name for source in self.sources]
        chosen = mixture_of(names, mixture, [source.size for source in self.sources])
        self.plan = Plan(self.sources, chosen, options.batch_size, options.row_tokens, options.window)
        self.transform = transform
        self.config = {
            **options.remembered(),
            "corpora": {source.name: [part.corpus.digest for part in source.parts] for source in self.sources},
            "lengths": lengths.version if lengths is not None else None,
            "transform": getattr(transform, "version", None),
        }
        self._corpora = [part.corpus for source in self.sources for part in source.parts]
        self._names = [source.name for source in self.sources for _ in source.parts]
        self._known = tuple((name, corpus.store.url) for name, corpus in zip(self._names, self._corpora, strict=True))
        self._meter = Meter()
        block = options.block if options.shuffle != "samples" else 1
        self._fetcher = Fetcher(self._corpora, options.cache, block, options.verify)
        self._pool = ThreadPoolExecutor(options.threads, "read") if options.threads else None
        self._ahead: deque[_Ahead] = deque()
        self._num_bad = 0
        self._drawing = Drawing(options.captions, options.seed) if options.captions is not None else None
        self._steps: Iterator[Step]
        self._go((self.plan.first, 0))

    def __iter__(self) -> Iterator[Batch[T]]:
        return self

    def __next__(self) -> Batch[T]:
        self._meter.start()
        with self._meter.time("wait"):
            self._read_ahead()
            if not self._ahead:
                raise StopIteration
            batch = self._batch(self._ahead[0])
        # Not before: a step that cannot be read stays the next one, and the state says so.
        ahead = self._ahead.popleft()
        self._num_ahead -= ahead.last - ahead.first
        self._num_bad += len(batch.bad)
        self._at, self.step = ahead.step.after, ahead.step.number + 1
        self._meter.count(batches=1, samples=len(batch.items), bad=len(batch.bad))
        return batch

    def __len__(self) -> int:
        """Return the steps of the whole stream; TypeError when it does not end."""
        return self._length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead, and close all files."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._fetcher.close()

    def stats(self) -> Stats:
        """Return where the time went so far."""
        return self._meter.read()

    def state(self) -> LoaderState:
        """Return where the loader stands: the next step to come. It is the same on every rank."""
        start, row = self._at
        window = self.plan.window(start)
        return LoaderState(self.config, self._past(window.planned), start, row, self._upcoming(start, row))

    def restore(self, state: LoaderState | Mapping[str, Any] | str | bytes) -> None:
        """Go to a state; ConfigError, by name, when it is damaged or the order depends on something else now."""
        state = LoaderState.from_json(state)
        state.check(self.config)
        window = self.plan.window(state.start)
        if state.past != self._past(window.planned):
            end = window.end.first_row if window.end is not None else state.start.first_row + window.num_rows
            raise ConfigError(
                "the loader's state was saved with other settings: `mixture` gives other weights to steps already planned",
                hint=f"leave the weights up to step {-(-end // self.options.batch_size)} as they were",
            )
        if state.upcoming != self._upcoming(state.start, state.row):
            raise ConfigError(
                "the next samples are not those that were planned when the state was saved",
                hint="restore it with the mmdata that saved it",
            )
        self._go((state.start, state.row))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values: the protocol of torchdata's StatefulDataLoader."""
        return self.state().to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to what `state_dict` returned."""
        self.restore(state)

    def share(self, number: int, workers: int) -> None:
        """From here on make only every `workers`-th step, from the `number`-th on: the others are other workers'."""
        self._steps = islice(self._steps, number, None, workers)

    def skip(self, steps: int = 1) -> None:
        """Go on without reading: for whoever reads the same steps elsewhere, such as a worker process."""
        start, row = self._at
        for step in islice(self.plan.steps(start, row), steps):
            start, row = step.after
        self._go((start, row))

    @cached_property
    def _length(self) -> int:
        if any(source.most is None for source in self.sources):
            raise TypeError("a loader without `epochs` has no length")
        return sum(1 for step in self.plan.steps(self.plan.first) if self._counts(step))

    def _counts(self, step: Step) -> bool:
        return self.options.last == "short" or step.num_rows == self.options.batch_size

    def _go(self, place: tuple[Start, int]) -> None:
        for ahead in self._ahead:
            for result in ahead.group.results:
                result.cancel()
        self._ahead.clear()
        self._num_ahead = 0
        self._at = place
        self.step = (place[0].first_row + place[1]) // self.options.batch_size
        self._steps = (step for step in self.plan.steps(*place) if self._counts(step))

    def _read_ahead(self) -> None:
        limit = self.options.ahead if self._pool is not None else 0
        while not self._ahead or self._num_ahead < limit:
            with self._meter.time("plan"):
                if not self._plan_group():
                    return

    def _plan_group(self) -> bool:
        """Hand this rank's rows of the next steps to the threads; false when there is no step."""
        steps: list[tuple[Step, np.ndarray]] = []
        drawn: list[tuple[Window, np.ndarray]] = []
        num = 0
        for step in self._steps:
            spans = [(span.window, *span.draws()) for span in step.of_rank(self.options.rank, self.options.world)]
            drawn += [(window, draws_D) for window, draws_D, _ in spans]
            sizes = spans[0][2] if len(spans) == 1 else np.concatenate([sizes_R for _, _, sizes_R in spans])
            steps.append((step, sizes))
            num += sum(len(draws_D) for _, draws_D, _ in spans)
            if num >= CHUNK:
                break
        if not steps:
            return False
        draws = _columns(drawn)
        chunks = [Chunk(*(column[at : at + CHUNK] for column in draws)) for at in range(0, num, CHUNK)]
        group = _Group(draws, chunks, [self._pool.submit(self._make, chunk) for chunk in chunks] if self._pool else [])
        first = 0
        for step, sizes in steps:
            last = first + int(sizes.sum())
            self._ahead.append(_Ahead(step, sizes, group, first, last))
            first = last
        self._num_ahead += num
        return True

    def _make(self, chunk: Chunk) -> list[Any]:
        """Read, decode and transform some samples; what is damaged is an error in its place."""
        started = time.perf_counter()
        datas = self._fetcher.read(chunk.corpus_D, chunk.index_D)
        self._meter.add("read", time.perf_counter() - started)
        decode_s = transform_s = 0.0
        made: list[Any] = []
        corpora, names, drawing = self._corpora, self._names, self._drawing
        lazy = self.transform is None and not self.options.decode
        for data, corpus, index, epoch in zip(
            datas, chunk.corpus_D.tolist(), chunk.index_D.tolist(), chunk.epoch_D.tolist(), strict=True
        ):
            if isinstance(data, RunError):
                made.append(data)
                continue
            sample = Sample(corpora[corpus], index, names[corpus], epoch, data, drawing)
            if lazy:
                made.append(sample)
                continue
            before = time.perf_counter()
            error = self._decoded(sample)
            after = time.perf_counter()
            made.append(sample if error is None and self.transform is None else error or self._transformed(sample))
            decode_s, transform_s = decode_s + after - before, transform_s + time.perf_counter() - after
        self._meter.add("decode", decode_s)
        self._meter.add("transform", transform_s)
        self._meter.count(bytes=sum(len(data) for data in datas if isinstance(data, bytes)))
        return made

    def _decoded(self, sample: Sample) -> RunError | None:
        try:
            _ = sample.blocks if self.options.decode else None
        except RunError as error:
            return error
        return None

    def _transformed(self, sample: Sample) -> Any:  # noqa: ANN401 - T, or what went wrong
        assert self.transform is not None
        try:
            return self.transform(sample, keyed(self.options.seed, sample.epoch, sample.sample_id, "transform"))
        except RunError as error:
            return error
        except Exception as error:  # noqa: BLE001 - it is raised when its step comes
            error.add_note(f"in the transform of {sample.corpus.where(sample.index)}, epoch {sample.epoch}")
            return _Failure(error)

    def _made(self, group: _Group) -> list[Any]:
        if group.made is None:
            parts = [result.result() for result in group.results] if self._pool else map(self._make, group.chunks)
            group.made = [item for part in parts for item in part]
        return group.made

    def _batch(self, ahead: _Ahead) -> Batch[T]:
        made = self._made(ahead.group)[ahead.first : ahead.last]
        for item in made if self.transform is not None else ():
            if isinstance(item, _Failure):
                raise item.error
        bad = [item for item in made if isinstance(item, RunError)]
        if bad and self._num_bad + len(bad) > self.options.bad_samples:
            raise bad[0]
        ends = np.cumsum(ahead.sizes)
        if bad:
            good = np.cumsum([0, *(not isinstance(item, RunError) for item in made)])
            ends = good[ends]
        items = tuple(cast(T, item) for item in made if not isinstance(item, RunError)) if bad else tuple(made)
        told = tuple(str(error) for error in bad)
        draws = Chunk(*(column[ahead.first : ahead.last] for column in ahead.group.draws))
        return Batch(ahead.step.number, items, (0, *ends.tolist()), told, draws, self._known)

    def _past(self, planned: int) -> str:
        return digest_json([self.plan.mixture.names, self.plan.mixture.entries[: planned + 1]])

    def _upcoming(self, start: Start, row: int) -> str:
        """Return a digest of the next samples of a window, their ids and epochs: what comes after it may still change."""
        window = self.plan.window(start)
        draws_D = window.order_D[window.starts_R[row] :][:PEEK]
        found = hashlib.sha256(window.corpus_D[draws_D].tobytes() + window.epoch_D[draws_D].tobytes())
        for number in np.unique(window.corpus_D[draws_D]):
            mine = draws_D[window.corpus_D[draws_D] == number]
            found.update(self._corpora[number].sample_ids[window.index_D[mine]].tobytes())
        return found.hexdigest()


def _columns(drawn: list[tuple[Window, np.ndarray]]) -> Chunk:
    """Look draws up in their windows: which corpus, which index in it, which epoch."""
    parts = []
    for _, some in groupby(drawn, key=lambda one: id(one[0])):
        spans = list(some)
        window, draws_D = spans[0][0], np.concatenate([draws_D for _, draws_D in spans])
        parts.append((window.corpus_D[draws_D], window.index_D[draws_D], window.epoch_D[draws_D]))
    if len(parts) == 1:
        return Chunk(*parts[0])
    return Chunk(*(np.concatenate(column) for column in zip(*parts, strict=True)))
