"""A source of a mixture: one split of a corpus, or of several laid end to end, with the length of each sample.

Axes: D draws, N samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from mmdata.errors import ConfigError, did_you_mean
from mmdata.loader.order import Shuffle, places
from mmdata.loader.seeds import key_of
from mmdata.shards import Corpus, open_corpus

Corpora = str | Corpus | Mapping[str, "str | Corpus | Sequence[str | Corpus]"]


class Lengths(Protocol):
    """Says how many tokens each sample of a corpus takes; a state remembers its `version`."""

    @property
    def version(self) -> str:
        """Name what counts, and all that it depends on."""
        ...

    def __call__(self, corpus: Corpus, first: int, num: int) -> np.ndarray:
        """Return the most tokens that each of `num` samples from `first` on can take, (num,) int."""
        ...


@dataclass(frozen=True)
class Part:
    """Neighbouring samples of one corpus."""

    corpus: Corpus
    first: int
    num: int


@dataclass(frozen=True)
class Source:
    """What draws of one name are taken from.

    lengths_N  (N,) tokens of each sample, or null where each counts as 1
    most       draws there are in all, or null when epochs follow each other for ever
    """

    name: str
    parts: tuple[Part, ...]
    lengths_N: np.ndarray | None
    most: int | None
    key: int
    shuffle: Shuffle
    block: int

    @cached_property
    def num(self) -> int:
        """Samples in an epoch."""
        return sum(part.num for part in self.parts)

    @cached_property
    def size(self) -> int:
        """Tokens in an epoch."""
        return self.num if self.lengths_N is None else int(self.lengths_N.sum(dtype=np.int64))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(part.num for part in self.parts)], dtype=np.int64)

    def draw(self, first: int, num: int) -> np.ndarray:
        """Return the places of `num` draws from number `first` on, fewer when there are no more."""
        stop = first + num if self.most is None else min(first + num, self.most)
        return places(np.arange(first, max(first, stop), dtype=np.int64), self.num, self.key, self.shuffle, self.block)

    def lengths(self, places_D: np.ndarray) -> np.ndarray:
        """Return the tokens of each draw."""
        return np.ones(len(places_D), np.int64) if self.lengths_N is None else self.lengths_N[places_D].astype(np.int64)

    def locate(self, places_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which part each place lies in, and its index in that part's corpus."""
        part_D = np.searchsorted(self._starts, places_D, side="right") - 1
        firsts = np.asarray([part.first for part in self.parts], np.int64)
        return part_D, places_D - self._starts[part_D] + firsts[part_D]


@dataclass(frozen=True)
class Reading:
    """How every source is read: the split, the lengths, the epochs by name, the order."""

    split: str
    lengths: Lengths | None
    epochs: Callable[[str], float | None]
    seed: int
    shuffle: Shuffle
    block: int


def sources_of(corpora: Corpora, reading: Reading) -> tuple[Source, ...]:
    """Open what is named, by names in alphabetical order; a single corpus is called `corpus`.

    Raises ConfigError for a split that is not there, an empty one, or a number of epochs that is not above 0.
    """
    named = corpora if isinstance(corpora, Mapping) else {"corpus": corpora}
    if not named:
        raise ConfigError("no corpus is given", hint="name at least one: Loader({'web': 'runs/web/corpus'})")
    return tuple(_source(name, _opened(named[name]), reading) for name in sorted(named))


def _source(name: str, corpora: list[Corpus], reading: Reading) -> Source:
    parts = tuple(part for corpus in corpora if (part := part_of(corpus, reading.split)).num)
    num = sum(part.num for part in parts)
    if not num:
        raise ConfigError(
            f"`{name}` has no sample to draw from: the split `{reading.split}` is empty",
            hint="train on another, or keep more rows",
        )
    lengths = None
    if reading.lengths is not None:
        lengths = np.concatenate([reading.lengths(part.corpus, part.first, part.num) for part in parts])
    epochs = reading.epochs(name)
    if epochs is not None and not epochs > 0:
        raise ConfigError(f"`{name}` is drawn for {epochs} epochs", hint="leave it out of the mixture, or give more than 0")
    most = None if epochs is None else max(1, round(epochs * num))
    return Source(name, parts, lengths, most, key_of(reading.seed, name, "order"), reading.shuffle, reading.block)


def part_of(corpus: Corpus, split: str) -> Part:
    """Return the samples of a split: they lie next to each other."""
    if split not in corpus.splits:
        raise ConfigError(f"{corpus.store.url}: the corpus has no split `{split}`", hint=did_you_mean(split, corpus.splits))
    mine = [number for number, shard in enumerate(corpus.manifest.shards) if shard.split == split]
    if not mine:
        return Part(corpus, 0, 0)
    if mine != list(range(mine[0], mine[-1] + 1)):
        raise ConfigError(f"{corpus.store.url}: the shards of `{split}` do not lie next to each other", hint="build it anew")
    first, last = corpus.first_samples[mine[0]], corpus.first_samples[mine[-1] + 1]
    return Part(corpus, int(first), int(last - first))


def _opened(given: "str | Corpus | Sequence[str | Corpus]") -> list[Corpus]:
    """Open a corpus, a list of them, or a pattern such as `corpora/web-{000..007}`."""
    from braceexpand import braceexpand

    if isinstance(given, Corpus):
        return [given]
    if isinstance(given, str):
        return [open_corpus(url) for url in braceexpand(given)]
    return [corpus for one in given for corpus in _opened(one)]
