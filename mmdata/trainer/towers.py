"""Weights that differ by tower (Mixture-of-Transformers): tokens are put in order of their tower once, at the entry; every
projection and norm then works on runs of tokens; attention alone puts them back. One tower is an ordinary layer.

Axes: N tokens in order of their tower, T towers, D features in, O features out.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Groups:
    """How tokens are put in order of their tower: `sizes` of the runs, and the order there and back; null = as they are."""

    sizes: list[int]
    order_N: Tensor | None = None
    back_N: Tensor | None = None

    @classmethod
    def of(cls, tower_N: Tensor, towers: int) -> Self:
        """Return the order of tokens by tower, stable."""
        if towers == 1:
            return cls([len(tower_N)])
        order = tower_N.argsort(stable=True)
        sizes = torch.bincount(tower_N, minlength=towers).tolist()
        return cls(sizes, order, order.argsort())

    def enter(self, x_N: Tensor) -> Tensor:
        """Put tokens in order of their tower."""
        return x_N if self.order_N is None else x_N.index_select(0, self.order_N)

    def leave(self, x_N: Tensor) -> Tensor:
        """Put tokens back."""
        return x_N if self.back_N is None else x_N.index_select(0, self.back_N)


class TowerLinear(nn.Module):
    """A linear map without bias, one a tower. All towers begin as the first (BAGEL)."""

    def __init__(self, towers: int, width: int, out: int, std: float = 0.02) -> None:
        super().__init__()
        first = torch.empty(1, out, width).normal_(std=std)
        self.weight = nn.Parameter(first.repeat(towers, 1, 1))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """Return (N, O)."""
        if len(self.weight) == 1:
            return functional.linear(x_ND, self.weight.squeeze(0))
        # A tower without tokens multiplies nothing: its gradient is zero, not absent.
        parts = zip(torch.split(x_ND, groups.sizes), self.weight.unbind(0), strict=True)
        return torch.cat([functional.linear(part, weight) for part, weight in parts])


class TowerNorm(nn.Module):
    """RMSNorm, one scale a tower; in the precision of what comes in."""

    def __init__(self, towers: int, width: int, eps: float | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(towers, width))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """Return the normalised input, (N, ..., D)."""
        width, weight = x_ND.shape[-1], self.weight.to(x_ND.dtype)
        if len(weight) == 1:
            return functional.rms_norm(x_ND, (width,), weight.squeeze(0), self.eps)
        parts = zip(torch.split(x_ND, groups.sizes), weight.unbind(0), strict=True)
        return torch.cat([functional.rms_norm(part, (width,), scale, self.eps) for part, scale in parts])


def residual_std(layers: int) -> float:
    """Return the initial deviation of maps that write to the residual stream: it does not grow with depth (GPT-2)."""
    return 0.02 / math.sqrt(2 * layers)
