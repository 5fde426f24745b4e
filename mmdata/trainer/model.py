"""One transformer over text tokens and image patches.

Notable: pre-norm RMSNorm, RoPE on given positions, SwiGLU, QK-norm; a patch enters by a linear map plus a learnt 2-D place
plus its noise time (added, as in BAGEL, so that a finished prefix can be cached exactly). Text and image share all weights.

Axes: B rows, L tokens, K tokens seen (cache and own), D width, H heads, E = D / H, V vocabulary, P numbers of a patch.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdata.trainer.config import TrainConfig

TIME_DIM = 64
MIN_TIME = 0.05


@dataclass
class Cache:
    """Keys and values of what has been read, layer by layer, (B, H, K, E)."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cached keys and values of a layer followed by new ones."""
        if layer >= len(self.keys):
            return key, value
        return torch.cat([self.keys[layer], key], 2), torch.cat([self.values[layer], value], 2)


class Norm(nn.RMSNorm):
    """RMSNorm in the precision of what comes in: under autocast its weights would otherwise stay behind."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input."""
        return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Attention with a boolean mask."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width, heads = config.model.width, config.model.heads
        self.heads, self.base = heads, config.model.rope_base
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        head = width // heads
        self.q_norm = Norm(head) if config.model.qk_norm else nn.Identity()
        self.k_norm = Norm(head) if config.model.qk_norm else nn.Identity()

    def forward(self, x_BLD: Tensor, pos_BL: Tensor, mask_BLK: Tensor, cache: Cache, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, (B, L, D), and all keys and values seen, (B, H, K, E)."""
        batch, length, width = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rope(self.q_norm(q), pos_BL, self.base), rope(self.k_norm(k), pos_BL, self.base)
        keys, values = cache.extended(layer, k, v)
        y = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask_BLK[:, None])
        return self.out(y.transpose(1, 2).reshape(batch, length, width)), keys, values


class Block(nn.Module):
    """Attention, then SwiGLU."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width = config.model.width
        hidden = int(config.model.ffn_mult * width)
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attention = Attention(config)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BLD: Tensor, pos_BL: Tensor, mask_BLK: Tensor, cache: Cache, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block's output and the keys and values of its attention."""
        y, keys, values = self.attention(self.norm1(x_BLD), pos_BL, mask_BLK, cache, layer)
        x_BLD = x_BLD + y
        gate, up = self.up(self.norm2(x_BLD)).chunk(2, -1)
        return x_BLD + self.down(functional.silu(gate) * up), keys, values


class Transformer(nn.Module):
    """The model: hidden states for all tokens, logits for text, velocities for patches."""

    def __init__(self, config: TrainConfig, vocab: int) -> None:
        super().__init__()
        width, dim = config.model.width, config.image.patch_dim
        self.config = config
        self.embed = nn.Embedding(vocab, width)
        self.patch_in = nn.Linear(dim, width)
        self.place = nn.Embedding(config.image.grid**2, width)
        self.time = nn.Sequential(nn.Linear(TIME_DIM, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.model.layers))
        self.norm = Norm(width)
        self.text_head = nn.Linear(width, vocab, bias=False)
        self.patch_out = nn.Linear(width, dim)
        self.apply(_init)
        nn.init.zeros_(self.patch_out.weight)

    def forward(  # noqa: PLR0913, PLR0917 - what a token is, and what it sees
        self, ids_BL: Tensor, patches_BLP: Tensor, grid_BL: Tensor, time_BL: Tensor, pos_BL: Tensor, mask_BLK: Tensor,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:  # fmt: skip
        """Return hidden states, (B, L, D), and the cache that includes these tokens."""
        x = self._enter(ids_BL, patches_BLP, grid_BL, time_BL)
        seen = Cache()
        for layer, block in enumerate(self.blocks):
            x, keys, values = block(x, pos_BL, mask_BLK, cache or Cache(), layer)
            seen.keys.append(keys)
            seen.values.append(values)
        return self.norm(x), seen

    def velocity(self, hidden_ND: Tensor, patches_NP: Tensor, time_N: Tensor) -> Tensor:
        """Return the velocities of patches at noise times, (N, P).

        x_t = (1 - t) x + t e and v = e - x give v = (x_t - x) / t for a head that predicts x; t is held above 0.05 there.
        """
        out: Tensor = self.patch_out(hidden_ND)
        if self.config.image.predict == "velocity":
            return out
        return (patches_NP - out) / time_N[:, None].clamp(min=MIN_TIME)

    def _enter(self, ids_BL: Tensor, patches_BLP: Tensor, grid_BL: Tensor, time_BL: Tensor) -> Tensor:
        image = (grid_BL >= 0)[..., None]
        patch = self.patch_in(patches_BLP) + self.place(grid_BL.clamp(min=0))
        if self.config.time.cond == "add":
            patch = patch + self.time(time_features(time_BL, patch.dtype))
        return torch.where(image, patch, self.embed(ids_BL))


def rope(x_BHLE: Tensor, pos_BL: Tensor, base: float) -> Tensor:
    """Turn pairs of features by angles that grow with the position (RoFormer)."""
    half = x_BHLE.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x_BHLE.device, dtype=torch.float64) / half)
    angle = pos_BL[:, None, :, None].double() * rates
    cos, sin = angle.cos().to(x_BHLE.dtype), angle.sin().to(x_BHLE.dtype)
    left, right = x_BHLE[..., :half], x_BHLE[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def time_features(time_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sines and cosines of noise times in [0, 1], (B, L, TIME_DIM)."""
    rates = torch.exp(torch.arange(TIME_DIM // 2, device=time_BL.device) * (math.log(1000) / (TIME_DIM // 2)))
    angle = time_BL[..., None].double() * rates
    return torch.cat([angle.sin(), angle.cos()], -1).to(dtype)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
