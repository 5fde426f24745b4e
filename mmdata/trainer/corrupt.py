"""How strongly a segment is corrupted: noise times, and which of its tokens are masked."""

from typing import NamedTuple

import numpy as np

from mmdata.trainer.config import TrainConfig

LEAST = 1e-3  # least share of masks of `likelihood`: its weight, 1 / share, stays finite


class Masks(NamedTuple):
    """Which of N tokens are masked.

    masked   (N,) bool          level    share that was drawn, in (0, 1]
    weight   of each token's loss          counted   tokens by which the sum of losses is divided
    """

    masked: np.ndarray
    level: float
    weight: float
    counted: int


def draw_time(random: np.random.Generator, config: TrainConfig) -> float:
    """Draw the noise time of an image, in (0, 1): logit-normal or uniform, then shifted (SD3, BAGEL)."""
    u = 1 / (1 + np.exp(-random.standard_normal())) if config.time.draw == "logit_normal" else random.random()
    return shifted(float(u), config.time.shift)


def shifted(u: float, shift: float) -> float:
    """Move a time towards noise, for shifts above 1."""
    return shift * u / (1 + (shift - 1) * u)


def draw_masks(random: np.random.Generator, num: int, masking: str, time: float | None = None) -> Masks:
    """Draw which of so many tokens are masked, at a time in [0, 1) or at a drawn one.

    `likelihood`: each with p = t held above 0.001, weight 1 / p, over all tokens: a bound of the likelihood (MDLM, LLaDA).
    `cosine`: just cos(pi (1 - t) / 2) of them, at least one, weight 1, over the masked ones (MaskGIT, Show-o): no bound.
    At t = 1 all are masked, by both.
    """
    time = float(random.random()) if time is None else time
    if masking == "likelihood":
        share = (1 - LEAST) * time + LEAST
        return Masks(random.random(num) < share, share, 1 / share, num)
    share = float(np.cos(np.pi / 2 * (1 - time)))
    count = max(1, round(num * share))
    masked = np.zeros(num, np.bool_)
    masked[random.permutation(num)[:count]] = True
    return Masks(masked, share, 1.0, count)
