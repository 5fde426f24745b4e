"""From vectors to codes and back, with gradients that pass straight through.

`Fsq` has nothing to learn: each number is bounded and rounded (Mentzer et al., arXiv 2309.15505). `Codebook` is a set of
vectors that follow, as moving averages, what is assigned to them (van den Oord et al., arXiv 1711.00937, appendix A.1); a code
that is hardly used starts anew where the codebook fits worst.

Axes: N vectors, D numbers in a vector, K codes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mmdata.trainer.vision.clusters import nearest, seeds, totals

_SLACK = 1e-3  # the outermost levels lie within what tanh reaches


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """Return the quantized values with the gradient of the others."""
    return z + (quantized - z).detach()


class Fsq(nn.Module):
    """Rounds each number of a vector to one of its levels; a code is the number of a combination of levels."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        levels_D = torch.tensor(levels)
        for name, value in {
            "levels_D": levels_D,
            "half_D": (levels_D - 1) * (1 + _SLACK) / 2,
            "offset_D": (1 - levels_D % 2) / 2,  # an even number of levels lies half a step off zero
            "middle_D": levels_D // 2,
            "basis_D": torch.cat([levels_D.new_ones(1), levels_D[:-1].cumprod(0)]),
        }.items():
            self.register_buffer(name, value, persistent=False)  # they follow from the levels
        self.num = int(levels_D.prod())

    levels_D: Tensor
    half_D: Tensor
    offset_D: Tensor
    middle_D: Tensor
    basis_D: Tensor

    def forward(self, z_ND: Tensor) -> Tensor:
        """Return the quantized vectors, in [-1, 1], with the gradient of the bounded ones."""
        # The shift makes 0 stay 0 where the number of levels is even.
        shift_D = torch.atanh(self.offset_D / self.half_D)
        bounded_ND = torch.tanh(z_ND + shift_D) * self.half_D - self.offset_D
        return straight_through(bounded_ND, bounded_ND.round()) / self.middle_D

    def codes(self, quantized_ND: Tensor) -> Tensor:
        """Return the codes of quantized vectors, (N,) int64."""
        digits_ND = (quantized_ND * self.middle_D).round().long() + self.middle_D
        return (digits_ND * self.basis_D).sum(-1)

    def vectors(self, codes_N: Tensor) -> Tensor:
        """Return the quantized vectors of codes, (N, D) float32: the way back from `codes`."""
        digits_ND = codes_N[..., None] // self.basis_D % self.levels_D
        return (digits_ND - self.middle_D) / self.middle_D


class Codebook(nn.Module):
    """Vectors of codes, and the averages that they are made of: how many vectors came to a code at a step, and their sum.

    decay          of the averages, at every step
    restart_below  share of the mean use under which a code starts anew
    """

    def __init__(self, num: int, dim: int, *, decay: float, restart_below: float) -> None:
        super().__init__()
        self.num, self.decay, self.restart_below = num, decay, restart_below
        self.register_buffer("vectors_KD", torch.zeros(num, dim))
        self.register_buffer("counts_K", torch.zeros(num))  # all zero: nothing was seen yet
        self.register_buffer("sums_KD", torch.zeros(num, dim))

    vectors_KD: Tensor
    counts_K: Tensor
    sums_KD: Tensor

    def codes(self, z_ND: Tensor) -> Tensor:
        """Return the nearest codes, (N,) int64."""
        return nearest(z_ND, self.vectors_KD)

    def forward(self, z_ND: Tensor, random: np.random.Generator) -> Tensor:
        """Return the nearest vectors without a gradient, and let the codebook follow: one step of training."""
        with torch.no_grad():
            if not torch.isfinite(z_ND).all():  # the loss will say so
                return torch.full_like(z_ND, torch.nan)
            if not self.counts_K.any():
                self._start(z_ND, random)
            codes_N = self.codes(z_ND)
            quantized_ND = self.vectors_KD[codes_N]
            self._follow(z_ND, codes_N, random)
        return quantized_ND

    def _start(self, z_ND: Tensor, random: np.random.Generator) -> None:
        self.vectors_KD.copy_(seeds(z_ND, self.num, random))
        self.counts_K.fill_(len(z_ND) / self.num)
        self.sums_KD.copy_(self.vectors_KD * self.counts_K[:, None])

    def _follow(self, z_ND: Tensor, codes_N: Tensor, random: np.random.Generator) -> None:
        counts_K, sums_KD = totals(z_ND, codes_N, self.num)
        self.counts_K.lerp_(counts_K, 1 - self.decay)
        self.sums_KD.lerp_(sums_KD, 1 - self.decay)
        self._restart(z_ND, codes_N, random)
        self.vectors_KD.copy_(self.sums_KD / self.counts_K[:, None])

    def _restart(self, z_ND: Tensor, codes_N: Tensor, random: np.random.Generator) -> None:
        """Move dead codes to vectors of this step, drawn by their squared distance to their own codes."""
        mean = len(z_ND) / self.num
        dead = (self.counts_K < self.restart_below * mean).nonzero()[:, 0]
        if not len(dead):
            return
        error_N = (z_ND - self.vectors_KD[codes_N]).square().sum(-1)
        # The smallest of exponential draws over weights are a sample without replacement (Efraimidis and Spirakis, 2006).
        draws_N = torch.from_numpy(random.exponential(size=len(z_ND))).to(error_N) / error_N
        taken = draws_N.argsort()[: len(dead)]
        taken = taken[error_N[taken] > 0]
        # One that finds no vector left keeps its place, with a new count: nothing divides by almost zero.
        self.sums_KD[dead] = self.vectors_KD[dead] * mean
        self.sums_KD[dead[: len(taken)]] = z_ND[taken] * mean
        self.counts_K[dead] = mean
