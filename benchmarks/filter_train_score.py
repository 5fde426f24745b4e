"""Losses of a checkpoint on fixed pairs: all that `filter_train` knows of the model's inside.

Decided here: every chance comes from the pair's own id, so that all models meet the same noise at the same times; a caption's
loss is a sum over its tokens and its end, which is comparable between tokenizers, as each spells every caption without loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from mmdata.loader import keyed
from mmdata.trainer.batch import Batch, collate
from mmdata.trainer.checkpoint import open_checkpoint
from mmdata.trainer.model import Transformer
from mmdata.trainer.sequence import NO_TARGET, Sequencer, Tokens, to_patches

BATCH = 32
DRAWS = 4


class Pair(NamedTuple):
    """An image (H, W, 3) uint8 and a caption; noise is drawn by `uid`."""

    uid: str
    image: np.ndarray
    caption: str


class Scores(NamedTuple):
    """Of N pairs: nats of the caption and its end after the image, and the image's loss after the caption.

    The latter is a mean over `DRAWS` fixed draws of time and noise. What was not asked for is NaN.
    """

    nats_N: np.ndarray
    image_N: np.ndarray


@torch.no_grad()
def score_pairs(checkpoint: Path, pairs: Sequence[Pair], *, text: bool = True, image: bool = True) -> Scores:
    """Return the losses of the averaged weights of a checkpoint."""
    opened = open_checkpoint(checkpoint)
    model, sequencer = opened.model(), Sequencer(opened.config, opened.tokenizer)
    patches = {id(pair.image): to_patches(pair.image, opened.config) for pair in pairs}
    coded = [(patches[id(pair.image)], sequencer.encode_text(pair.caption)) for pair in pairs]
    nats, images = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    if text:
        rows = [sequencer.lay_out([cut, ids], drop_text=False, noise=None) for cut, ids in coded]
        nats = np.concatenate([_caption_nats(model, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)])
    if image:
        rows = [
            sequencer.lay_out([ids, cut], drop_text=False, noise=keyed(0, pair.uid, f"draw {draw}"))
            for pair, (cut, ids) in zip(pairs, coded, strict=True)
            for draw in range(DRAWS)
        ]
        losses = [_image_losses(model, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        images = np.concatenate(losses).reshape(len(pairs), DRAWS).mean(axis=1)
    return Scores(nats, images)


def _caption_nats(model: Transformer, rows: list[Tokens]) -> np.ndarray:
    batch, hidden = _run(model, rows)
    logits = model.text_head(hidden)
    nats = functional.cross_entropy(logits.flatten(0, 1), batch.target_BL.clamp(min=0).flatten(), reduction="none")
    last_patch = (batch.grid_BL >= 0).int() * torch.arange(batch.grid_BL.shape[1])
    told = (batch.target_BL != NO_TARGET) & (torch.arange(batch.grid_BL.shape[1]) > last_patch.amax(1, keepdim=True))
    found: np.ndarray = (nats.view_as(told) * told).sum(1).double().numpy()
    return found


def _image_losses(model: Transformer, rows: list[Tokens]) -> np.ndarray:
    batch, hidden = _run(model, rows)
    noisy = batch.noisy_BL
    velocity = model.velocity(hidden[noisy], batch.patches_BLP[noisy], batch.time_BL[noisy])
    errors = torch.zeros(noisy.shape)
    errors[noisy] = (velocity - batch.flow_BLP[noisy]).square().mean(-1)
    found: np.ndarray = (errors.sum(1) / noisy.sum(1)).double().numpy()
    return found


def _run(model: Transformer, rows: list[Tokens]) -> tuple[Batch, torch.Tensor]:
    config = model.config
    batch = collate(
        [[tokens] for tokens in rows], max(map(len, rows)),
        bidirectional=config.mask == "span_bidir", isolated=config.noise_isolated,
    )  # fmt: skip
    hidden, _ = model(batch.ids_BL, batch.patches_BLP, batch.grid_BL, batch.time_BL, batch.pos_BL, batch.mask_BLL)
    return batch, hidden
