"""What the trained model makes: images from captions it learnt and from held-out ones, captions of held-out images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmdata.loader import Sample, read_sample
from mmdata.report.sheet import contact_sheet
from mmdata.shards import Corpus, open_corpus
from mmdata.trainer.checkpoint import open_checkpoint
from mmdata.trainer.use import Generator

NUM = 8
HEADS = ("generated", "true", "nearest in training")


class Pair(NamedTuple):
    """A pair at the model's own size."""

    caption: str
    image: np.ndarray


def make_samples(corpus_url: str, checkpoint: Path, out: Path) -> list[tuple[str, str]]:
    """Write the sheet of samples; return (true caption, generated caption) of held-out images."""
    corpus, generator = open_corpus(corpus_url), Generator.load(open_checkpoint(checkpoint))
    training, held_out = (_pairs(corpus, split, generator) for split in ("train", "val"))
    known = np.stack([pair.image for pair in training]).astype(np.float32)

    def item(pair: Pair) -> tuple[list[np.ndarray], str]:
        (made,) = generator.images([pair.caption])
        nearest = training[int(np.square(known - made).mean((1, 2, 3)).argmin())].image
        return [made, pair.image, nearest], pair.caption

    told = generator.captions([pair.image for pair in held_out[:NUM]])
    captions = [(pair.caption, made) for pair, made in zip(held_out, told, strict=False)]
    groups = [
        ("captions of the training set", [item(pair) for pair in training[:NUM]]),
        ("held-out captions", [item(pair) for pair in held_out[:NUM]]),
    ]
    foot = [f"captions of held-out images: true '{true}'  ->  generated '{made}'" for true, made in captions]
    contact_sheet(out, "What the model makes", groups, HEADS, foot)
    return captions


def _pairs(corpus: Corpus, split: str, generator: Generator) -> list[Pair]:
    indexes = np.flatnonzero(corpus.samples["split"] == corpus.splits.index(split))
    samples = (read_sample(corpus, int(index)) for index in indexes)
    return [_pair(sample, generator) for sample in samples if "blocks" not in sample.meta]


def _pair(sample: Sample, generator: Generator) -> Pair:
    image = next(block.image for block in sample.blocks if block.image is not None)
    text = next((block.text for block in sample.blocks if block.text is not None), "")
    return Pair(text, generator.sequencer.fit(image))
