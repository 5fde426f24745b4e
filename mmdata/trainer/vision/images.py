"""Images of a corpus for tokenizers: fitted into a square, without their texts.

Axes: B images, S side of the square.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmdata.errors import ConfigError
from mmdata.loader import Loader, Options, Sample, part_of
from mmdata.shards import KINDS, Corpus
from mmdata.trainer.vision.pixels import fit_square


def num_images(corpus: Corpus, split: str) -> int:
    """Return how many images a split has: 0 where there is no such split."""
    if split not in corpus.splits:
        return 0
    part = part_of(corpus, split)
    if not part.num:
        return 0
    last = corpus.samples[part.first + part.num - 1]
    start, stop = int(corpus.samples[part.first]["first_block"]), int(last["first_block"]) + int(last["num_blocks"])
    return int((corpus.blocks[start:stop]["kind"] == KINDS.index("image")).sum())


def check_images(corpus: Corpus, split: str) -> int:
    """Return how many images a split has; ConfigError when there is none to train on."""
    part_of(corpus, split)
    num = num_images(corpus, split)
    if not num:
        raise ConfigError(
            f"{corpus.store.url}: no image in the split `{split}`", hint="give a corpus with images, or another `split`"
        )
    return num


class Squares:
    """The loader's transform: the images of a sample as squares, at most one of them, drawn, where `single`."""

    def __init__(self, size: int, *, single: bool) -> None:
        self.size, self.single = size, single
        self.version = f"squares-1-{size}-{single}"

    def __call__(self, sample: Sample, random: np.random.Generator) -> list[np.ndarray]:
        """Return (S, S, 3) uint8 each; none for a sample without an image."""
        images = [block.image for block in sample.blocks if block.image is not None]
        if self.single and images:
            images = [images[int(random.integers(len(images)))]]
        return [fit_square(image, self.size) for image in images]


def drawn(corpus: Corpus, split: str, size: int, *, batch: int, seed: int) -> Loader[list[np.ndarray]]:
    """Return a loader over a split for ever, in an order of the seed: one image of each sample."""
    options = Options(split=split, batch_size=batch, seed=seed, threads=1, ahead=4 * batch)
    return Loader(corpus, options=options, transform=Squares(size, single=True))


def next_images(loader: Loader[list[np.ndarray]]) -> Tensor:
    """Return the images of the next step that has any, (B, S, S, 3) uint8; a sample without one makes B smaller."""
    while True:
        images = [image for item in next(loader).items for image in item]
        if images:
            return torch.from_numpy(np.stack(images))


def all_images(corpus: Corpus, split: str, size: int, *, batch: int) -> Iterator[Tensor]:
    """Yield every image of a split once, as they lie, about `batch` at a time: (B, S, S, 3) uint8."""
    options = Options(split=split, batch_size=batch, epochs=1, shuffle="none", threads=1, ahead=4 * batch)
    with Loader(corpus, options=options, transform=Squares(size, single=False)) as loader:
        for step in loader:
            images = [image for item in step.items for image in item]
            if images:
                yield torch.from_numpy(np.stack(images))
