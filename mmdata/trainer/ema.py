"""Averaged weights: a second set that follows the first, sharded as it is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from mmdata.trainer.dist import local, put


class Ema:
    """The exponential moving average of a model's state; what is no number with a fraction is copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.tensors: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the model, after `step` steps."""
        # A young average follows closely, so that it does not remember the initial weights.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._lists(), 1 - decay)
        for ours, theirs in self._pairs():
            if not ours.is_floating_point():
                ours.copy_(theirs)

    @torch.no_grad()
    def gap(self) -> float:
        """Return how far the average is from the model, as a share of the model's norm."""
        ours, theirs = self._lists()
        norms = [torch.stack(torch._foreach_norm(part)).double() for part in (torch._foreach_sub(ours, theirs), theirs)]
        squares = torch.stack(norms).square().sum(-1)
        if any(isinstance(tensor, DTensor) for tensor in self.tensors.values()):
            distributed.all_reduce(squares)
        apart, norm = squares.sqrt().tolist()
        return float(apart / norm) if norm else 0.0

    @torch.no_grad()
    def load(self, full: Mapping[str, Tensor]) -> None:
        """Take the average from full tensors."""
        for name, tensor in self.tensors.items():
            put(tensor, full[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights meanwhile."""
        live = [theirs.clone() for _, theirs in self._pairs()]
        with torch.no_grad():
            for ours, theirs in self._pairs():
                theirs.copy_(ours)
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, theirs), value in zip(self._pairs(), live, strict=True):
                    theirs.copy_(value)

    def _lists(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the average and the model, as far as they are numbers with a fraction."""
        pairs = [(ours, theirs) for ours, theirs in self._pairs() if ours.is_floating_point()]
        return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        live = self.model.state_dict()
        return [(local(tensor), local(live[name])) for name, tensor in self.tensors.items()]
