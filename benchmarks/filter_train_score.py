"""Losses of a checkpoint on fixed pairs: all that `filter_train` knows of the model's inside.

Decided here: every chance comes from the pair's own id, so that all models meet the same noise at the same times; a caption's
loss is a sum over its tokens and its end, which is comparable between tokenizers, as each spells every caption without loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mmdata.loader import keyed
from mmdata.trainer.batch import collate
from mmdata.trainer.checkpoint import open_checkpoint
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Sequencer, Tokens
from mmdata.trainer.model import Transformer
from mmdata.trainer.objectives import token_losses

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
    """Return the losses of the averaged weights of a checkpoint; its text is predicted token by token."""
    opened = open_checkpoint(checkpoint)
    model, encoders = opened.model(), opened.encoders()
    coder = Sequencer(opened.config, opened.tokenizer, encoders.sizes)
    shown = {id(pair.image): coder.fit(pair.image) for pair in pairs}
    ids = {pair.caption: coder.encode_text(pair.caption) for pair in pairs}
    nats, images = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)

    def losses(family: str, draws: int) -> np.ndarray:
        """Return the family's loss of each pair and draw, (N, draws); text comes after the image, the image after text."""
        layout = opened.config.layout.model_copy(
            update={"p_caption_first": float(family != "text"), "p_drop_text": 0.0, "p_drop_image": 0.0}
        )
        sequencer = Sequencer(opened.config.model_copy(update={"layout": layout}), opened.tokenizer, encoders.sizes)
        rows = [
            sequencer.lay_out([shown[id(pair.image)], ids[pair.caption]], keyed(0, pair.uid, f"draw {draw}"))
            for pair in pairs
            for draw in range(draws)
        ]
        parts = [_sums(model, rows[start : start + BATCH], encoders, family) for start in range(0, len(rows), BATCH)]
        return np.concatenate(parts).reshape(len(pairs), draws)

    if text:
        nats = losses("text", 1)[:, 0]
    if image:
        images = losses("latents", DRAWS).mean(axis=1) / encoders.sizes.tokens
    return Scores(nats, images)


def _sums(model: Transformer, rows: list[Tokens], encoders: Encoders, family: str) -> np.ndarray:
    """Return the sum of a family's losses in each row, (B,); of text, of what comes after the image."""
    longest = max(map(len, rows))
    batch = collate([[tokens] for tokens in rows], longest)
    found, _, _ = token_losses(model, batch, encoders)
    part = next(some for some in found if some.family == family)
    row_M, place_M = part.at_M // longest, part.at_M % longest
    image_end_B = torch.zeros(len(rows), dtype=torch.long)
    image_end_B.scatter_reduce_(0, batch.latents.at_N // longest, batch.latents.at_N % longest, "amax")
    counted_M = (place_M > image_end_B[row_M]) if family == "text" else torch.ones_like(place_M, dtype=torch.bool)
    sums_B = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_M, (part.loss_M * counted_M).double())
    return sums_B.numpy()
