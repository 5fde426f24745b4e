"""AdamW, its schedule, and its state as plain tensors by name."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mmdata.trainer.config import OptimConfig
from mmdata.trainer.dist import put


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over two groups of parameters: those that decay, and those that do not.

    It is the fused one, on CPUs too: one call for all parameters, which matters where they are shards.
    """
    decayed = dict(_decayed(model))
    groups = [
        {"params": [parameter for name, parameter in _learnt(model) if decayed[name] == decays], "weight_decay": decay}
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: OptimConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then what `schedule` says."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        falls = max(round(config.steps * config.decay), 1)
        left = min((config.steps - step) / falls, 1.0)
        return config.lr * (config.final_lr + (1 - config.final_lr) * left)
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * share)) / 2)


def state_of(optimizer: AdamW, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state, `PARAMETER/KEY` -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in _learnt(model)
        for key, value in optimizer.state[parameter].items()
    }  # fmt: skip


def load_state(optimizer: AdamW, model: nn.Module, flat: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` returned, in full, into an optimizer that may be sharded."""
    for name, parameter in _learnt(model):
        state: dict[str, Tensor] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = flat.get(f"{name}/{key}")
            if value is None:  # it has had no gradient yet
                continue
            if key == "step":
                state[key] = value.to(parameter.device, copy=True)
            else:
                state[key] = torch.zeros_like(parameter)
                put(state[key], value)
        optimizer.state[parameter] = state


def _learnt(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _decayed(model: nn.Module) -> Iterator[tuple[str, bool]]:
    """Say of each parameter whether it decays: not norms, biases, embeddings, nor anything else that is a mere vector."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            spared = isinstance(module, nn.Embedding) or "norm" in whole or "bias" in name or parameter.ndim < 2
            yield whole, not spared
