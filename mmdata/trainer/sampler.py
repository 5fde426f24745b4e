"""Sampling both ways, over one cache of what has been read.

Image: Euler or Heun from noise to image along the predicted velocity, with guidance; the prompt is read once. Whoever goes
on after an image reads it clean (`Reader.image`), so that text after it sees what training showed it (BAGEL).
Text: one token at a time until eos.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmdata.text.tokenizer import BOI, BOS, EOI, EOS, NULL
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.model import Cache, Transformer


class Reader:
    """A document being read or written: the cache of the model, and the next position."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.cache = Cache()
        self.pos = 0
        self.length = 0

    def text(self, ids: list[int], *, pos: int | None = None) -> Tensor:
        """Read text tokens; return the logits after the last. A given position is shared, as boi and eoi share theirs."""
        num = len(ids)
        places = torch.arange(self.pos, self.pos + num) if pos is None else torch.full((num,), pos)
        mask = torch.ones(num, self.length + num, dtype=torch.bool).tril(self.length)
        patches = torch.zeros(1, num, self.config.image.patch_dim, dtype=self._dtype)
        grid = torch.full((1, num), -1)
        hidden, self.cache = self.model(
            torch.tensor([ids]),
            patches,
            grid,
            torch.zeros(1, num, dtype=self._dtype),
            places[None],
            mask[None],
            self.cache,
        )
        self.length += num
        self.pos += num if pos is None else 0
        logits: Tensor = self.model.text_head(hidden[0, -1])
        return logits

    def patches(self, patches_NP: Tensor, time: float, *, keep: bool) -> Tensor:
        """Let patches at a noise time see the cache and each other; return their velocities, (N, P)."""
        num = len(patches_NP)
        mask = torch.ones(num, self.length + num, dtype=torch.bool)
        if self.config.mask == "causal":
            mask = mask.tril(self.length)
        hidden, cache = self.model(
            torch.zeros(1, num, dtype=torch.long), patches_NP[None], torch.arange(num)[None],
            torch.full((1, num), time, dtype=self._dtype), torch.full((1, num), self.pos), mask[None], self.cache,
        )  # fmt: skip
        if keep:
            self.cache, self.length = cache, self.length + num
        return self.model.velocity(hidden[0], patches_NP, torch.full((num,), time, dtype=self._dtype))

    def image(self, patches_NP: Tensor) -> Tensor:
        """Read a clean image span (boi, patches, eoi); return the logits after it."""
        self.text([BOI], pos=self.pos)
        self.patches(patches_NP, 0.0, keep=True)
        logits = self.text([EOI], pos=self.pos)
        self.pos += 1
        return logits

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.patch_in.weight.dtype


@torch.inference_mode()
def write_image(model: Transformer, caption: list[int], random: np.random.Generator) -> np.ndarray:
    """Generate an image from a caption's ids; return its patches, (N, P) float32 in about [-1, 1]."""
    config = model.config
    told, untold = Reader(model), Reader(model)
    for reader, ids in ((told, caption), (untold, [NULL] * len(caption))):
        reader.text([BOS, *ids])
        reader.text([BOI], pos=reader.pos)
    shape = (config.image.grid**2, config.image.patch_dim)
    x = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(model.patch_in.weight.dtype)

    def velocity(at: Tensor, time: float) -> Tensor:
        with_text = told.patches(at, time, keep=False)
        scale = config.sampler.cfg
        if scale == 1:
            return with_text
        without = untold.patches(at, time, keep=False)
        return without + scale * (with_text - without)

    result: np.ndarray = integrate(velocity, x, config).float().numpy()
    return result


def integrate(velocity: Callable[[Tensor, float], Tensor], x: Tensor, config: TrainConfig) -> Tensor:
    """Follow a velocity from t = 1 (noise) to t = 0 (image) in `sampler.steps` function evaluations."""
    heun = config.sampler.solver == "heun"
    num = max(1, config.sampler.steps // 2) if heun else config.sampler.steps
    u = torch.linspace(1, 0, num + 1, dtype=torch.float64)
    times = (config.time.shift * u / (1 + (config.time.shift - 1) * u)).tolist()
    for now, then in pairwise(times):
        step = then - now
        v = velocity(x, now)
        if heun:
            v = (v + velocity(x + step * v, then)) / 2
        x = x + step * v
    return x


@torch.inference_mode()
def write_text(model: Transformer, patches_NP: np.ndarray, random: np.random.Generator) -> list[int]:
    """Generate a caption for an image given as patches; return its ids."""
    config = model.config
    reader = Reader(model)
    reader.text([BOS])
    logits = reader.image(torch.from_numpy(patches_NP).to(model.patch_in.weight.dtype))
    ids: list[int] = []
    while len(ids) < config.sampler.max_text_tokens:
        index = _draw(logits, config.sampler.temperature, random)
        if index == EOS:
            break
        ids.append(index)
        logits = reader.text([index])
    return ids


def _draw(logits: Tensor, temperature: float, random: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    share = torch.softmax(logits.double() / temperature, -1).numpy()
    return int(random.choice(len(share), p=share / share.sum()))
