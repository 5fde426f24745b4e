"""Losses of fixed pairs with fixed noise: how likely a model holds a caption for an image, and how well it denoises the image.

The same pair, seed and draw give the same masks and noise for every model, so two models can be compared pair by pair.
Axes: N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmdata.loader import keyed
from mmdata.text.tokenizer import EOS, SPECIALS
from mmdata.trainer.batch import collate
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import TEXT, Sequencer, Tokens
from mmdata.trainer.model import Transformer
from mmdata.trainer.objectives import token_losses

BATCH = 32
Pair = tuple[str, np.ndarray]  # a caption, and an image as (H, W, 3) uint8


@dataclass(frozen=True)
class PairLosses:
    """Sums of losses over the tokens of each pair, weighted as in training, and the tokens they are divided by; all (N,).

    text    nats of the caption's own ids and of the eos behind it, given the image: the same tokens for every objective
            (for `text.objective: mdm` a bound; for `masking: cosine` not even that)
    image   nats of the codes, or squared errors of the numbers, given the caption
    """

    text_N: np.ndarray
    text_tokens_N: np.ndarray
    image_N: np.ndarray
    image_tokens_N: np.ndarray


class Scoring:
    """A model that looks at pairs in one direction at a time, with nothing dropped."""

    def __init__(self, model: Transformer, encoders: Encoders, sequencer: Sequencer, seed: int = 0) -> None:
        self.model, self.encoders, self.seed = model, encoders, seed
        self.sequencers = {first: _directed(sequencer, first=first) for first in (False, True)}

    def losses(self, pairs: Sequence[Pair], draws: int = 1) -> PairLosses:
        """Return the losses of pairs, means over so many draws of noise and masks."""
        text, image = (np.mean([self._run(pairs, first, draw) for draw in range(draws)], 0) for first in (False, True))
        return PairLosses(*text, *image)

    def captions(self, images: Sequence[np.ndarray], captions: Sequence[str], draws: int = 1) -> np.ndarray:
        """Return how likely each caption is for each image, minus nats, (images, captions)."""
        pairs = [(caption, image) for image in images for caption in captions]
        nats = np.mean([self._run(pairs, False, draw, keys=len(captions))[0] for draw in range(draws)], 0)
        scores: np.ndarray = -nats.reshape(len(images), len(captions))
        return scores

    @torch.inference_mode()
    def _run(self, pairs: Sequence[Pair], first: bool, draw: int, keys: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return sums of losses and tokens; with `keys`, as many pairs in a row share one key, so that they compare."""
        sequencer, families = self.sequencers[first], {"codes", "latents"} if first else {"text"}
        total, tokens = np.zeros(len(pairs)), np.zeros(len(pairs))
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            laid = [
                sequencer.lay_out(
                    [sequencer.encode_text(caption), sequencer.fit(image)],
                    keyed(self.seed, "pairs", (start + number) // keys if keys else start + number, draw),
                )
                for number, (caption, image) in enumerate(part)
            ]
            length = max(len(one) for one in laid)
            device = self.model.embed.weight.device
            found, _, _ = token_losses(self.model, collate([[one] for one in laid], length).to(device), self.encoders)
            asked = np.stack([np.pad(_asked(one), (0, length - len(one))) for one in laid]).reshape(-1)
            for losses in found:
                if losses.family in families:
                    at = losses.at_M.cpu().numpy()
                    worth = (losses.loss_M * losses.weight_M).double().cpu().numpy()
                    np.add.at(total, start + at // length, worth if first else worth * asked[at])
            counts = [sum(one.counts[family] for family in families) for one in laid]
            tokens[start : start + len(part)] = counts if first else [len(_own(one)) for one in laid]
        return total, tokens


def _own(tokens: Tokens) -> np.ndarray:
    """Return the places of a caption's own ids, and of the first eos behind them."""
    own = np.flatnonzero((tokens.kind_T == TEXT) & (tokens.ids_T >= len(SPECIALS)))
    ends = np.flatnonzero((tokens.kind_T == TEXT) & (tokens.ids_T == EOS))
    behind = ends[ends > own[-1]][:1] if len(own) else ends[:1]
    return np.concatenate([own, behind])


def _asked(tokens: Tokens) -> np.ndarray:
    """Return which tokens predict the caption's own, (T,) bool."""
    found: np.ndarray = np.isin(tokens.aim_T, _own(tokens))
    return found


def _directed(sequencer: Sequencer, *, first: bool) -> Sequencer:
    layout = {"p_caption_first": float(first), "p_drop_text": 0.0, "p_drop_image": 0.0, "decompose": 0.0, "und_noise_cap": 0.0}
    config = sequencer.config
    clean = config.time.model_copy(update={"joint": "one_side_clean"})
    changed = config.model_copy(update={"layout": config.layout.model_copy(update=layout), "time": clean})
    return Sequencer(changed, sequencer.tokenizer, sequencer.sizes)
