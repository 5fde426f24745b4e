"""The losses, each a sum over its tokens; the step divides by global counts.

`L = sum over families of weight * (sum of per-token losses) / (tokens of that family in the whole step)`: one packed row,
many micro-batches or many ranks give the same gradient, which a mean of means does not.

Families: `text` and `codes`, cross-entropy in nats, weighted as the masking says; `latents`, squared error of velocity or
noise; `z`, squares of log-sum-exp, which keep logits small; `balance` of experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmdata.trainer.batch import FAMILIES, Batch, Truth, fill
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.model import Hidden, Transformer
from mmdata.trainer.paths import Head, path_of

BUCKETS = 4  # of noise times and shares of masks, in the log


@dataclass(frozen=True)
class Sums:
    """Sums of a micro-batch's losses by name; what the log tells more exactly, of each: (losses, tokens) by name."""

    named: dict[str, Tensor]
    detail: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Losses:
    """One loss a predicted token, without weights: family, losses (M,), weights (M,), places (M,) flat."""

    family: str
    loss_M: Tensor
    weight_M: Tensor
    at_M: Tensor


def loss_sums(model: Transformer, batch: Batch, encoders: Encoders) -> Sums:
    """Run the model over a batch and sum each family's losses."""
    losses, z, balance = token_losses(model, batch, encoders)
    sums = {found.family: (found.loss_M * found.weight_M).sum() for found in losses}
    sums["z"] = z
    params = model.config.params
    if params.share == "moe" and params.balance == "switch":
        sums["balance"] = balance
    return Sums(sums, _detail(batch, losses))


def token_losses(model: Transformer, batch: Batch, encoders: Encoders) -> tuple[list[Losses], Tensor, Tensor]:
    """Return the loss of every predicted token, the sum of z-losses, and the experts' balance."""
    path = path_of(model.config.image)
    inputs, truth = fill(batch, encoders, path.mix, model.embed.weight.dtype)
    device = batch.ids_BL.device.type
    low = is_low(model.config.precision, device)
    # Batches of an evaluation have many lengths, for each of which FlexAttention would be compiled.
    mask = batch.sight.mask() if model.training else batch.sight.dense()
    # Matrix products may run in bfloat16; logits, numbers and sums are float32 or wider in any case.
    with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
        hidden = model(inputs, mask)
    return _losses(model, batch, truth, hidden)


def _losses(model: Transformer, batch: Batch, truth: Truth, hidden: Hidden) -> tuple[list[Losses], Tensor, Tensor]:
    """Compare hidden states with the truth.

    A family without a token still touches its head, so that gradients are zero and never absent.
    """
    config = model.config
    with torch.autocast(batch.ids_BL.device.type, enabled=False):
        states = hidden.states_BLD.reshape(-1, config.model.width).to(model.embed.weight.dtype)
        found, z = [], states.new_zeros(())
        is_code = truth.aim_M >= model.sizes.vocab
        for family, here in (("text", ~is_code), ("codes", is_code)):
            if family == "text" or model.sizes.codes:
                places = here.nonzero()[:, 0]
                at = batch.predict_M[places]
                loss, square = _cross_entropy(model, states, at, truth.aim_M[places], _restricted(config, family))
                found.append(Losses(family, loss, batch.weight_BL.reshape(-1)[at].to(loss.dtype), at))
                z = z + square
        if model.sizes.dim:
            at = batch.latents.at_N[batch.learnt_N]
            given, t = model.patch_out(states[at]), truth.time_N[:, None]
            target: Head = "noise" if config.image.objective == "ddpm_eps" else "velocity"
            loss = path_of(config.image).loss(config.image.head, given, truth.clean_NP, truth.noise_NP, t, target)
            found.append(Losses("latents", loss, torch.ones_like(loss), at))
    return found, z, hidden.balance


def _restricted(config: TrainConfig, family: str) -> str | None:
    """Return the family among whose ids alone a token is looked for: all ids, where one stream of ids is predicted."""
    return None if config.text.objective == config.image.objective == "ar" else family


def _cross_entropy(
    model: Transformer, states_ND: Tensor, at_M: Tensor, aim_M: Tensor, family: str | None
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each prediction, (M,), and the sum of squared log-sum-exps.

    Logits are made for `loss.chunk` predictions at a time; where there are more, they are made again on the way back.
    """
    chunk = model.config.loss.chunk
    aim_M = aim_M - (model.sizes.vocab if family == "codes" else 0)
    if not len(at_M):
        nothing = 0 * functional.linear(states_ND[:1], model.head.weight).sum()
        return nothing.expand(0), nothing

    def part(hidden_MD: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(hidden_MD, family)
        norm = torch.logsumexp(logits, -1)
        return norm - logits.gather(1, aim[:, None])[:, 0], norm.square().sum()

    hidden = states_ND.index_select(0, at_M)
    if len(at_M) <= chunk:
        return part(hidden, aim_M)
    parts = [
        checkpoint(part, *piece, use_reentrant=False)
        for piece in zip(torch.split(hidden, chunk), torch.split(aim_M, chunk), strict=True)
    ]
    return torch.cat([loss for loss, _ in parts]), torch.stack([square for _, square in parts]).sum()


@torch.no_grad()
def _detail(batch: Batch, losses: list[Losses]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return sums of losses and numbers of tokens by source, and by noise time or share of masks."""
    found = {}
    for part in losses:
        source, level = batch.source_BL.reshape(-1)[part.at_M], batch.level_BL.reshape(-1)[part.at_M]
        bucket = (level * BUCKETS).long().clamp(0, BUCKETS - 1)
        corrupted = bool((level > 0).any())
        named = [(name, source == number) for number, name in enumerate(batch.sources)] if len(batch.sources) > 1 else []
        named += [(f"t{number}", bucket == number) for number in range(BUCKETS)] if corrupted else []
        for name, here in named:
            found[f"{part.family}/{name}"] = ((part.loss_M * here).sum(), here.sum())
    return found


def weighted(sums: Mapping[str, Any], counts: Mapping[str, float], config: TrainConfig) -> Any:  # noqa: ANN401 - as the sums
    """Return the weighted loss of sums, tensors or numbers, divided by the counts of the whole step."""
    weights = {
        "text": config.loss.text, "codes": config.loss.image, "latents": config.loss.image, "z": config.loss.z_loss,
        "balance": config.loss.balance,
    }  # fmt: skip
    return sum(weights[name] * value / divisor(name, counts) for name, value in sums.items())


def divisor(name: str, counts: Mapping[str, float]) -> float:
    """Return how many tokens a sum of losses is over, at least 1."""
    if name == "z":
        return max(counts["text"] + counts["codes"], 1)
    return max(counts["all" if name == "balance" else name], 1)


def counts_of(batches: list[Batch]) -> dict[str, int]:
    """Return the tokens of each family, and of all together, in some micro-batches."""
    found = {name: sum(batch.counts[name] for batch in batches) for name in FAMILIES}
    return {**found, "all": sum(batch.used for batch in batches)}


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
