"""A feed-forward layer of experts: each token goes to the best few (token-choice MoE).

Scores are computed in float32 or wider. Which experts a token uses is decided by score + bias, how much by the score alone.
What keeps experts busy: `bias` moves an expert's bias by a fixed step a training step, up when it had less than its share
(DeepSeek-V3, arXiv 2412.19437), or `switch` adds experts * sum(share * mean score) to the loss (Switch Transformer, arXiv
2101.03961). Shares are those of all tokens of the last step, on all ranks, so neither depends on how a step was cut.

Axes: N tokens, D width, E experts, K experts a token uses, S pairs of a token and an expert, in order of the expert.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.trainer.config import ROUND, TrainConfig
from mmdata.trainer.towers import spread

MODALITIES = ("text", "image")


class Experts(nn.Module):
    """The layer. `load_ME` counts the tokens of a modality that went to each expert since the last `end_step`."""

    bias_E: Tensor
    share_E: Tensor
    load_ME: Tensor

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        params, width = config.params, config.model.width
        hidden = max(round(config.model.hidden * params.expert_ratio / ROUND), 1) * ROUND
        self.params, self.num = params, params.experts
        self.router = nn.Parameter(torch.empty(self.num, width).normal_(std=spread(width)))
        self.up = nn.Parameter(torch.empty(self.num, 2 * hidden, width).normal_(std=spread(width)))
        self.down = nn.Parameter(torch.empty(self.num, width, hidden).normal_(std=spread(hidden)))
        self.shared = SwiGLU(width, hidden) if params.shared_expert else None
        self.register_buffer("bias_E", torch.zeros(self.num))
        self.register_buffer("share_E", torch.full((self.num,), 1 / self.num))
        self.register_buffer("load_ME", torch.zeros(len(MODALITIES), self.num), persistent=False)

    def forward(self, x_ND: Tensor, modality_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, (N, D), and the sum over tokens of what `switch` adds to the loss.

        modality_N   0 text, 1 image, -1 padding, which is not counted
        """
        scores_NE = self.scores(x_ND)
        chosen_NK = (scores_NE + self.bias_E).topk(self.params.top_k, -1).indices
        gates_NK = scores_NE.gather(1, chosen_NK)
        if self.params.top_k > 1:  # of one expert the share would always be 1, and teach the router nothing
            gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True)
        out = self.dispatch(x_ND, chosen_NK, gates_NK.to(x_ND.dtype))
        if self.shared is not None:
            out = out + self.shared(x_ND)
        if self.training:
            self._count(chosen_NK, modality_N)
        return out, self._switch(scores_NE, modality_N)

    def scores(self, x_ND: Tensor) -> Tensor:
        """Return how well each expert suits each token, (N, E), in (0, 1)."""
        wide = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
        with torch.autocast(x_ND.device.type, enabled=False):
            logits = functional.linear(x_ND.to(wide), self.router.to(wide))
        return logits.softmax(-1) if self.params.scores == "softmax" else logits.sigmoid()

    def dispatch(self, x_ND: Tensor, chosen_NK: Tensor, gates_NK: Tensor) -> Tensor:
        """Send each token to its experts and add up what they say, (N, D)."""
        flat_S = chosen_NK.reshape(-1)
        order_S = flat_S.argsort(stable=True)
        token_S = order_S.div(self.params.top_k, rounding_mode="floor")
        sizes = torch.bincount(flat_S, minlength=self.num)
        gate, up = grouped(x_ND.index_select(0, token_S), self.up, sizes).chunk(2, -1)
        said_SD = grouped(functional.silu(gate) * up, self.down, sizes) * gates_NK.reshape(-1)[order_S, None]
        return torch.zeros_like(x_ND).index_add(0, token_S, said_SD.to(x_ND.dtype))

    @torch.no_grad()
    def _count(self, chosen_NK: Tensor, modality_N: Tensor) -> None:
        known = modality_N >= 0
        place = modality_N[known, None] * self.num + chosen_NK[known]
        self.load_ME += torch.bincount(place.reshape(-1), minlength=self.load_ME.numel()).view_as(self.load_ME)

    def _switch(self, scores_NE: Tensor, modality_N: Tensor) -> Tensor:
        if self.params.balance != "switch":
            return scores_NE.new_zeros(())
        shares = scores_NE / scores_NE.sum(-1, keepdim=True)
        return self.num * (shares[modality_N >= 0] @ self.share_E.to(shares.dtype)).sum()


class SwiGLU(nn.Module):
    """An ordinary feed-forward network, for the expert that all tokens share."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(2 * hidden, width).normal_(std=spread(width)))
        self.down = nn.Parameter(torch.empty(width, hidden).normal_(std=spread(hidden)))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return (N, D)."""
        gate, up = functional.linear(x_ND, self.up).chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, self.down)


def grouped(x_SD: Tensor, weight_EOD: Tensor, sizes_E: Tensor) -> Tensor:
    """Multiply runs of tokens, each by its own matrix: (S, O). One kernel on a GPU; elsewhere a loop is as fast."""
    if x_SD.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        low = torch.get_autocast_dtype("cuda")
        ends = sizes_E.cumsum(0).to(torch.int32)
        return functional.grouped_mm(x_SD.to(low), weight_EOD.to(low).transpose(1, 2), offs=ends)
    parts = zip(torch.split(x_SD, sizes_E.tolist()), weight_EOD.unbind(0), strict=True)
    return torch.cat([functional.linear(part, weight) for part, weight in parts])


def experts_of(model: nn.Module) -> Iterator[Experts]:
    """Yield the layers of experts of a model."""
    return (module for module in model.modules() if isinstance(module, Experts))


def forget_loads(model: nn.Module) -> None:
    """Forget what was counted since the last step: it came to nothing."""
    for layer in experts_of(model):
        layer.load_ME.zero_()


@torch.no_grad()
def end_step(model: nn.Module, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Move biases and shares after an optimizer step; return each expert's share of a modality's tokens, over all layers.

    reduce   sums a tensor over all ranks
    """
    layers = list(experts_of(model))
    if not layers:
        return {}
    loads = reduce(torch.stack([layer.load_ME for layer in layers]))
    for layer, load_ME in zip(layers, loads, strict=True):
        load_E = load_ME.sum(0)
        if layer.params.balance == "bias":
            layer.bias_E += layer.params.bias_rate * torch.sign(load_E.mean() - load_E)
        layer.share_E.copy_(load_E / load_E.sum().clamp(min=1))
        layer.load_ME.zero_()
    total_ME = loads.sum(0)
    shares = total_ME / total_ME.sum(-1, keepdim=True).clamp(min=1)
    return {
        f"load/{modality}/{expert}": float(shares[row, expert])
        for row, modality in enumerate(MODALITIES)
        for expert in range(total_ME.shape[1])
    }
