"""Evaluation in the loop, both directions: fixed pairs, fixed noise, averaged weights, and an interval with every figure.

    caption_exact, caption_cider     captions of images against the true ones
    image_nearest                    share of generated images that are nearest to the image of their own caption
    image_frechet                    distance of generated images to true ones, in features of a network that filters nothing
    clip_image, clip_caption         a scorer's cosine of what was made and what it was made from
    caption_nats, caption_bits       nats a caption, bits a token of it; image_bits a code; image_error of numbers
    retrieval                        chance that the model holds the true caption for likelier than others

Each for `val/...`, held out, and `seen/...`, from the training split. Pictures of a few go to `samples/step-NNNNNN/`.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmdata.errors import ConfigError
from mmdata.loader import Sample, part_of, read_sample
from mmdata.models import Scorer
from mmdata.models.efficientnet import EfficientNet
from mmdata.shards import Corpus
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Sequencer
from mmdata.trainer.likelihood import Pair, Scoring
from mmdata.trainer.metrics import (
    Estimate,
    bits_per_token,
    cider,
    exact_match,
    frechet_distance,
    gaussian,
    judged_by,
    mean,
    nearest,
    ranks,
    share,
)  # fmt: skip
from mmdata.trainer.model import Transformer
from mmdata.trainer.use import Generator

SHOWN = 16  # pictures of a step that are kept
SAMPLES = "samples"


@dataclass(frozen=True)
class Questions:
    """The pairs of a split that are always asked, and images among which the nearest is looked for."""

    name: str
    pairs: list[Pair]
    candidates: np.ndarray


class Evaluation:
    """What is asked of a model at a step. Raises ConfigError where the scorer is the one that the corpus was filtered by."""

    def __init__(self, config: TrainConfig, corpus: Corpus, sequencer: Sequencer) -> None:
        self.config, self.settings, self.sequencer = config, config.evaluate, sequencer
        self.questions = [found for found in self._questions(corpus) if found.pairs]
        self._open = ExitStack()
        self.scorer = self._scorer(corpus)
        self.features = EfficientNet(threads=config.threads or 1) if self.settings.frechet else None

    def close(self) -> None:
        """Let the scorer go."""
        self._open.close()

    def __call__(self, model: Transformer, encoders: Encoders, out: Path | None, step: int) -> dict[str, float]:
        """Return the figures of a model by name; with `out`, write pictures there."""
        generator = Generator(model, encoders, self.sequencer)
        scoring = Scoring(model, encoders, self.sequencer, self.config.seed)
        found: dict[str, float] = {}
        for asked in self.questions:
            for name, figure in self._ask(asked, generator, scoring, out, step):
                found |= figure.flat(f"{asked.name}/{name}") if isinstance(figure, Estimate) else {f"{asked.name}/{name}": figure}
        return found

    def _ask(
        self, asked: Questions, generator: Generator, scoring: Scoring, out: Path | None, step: int
    ) -> Iterator[tuple[str, Estimate | float]]:
        captions, images = [caption for caption, _ in asked.pairs], [image for _, image in asked.pairs]
        told = generator.captions(images, self.config.seed)
        yield "caption_exact", share(int(exact_match(told, captions).sum()), len(told))
        yield "caption_cider", mean(cider(told, [[caption] for caption in captions]), "cider")
        if self.scorer is not None:
            yield "clip_caption", mean(self.scorer.score(images, told), "clip_caption")
        if self.config.image.objective != "none":
            made = generator.images(captions, self.config.seed)
            yield from self._made(asked, made)
            if out is not None and asked is self.questions[0]:
                write_samples(out / SAMPLES / f"step-{step:06d}", made[:SHOWN], captions)
        yield from self._likelihood(asked, scoring)

    def _made(self, asked: Questions, made: list[np.ndarray]) -> Iterator[tuple[str, Estimate | float]]:
        captions, true = [caption for caption, _ in asked.pairs], np.stack([image for _, image in asked.pairs])
        right = nearest(np.stack(made), asked.candidates) == nearest(true, asked.candidates)
        yield "image_nearest", share(int(right.sum()), len(made))
        if self.features is not None and len(made) > 1:
            ours, theirs = (gaussian(self.features.features(list(part))) for part in (made, true))
            yield "image_frechet", frechet_distance(ours, theirs)
        if self.scorer is not None:
            yield "clip_image", mean(self.scorer.score(made, captions), "clip_image")

    def _likelihood(self, asked: Questions, scoring: Scoring) -> Iterator[tuple[str, Estimate | float]]:
        losses = scoring.losses(asked.pairs, self.settings.draws)
        yield "caption_nats", mean(losses.text_N, "caption_nats")
        yield "caption_bits", bits_per_token(float(losses.text_N.sum()), max(int(losses.text_tokens_N.sum()), 1))
        total, tokens = float(losses.image_N.sum()), max(int(losses.image_tokens_N.sum()), 1)
        if self.config.image.objective != "none":
            yield (
                ("image_error", total / tokens) if self.config.image.continuous else ("image_bits", bits_per_token(total, tokens))
            )
        asked_of = asked.pairs[: self.settings.retrieval]
        if len(asked_of) > 1:
            captions = [caption for caption, _ in asked_of]
            similar = scoring.captions([image for _, image in asked_of], captions, self.settings.draws)
            yield "retrieval", mean(ranks(similar, captions, captions).first_N, "retrieval")

    def _questions(self, corpus: Corpus) -> Iterator[Questions]:
        config = self.config
        seen = self._pairs(corpus, config.split)
        held = self._pairs(corpus, config.val_split) if config.val_split in corpus.splits else []
        for name, pairs in (("val", held), ("seen", seen)):
            if pairs:
                distinct = {image.tobytes(): image for _, image in [*pairs, *held, *seen]}
                yield Questions(name, pairs, np.stack(list(distinct.values())))

    def _pairs(self, corpus: Corpus, split: str | None) -> list[Pair]:
        """Return the first pairs of a split whose captions and images are new."""
        part, found, known = part_of(corpus, split or ""), list[Pair](), set[str]()
        for index in range(part.first, part.first + part.num):
            pair = pair_of(read_sample(corpus, index))
            if pair is not None and pair[0] not in known:
                known.add(pair[0])
                found.append((pair[0], self.sequencer.fit(pair[1])))
            if len(found) == self.settings.samples:
                break
        return found

    def _scorer(self, corpus: Corpus) -> Scorer | None:
        spec = self.settings.scorer
        if spec is None:
            return None
        made_by_it = judged_by(_makers(corpus), spec.digests())
        if made_by_it:
            raise ConfigError(
                f"`evaluate.scorer` {spec.label()} also made `{made_by_it[0]}`, by which the corpus may have been filtered",
                hint="judge by another model, such as {conse: {}}, or by none: `scorer: null`",
            )
        return self._open.enter_context(spec.open("cpu", self.config.threads or 1))


def _makers(corpus: Corpus) -> dict[str, dict[str, object]]:
    found = corpus.facts.get("makers")
    return found if isinstance(found, dict) else {}


def pair_of(sample: Sample) -> Pair | None:
    """Return the caption and the image of a sample; null for a document."""
    texts = [block.text for block in sample.blocks if block.text is not None]
    images = [block.image for block in sample.blocks if block.image is not None]
    return (texts[0], images[0]) if len(texts) == len(images) == 1 else None


def write_samples(folder: Path, images: list[np.ndarray], captions: list[str]) -> None:
    """Write generated images and what they were made from."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:02d}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    told = dict(zip(names, captions, strict=False))
    (folder / "captions.json").write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")


@contextmanager
def evaluating(config: TrainConfig, corpus: Corpus, sequencer: Sequencer) -> Iterator[Evaluation | None]:
    """Open the evaluation of a config, if it asks for one."""
    if not config.evaluate.samples:
        yield None
        return
    found = Evaluation(config, corpus, sequencer)
    try:
        yield found
    finally:
        found.close()
