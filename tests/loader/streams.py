"""Two corpora, a loader over them, and the hash of its ordered stream."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mmdata.loader import Batch, Loader, Options, Sample, TokenCounts

MIXTURE = [(0, {"a": 0.7, "b": 0.3}), (6, {"a": 0.4, "b": 0.6})]
OPTIONS = Options(batch_size=8, row_tokens=60, epochs=2, window=70, seed=3, ahead=40, decode=False)


class Tagged:
    """A transform whose result says which sample it was, how often it came, and what its generator drew."""

    version = "1"

    def __call__(self, sample: Sample, random: np.random.Generator) -> str:
        return f"{sample.source}/{sample.index}/{sample.epoch}/{sample.texts[0]}/{random.integers(1 << 30)}"


def count(sample: Sample) -> int:
    """Count a sample as if an image were 9 tokens and a letter one."""
    return 9 + sum(len(text) for text in sample.texts)


def mixed(corpora: dict[str, str], mixture: Any = MIXTURE, transform: Any = None, **changes: Any) -> Loader[str]:  # noqa: ANN401
    from dataclasses import replace

    options = replace(OPTIONS, **changes)
    return Loader(corpora, mixture, options, transform=transform or Tagged(), lengths=TokenCounts("letters", count))


def rows_of(batches: Iterable[Batch[str]]) -> list[list[tuple[str, ...]]]:
    """Return the rows of each step."""
    return [batch.rows for batch in batches]


def merged(ranks: list[list[list[tuple[str, ...]]]]) -> list[list[tuple[str, ...]]]:
    """Put the rows of all ranks together again: row r of a step was rank r mod world's."""
    steps = []
    for parts in zip(*ranks, strict=True):
        rows: list[tuple[str, ...]] = [()] * sum(len(part) for part in parts)
        for rank, part in enumerate(parts):
            rows[rank :: len(ranks)] = part
        steps.append(rows)
    return steps


def digest(steps: list[list[tuple[str, ...]]]) -> str:
    """Return a hash of an ordered stream: which samples, in which rows, of which steps, with what drawn for them."""
    return hashlib.sha256(repr(steps).encode()).hexdigest()
