"""The losses, each a sum over its tokens; the step divides by global counts.

`L = sum over families of weight * (sum of per-token losses) / (tokens of that family in the whole step)`: one packed row,
many micro-batches or many ranks give the same gradient, which a mean of means does not.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mmdata.trainer.batch import Batch
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.model import Transformer
from mmdata.trainer.sequence import NO_TARGET


@dataclass(frozen=True)
class Sums:
    """Sums of per-token losses: cross-entropy and z-loss of text in nats, squared velocity error of patches."""

    text: Tensor
    z: Tensor
    image: Tensor


def loss_sums(model: Transformer, batch: Batch) -> Sums:
    """Run the model over a batch and sum each family's losses."""
    # Matrix products may run in bfloat16; logits, velocities and sums are float32 or wider in any case.
    low = is_low(model.config.precision, batch.ids_BL.device.type)
    with torch.autocast(batch.ids_BL.device.type, dtype=torch.bfloat16, enabled=low):
        hidden, _ = model(batch.ids_BL, batch.patches_BLP, batch.grid_BL, batch.time_BL, batch.pos_BL, batch.mask_BLL)
    hidden = hidden.float() if low else hidden
    told = batch.target_BL != NO_TARGET
    # A batch without text or without noise still touches both heads, so that gradients are zero and never absent.
    logits = model.text_head(hidden[told if bool(told.any()) else _first(told)])
    noisy = batch.noisy_BL if batch.num_image else _first(batch.noisy_BL)
    velocity = model.velocity(hidden[noisy], batch.patches_BLP[noisy], batch.time_BL[noisy])
    if bool(told.any()):
        text = functional.cross_entropy(logits, batch.target_BL[told], reduction="sum")
        z = torch.logsumexp(logits, -1).square().sum()
    else:
        text = z = 0 * logits.sum()
    image = (velocity - batch.flow_BLP[batch.noisy_BL]).square().mean(-1).sum() if batch.num_image else 0 * velocity.sum()
    return Sums(text, z, image)


@cache
def is_low(precision: str, device: str) -> bool:
    """Say whether matrix products run in bfloat16; for `auto`, where the device has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu" or not Path("/proc/cpuinfo").exists():
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _first(flags_BL: Tensor) -> Tensor:
    """Return flags that name the first token alone."""
    first = torch.zeros_like(flags_BL)
    first[0, 0] = True
    return first


def weighted(sums: Sums, num_text: int, num_image: int, config: TrainConfig) -> Tensor:
    """Return the loss of a micro-batch, divided by the counts of the whole step."""
    text = (config.loss.text * sums.text + config.loss.z_loss * sums.z) / max(num_text, 1)
    return text + config.loss.image * sums.image / max(num_image, 1)


def velocity_to_clean(x_t: Tensor, velocity: Tensor, time: float) -> Tensor:
    """Return the clean image that a velocity points to: x_t = (1 - t) x + t e and v = e - x give x = x_t - t v."""
    return x_t - time * velocity
