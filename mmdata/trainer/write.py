"""Sampling both ways, whatever the objectives: images from captions, captions from images, and documents that go on.

Text that is predicted token by token is read over a cache (reader.py); text behind masks needs the whole document at every
step (canvas.py). An image is written by its objective: code by code, from noise, or from masks. Each row has its own generator.

Axes: B rows, of one structure; C conditions: all, then without text, then without text and images.
"""

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from mmdata.errors import ConfigError
from mmdata.text.tokenizer import BOI, BOS, EOS, NULL
from mmdata.trainer.canvas import Canvas
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Block, Sequencer
from mmdata.trainer.model import Transformer
from mmdata.trainer.paths import path_of
from mmdata.trainer.reader import Reader
from mmdata.trainer.sampling import Randoms, draw, guide, maskgit, ode, renormed, reveal

PIXEL_LIMIT, LATENT_LIMIT = 1.0, 6.0  # numbers of images lie within


class Writer:
    """A model with all that sampling needs."""

    def __init__(self, model: Transformer, encoders: Encoders, sequencer: Sequencer) -> None:
        self.model, self.encoders, self.sequencer, self.config = model, encoders, sequencer, model.config

    @torch.inference_mode()
    def images(self, captions: Sequence[list[int]], randoms: Randoms) -> np.ndarray:
        """Return an image for each caption, (B, size, size, 3) uint8. The captions have one number of ids."""
        if self.config.image.objective == "none":
            raise ConfigError("`image.objective: none` generates no image", hint="train with another objective")
        scale = self.config.sampler.cfg
        scales = [] if scale == 1 else [scale]
        if self.config.mask == "full":
            values = self._canvas_images(captions, scales, randoms)
        else:
            reader = Reader(self.model, len(captions) * (1 + len(scales)))
            nulls = [[NULL] * len(ids) for ids in captions] if scales else []
            reader.text([[BOS, *ids] for ids in [*captions, *nulls]])
            values = self._image(reader, scales, randoms)
        return self.encoders.decode(values)

    @torch.inference_mode()
    def captions(self, images: np.ndarray, randoms: Randoms) -> list[list[int]]:
        """Return the ids of a caption for each image, (B, size, size, 3) uint8."""
        if self.config.mask == "full":
            return self._canvas_captions(images, randoms)
        reader = Reader(self.model, len(images))
        reader.text([[BOS]] * len(images))
        return self._text(reader, self._show(reader, images, made=False), randoms)

    @torch.inference_mode()
    def document(self, blocks: Sequence[Block], random: np.random.Generator, more: int = 4) -> list[Block]:
        """Go on with a document, text and images as they come; return at most so many new blocks.

        The model says itself where an image begins (boi) and where the document ends (eos). Guidance drops the texts, and by
        `cfg_image` also the images, that came before.
        """
        if self.config.mask == "full":
            raise ConfigError("`mask: full` fills slots and does not go on by itself", hint="ask for images or captions")
        config = self.config.sampler
        # What is dropped, one after the other: the texts, then the images too.
        drops = [(True, True), (False, True), (False, False)][
            : 1 if config.cfg == config.cfg_image == 1 else 2 + (config.cfg_image != 1)
        ]
        scales = [config.cfg, config.cfg_image][: len(drops) - 1]
        tracks = [self._track(blocks, texts=texts, images=images) for texts, images in drops]
        made: list[Block] = []
        logits, ids = tracks[0][1], list[int]()
        while len(made) < more:
            index = self._next(logits, random)
            if index in {EOS, BOI} or len(ids) >= config.max_text_tokens:
                made += [ids] if ids else []
                ids = []
                if index != BOI or self.config.image.objective == "none" or len(made) >= more:
                    break
                image = self._image_in(tracks, scales, random)
                made.append(image)
                logits = tracks[0][1]
                continue
            ids.append(index)
            for number, (reader, _) in enumerate(tracks):
                tracks[number] = reader, reader.text([[index if number == 0 else NULL]])
            logits = tracks[0][1]
        return made

    def _next(self, logits: Tensor, random: np.random.Generator) -> int:
        """Return the next id of text: never a code, for those come after boi alone."""
        return draw(logits[:, : self.model.sizes.vocab], self.config.sampler.temperature, [random])[0]

    def _track(self, blocks: Sequence[Block], *, texts: bool, images: bool) -> tuple[Reader, Tensor]:
        """Read a document under one condition."""
        reader = Reader(self.model, 1)
        logits, told = reader.text([[BOS]]), False
        for block in blocks:
            if not isinstance(block, np.ndarray):
                logits, told = (reader.text([block if texts else [NULL] * len(block)]) if block else logits), True
            elif images:
                logits = self._show(reader, self.sequencer.fit(block)[None], made=told)
            else:
                logits = reader.null_image()
        return reader, logits

    def _image_in(self, tracks: list[tuple[Reader, Tensor]], scales: list[float], random: np.random.Generator) -> np.ndarray:
        """Write an image after what each condition has read, let all of them read it, and return it."""
        # What is read while an image is being made is forgotten: the finished one is read instead.
        values = self._made(_Several([copy(reader) for reader, _ in tracks]), scales, [random])
        image = self.encoders.decode(values)
        for number, (reader, _) in enumerate(tracks):
            tracks[number] = reader, self._show(reader, image, made=True, values=values)
        found: np.ndarray = image[0]
        return found

    def _show(self, reader: Reader, images: np.ndarray, *, made: bool, values: Tensor | None = None) -> Tensor:
        """Read finished images as what follows them sees them; return the logits after.

        values   what was sampled, for a made image: its encoding may be another
        """
        pixels = torch.from_numpy(np.array(images)).to(reader.device)
        own = made and self.config.image.objective != "none"
        logits = None
        if own or not self.model.sizes.und_dim:
            logits = reader.image(self.encoders.encode(pixels) if values is None else values, made=made)
        if self.model.sizes.und_dim:
            logits = reader.features(self.encoders.understand(pixels))
        if logits is None:
            raise AssertionError("an image is read as itself or as its features")
        return logits

    def _text(self, reader: Reader, logits: Tensor, randoms: Randoms) -> list[list[int]]:
        """Write until eos, row by row."""
        vocab, config = self.model.sizes.vocab, self.config.sampler
        found: list[list[int]] = [[] for _ in randoms]
        going = [True] * len(randoms)
        for _ in range(config.max_text_tokens):
            ids = draw(logits[:, :vocab], config.temperature, randoms)
            going = [on and index not in {EOS, BOI} for on, index in zip(going, ids, strict=True)]
            if not any(going):
                break
            for row, index in enumerate(ids):
                if going[row]:
                    found[row].append(index)
            logits = reader.text([[index] for index in ids])
        return found

    def _image(self, reader: Reader, scales: list[float], randoms: Randoms) -> Tensor:
        return self._made(_Several([reader]), scales, randoms)

    def _made(self, source: "_Several", scales: list[float], randoms: Randoms) -> Tensor:
        """Write an image after what has been read: numbers (B, N, P) or codes (B, N)."""
        source.edge(BOI)
        if self.config.image.objective == "ar":
            return self._code_by_code(source, scales, randoms)
        return self._at_once(source.numbers, source.codes, scales, randoms)

    def _at_once(
        self, numbers: Callable[[Tensor, float], Tensor], codes: Callable[[Tensor, Tensor], Tensor], scales: list[float],
        randoms: Randoms,
    ) -> Tensor:  # fmt: skip
        """Write all tokens of an image together, from noise or from masks. Conditions are rows of what is predicted."""
        config, sizes, image = self.config.sampler, self.model.sizes, self.config.image
        rows, low, high = len(randoms), *config.cfg_interval
        if not image.continuous:
            return maskgit(lambda ids, masked: _guided(codes(ids, masked), rows, scales), sizes.tokens, randoms, config)

        def predict(x: Tensor, time: float) -> Tensor:
            given = numbers(x, time)
            found = _guided(given, rows, scales if low <= time <= high else [1.0] * len(scales))
            return renormed(found, given[:rows], config.renorm if scales else None)

        noise = np.stack([random.standard_normal((sizes.tokens, sizes.dim), dtype=np.float32) for random in randoms])
        start = torch.from_numpy(noise).to(self.model.embed.weight)
        limit = PIXEL_LIMIT if image.repr.gen == "pixel_patch" else LATENT_LIMIT
        return ode(predict, start, path_of(image), image.head, config, self.config.time.shift, limit)

    def _code_by_code(self, source: "_Several", scales: list[float], randoms: Randoms) -> Tensor:
        config, vocab = self.config.sampler, self.model.sizes.vocab
        logits, codes = source.logits, list[list[int]]()
        for place in range(self.model.sizes.tokens):
            guided = _guided(logits[:, vocab:], len(randoms), scales)
            codes.append(draw(guided, config.image_temperature, randoms, config.top_k))
            logits = source.code(codes[-1], place)
        return torch.tensor(codes, device=self.model.embed.weight.device).T

    def _canvas_images(self, captions: Sequence[list[int]], scales: list[float], randoms: Randoms) -> Tensor:
        size = self.config.image.size
        blank = np.zeros((size, size, 3), np.uint8)
        drops: list[set[int]] = [set(), *({0} for _ in scales)]
        canvas = self._canvas([[ids, blank] for ids in captions], 1, drops)
        return self._at_once(canvas.numbers, canvas.codes, scales, randoms)

    def _canvas_captions(self, images: np.ndarray, randoms: Randoms) -> list[list[int]]:
        canvas = self._canvas([[[], image] for image in images], 0, [set()])
        ids_BN = reveal(canvas.text, self.config.layout.max_text_tokens, randoms, self.config.sampler)
        return [ids[: ids.index(EOS)] if EOS in ids else ids for ids in ids_BN.tolist()]

    def _canvas(self, documents: list[list[Block]], hit: int, drops: list[set[int]]) -> Canvas:
        tokens = [self.sequencer.canvas(blocks, {hit}, drop) for drop in drops for blocks in documents]
        return Canvas(self.model, self.encoders, tokens)


class _Several:
    """Readers, one a condition or one for all conditions, as one source of predictions: conditions are rows, in order."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers
        self.logits = torch.zeros(0)

    def edge(self, index: int) -> None:
        self.logits = torch.cat([reader.edge(index) for reader in self.readers])

    def numbers(self, values: Tensor, time: float) -> Tensor:
        return torch.cat([reader.numbers(_repeat(values, reader), time) for reader in self.readers])

    def codes(self, ids: Tensor, masked: Tensor) -> Tensor:
        return torch.cat([reader.codes(_repeat(ids, reader), _repeat(masked, reader)) for reader in self.readers])

    def code(self, codes: list[int], place: int) -> Tensor:
        return torch.cat([reader.code(codes * (reader.rows // len(codes)), place) for reader in self.readers])


def _repeat(values: Tensor, reader: Reader) -> Tensor:
    return values.repeat(reader.rows // len(values), *[1] * (values.dim() - 1))


def _guided(given: Tensor, rows: int, scales: Sequence[float]) -> Tensor:
    return guide(given.view(-1, rows, *given.shape[1:]), scales) if scales else given
