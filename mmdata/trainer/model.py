"""One transformer over text tokens and image tokens.

Notable: pre-norm RMSNorm, RoPE on given positions, SwiGLU, QK-norm; numbers of an image enter by a linear map plus a learnt
2-D place plus, as the config says, their noise time. Which weights a token uses is the config's `params`: the same for all,
experts (moe.py), or towers (towers.py).

Axes: B rows, L tokens, K tokens seen (cache and own), N = B * L tokens in order of their tower, D width, H heads, E = D / H.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.text.tokenizer import MASK
from mmdata.trainer.attention import Cache, Mask, angles, attend, turn
from mmdata.trainer.batch import Inputs
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.moe import Experts
from mmdata.trainer.sizes import Sizes
from mmdata.trainer.towers import Groups, TowerLinear, TowerNorm, spread

TIME_DIM = 64
PARTS = 6  # what a time gives every layer: shift, scale, gate, for attention and for the feed-forward network


class Hidden(NamedTuple):
    """Hidden states, (B, L, D); the cache that includes these tokens, where one was given; the experts' balance, a sum."""

    states_BLD: Tensor
    cache: Cache
    balance: Tensor


Seen = tuple[Tensor, Tensor] | None


class Where(NamedTuple):
    """What every layer needs to know of the tokens."""

    groups: Groups
    modality_N: Tensor
    cos: Tensor
    sin: Tensor
    mask: Mask
    shape: tuple[int, int]


class Attention(nn.Module):
    """Attention of all tokens with all, by weights of their tower."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width, towers = config.model.width, config.params.towers
        self.heads = config.model.heads
        self.qkv = TowerLinear(towers, width, 3 * width)
        self.out = TowerLinear(towers, width, width)
        head = width // self.heads
        self.q_norm = TowerNorm(towers, head) if config.model.qk_norm else None
        self.k_norm = TowerNorm(towers, head) if config.model.qk_norm else None

    def forward(self, x_ND: Tensor, where: Where, cache: Cache | None, layer: int) -> tuple[Tensor, Seen]:
        """Return the output, (N, D), and with a cache all keys and values seen, (B, H, K, E)."""
        groups, (batch, length) = where.groups, where.shape
        q, k, v = self.qkv(x_ND, groups).view(len(x_ND), 3, self.heads, -1).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, groups), self.k_norm(k, groups)
        q, k, v = (groups.leave(part).view(batch, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        keys, values = turn(k, where.cos, where.sin), v
        if cache is not None:
            keys, values = cache.extended(layer, keys, values)
        y = attend(turn(q, where.cos, where.sin), keys, values, where.mask)
        y_ND = groups.enter(y.transpose(1, 2).reshape(batch * length, -1))
        return self.out(y_ND, groups), None if cache is None else (keys, values)


class FeedForward(nn.Module):
    """SwiGLU, by weights of the token's tower."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        towers, width, hidden = config.params.towers, config.model.width, config.model.hidden
        self.up = TowerLinear(towers, width, 2 * hidden)
        self.down = TowerLinear(towers, hidden, width)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """Return (N, D)."""
        gate, up = self.up(x_ND, groups).chunk(2, -1)
        out: Tensor = self.down(functional.silu(gate) * up, groups)
        return out


class Block(nn.Module):
    """Attention, then the feed-forward network or experts."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width, towers = config.model.width, config.params.towers
        self.norm1, self.norm2 = TowerNorm(towers, width), TowerNorm(towers, width)
        self.attention = Attention(config)
        self.ffn: nn.Module = Experts(config) if config.params.share == "moe" else FeedForward(config)
        self.time = nn.Parameter(torch.zeros(PARTS, width)) if config.timed == "adaln" else None

    def forward(
        self, x_ND: Tensor, where: Where, time_N6D: Tensor | None, cache: Cache | None, layer: int
    ) -> tuple[Tensor, Seen, Tensor]:
        """Return the block's output, its keys and values with a cache, and its experts' balance."""
        if self.time is None or time_N6D is None:
            y, seen = self.attention(self.norm1(x_ND, where.groups), where, cache, layer)
            y, balance = self._feed(self.norm2(x := x_ND + y, where.groups), where)
            return x + y, seen, balance
        shift1, scale1, gate1, shift2, scale2, gate2 = (time_N6D + self.time).unbind(1)
        y, seen = self.attention(self.norm1(x_ND, where.groups) * (1 + scale1) + shift1, where, cache, layer)
        x = x_ND + (1 + gate1) * y
        y, balance = self._feed(self.norm2(x, where.groups) * (1 + scale2) + shift2, where)
        return x + (1 + gate2) * y, seen, balance

    def _feed(self, x_ND: Tensor, where: Where) -> tuple[Tensor, Tensor]:
        if isinstance(self.ffn, Experts):
            out, balance = self.ffn(x_ND, where.modality_N)
            return out, balance
        return self.ffn(x_ND, where.groups), x_ND.new_zeros(())


class Transformer(nn.Module):
    """The model: hidden states for all tokens, logits for text and codes, numbers for the rest."""

    masks: Tensor

    def __init__(self, config: TrainConfig, sizes: Sizes) -> None:
        super().__init__()
        width = config.model.width
        self.config, self.sizes = config, sizes
        self.embed = nn.Embedding(sizes.ids, width)
        self.place = nn.Embedding(sizes.tokens, width)
        self.head = nn.Linear(width, sizes.ids, bias=False)
        if sizes.dim:
            self.patch_in, self.patch_out = nn.Linear(sizes.dim, width), nn.Linear(width, sizes.dim)
        if sizes.und_dim:
            self.feature_in, self.feature_place = nn.Linear(sizes.und_dim, width), nn.Embedding(sizes.und_tokens, width)
        timed = config.timed
        if timed != "none":
            self.time = nn.Sequential(nn.Linear(TIME_DIM, width), nn.SiLU(), nn.Linear(width, width))
        if timed == "adaln":
            self.time_parts = nn.Linear(width, PARTS * width)
        self.timed, self.masked_text = timed, config.text.objective == "mdm"
        self.register_buffer("masks", torch.tensor([MASK]), persistent=False)
        self.apply(_init)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.model.layers))
        self.norm = TowerNorm(config.params.towers, width)
        if sizes.dim:
            nn.init.zeros_(self.patch_out.weight)
        if timed == "adaln":
            nn.init.zeros_(self.time_parts.weight)

    def forward(self, inputs: Inputs, mask: Mask, cache: Cache | None = None) -> Hidden:
        """Return hidden states of all tokens. With a cache, the mask is (B, L, K) over what it holds and these tokens."""
        batch, length = inputs.ids_BL.shape
        groups = Groups.of(inputs.tower_BL.reshape(-1), self.config.params.towers)
        x = groups.enter(self._enter(inputs))
        head = self.config.model.width // self.config.model.heads
        cos, sin = angles(inputs.pos_BL, head, self.config.model.rope_base, self.embed.weight.dtype)
        where = Where(groups, groups.enter(inputs.modality_BL.reshape(-1)), cos, sin, mask, (batch, length))
        time = self._time(inputs, groups)
        seen, balance = Cache(), x.new_zeros(())
        for layer, block in enumerate(self.blocks):
            x, pair, added = block(x, where, time, cache, layer)
            if pair is not None:
                seen.keys.append(pair[0])
                seen.values.append(pair[1])
            balance = balance + added
        states = groups.leave(self.norm(x, groups)).view(batch, length, -1)
        return Hidden(states, seen, balance / len(self.blocks))

    def logits(self, hidden_MD: Tensor, family: str | None = None) -> Tensor:
        """Return logits: of all ids, (M, text and codes), or of one family, `text` or `codes`, alone."""
        vocab = self.sizes.vocab
        weight = {None: self.head.weight, "text": self.head.weight[:vocab], "codes": self.head.weight[vocab:]}[family]
        found = functional.linear(hidden_MD, weight)
        # What is behind a mask is never a mask (the substitution of MDLM).
        return found.index_fill(-1, self.masks, -math.inf) if self.masked_text and family != "codes" else found

    def _enter(self, inputs: Inputs) -> Tensor:
        """Return what enters the first layer, (B * L, D)."""
        x: Tensor = self.embed(inputs.ids_BL).reshape(-1, self.config.model.width)
        codes, latents, features = inputs.codes, inputs.latents, inputs.features
        if self.sizes.codes:
            x = x.index_add(0, codes.at_N, self.place(codes.grid_N).to(x.dtype))
        if self.sizes.dim:
            patch = self.patch_in(inputs.values_NP) + self.place(latents.grid_N)
            if self.timed == "add":
                time_N = inputs.time_BL.reshape(-1)[latents.at_N]
                patch = patch + self.time(time_features(time_N, patch.dtype))
            x = x.index_copy(0, latents.at_N, patch.to(x.dtype))
        if self.sizes.und_dim:
            shown = self.feature_in(inputs.features_NF) + self.feature_place(features.grid_N)
            x = x.index_copy(0, features.at_N, shown.to(x.dtype))
        if self.timed == "token":
            told = self.time(time_features(inputs.time_BL.reshape(-1)[inputs.times_N], x.dtype))
            x = x.index_copy(0, inputs.times_N, told.to(x.dtype))
        return x

    def _time(self, inputs: Inputs, groups: Groups) -> Tensor | None:
        if self.timed != "adaln":
            return None
        time_N = groups.enter(inputs.time_BL.reshape(-1))
        told = functional.silu(self.time(time_features(time_N, self.embed.weight.dtype)))
        parts: Tensor = self.time_parts(told).view(len(time_N), PARTS, -1)
        return parts


def time_features(time_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sines and cosines of noise times in [0, 1], (N, TIME_DIM)."""
    rates = torch.exp(torch.arange(TIME_DIM // 2, device=time_N.device) * (math.log(1000) / (TIME_DIM // 2)))
    angle = time_N[..., None].double() * rates
    return torch.cat([angle.sin(), angle.cos()], -1).to(dtype)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=spread(module.in_features))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
