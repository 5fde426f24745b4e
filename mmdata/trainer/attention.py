"""Who attends to whom, and how: a dense mask where it must be, FlexAttention with one block mask a batch on a GPU.

    sees(q, k) = doc[q] == doc[k]  and  (k not after q, or both in one span)  and  (k unveiled, or behind the veil of q)

Without veils this is Transfusion's mask, with them BAGEL's; one span a document is full attention. Padding sees itself alone.
FlexAttention has no backward on a CPU, where a dense mask costs about what a causal kernel does up to 1,024 tokens.

Axes: B rows, L tokens, K tokens seen (cache and own), H heads, E features of a head.
"""

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

PADDING_DOC = -1

Mask = Tensor | BlockMask | None  # None: each token sees all before it


@dataclass(frozen=True)
class Sight:
    """What decides who sees whom, each (B, L) int64: documents, spans and veils; -1 = none."""

    doc_BL: Tensor
    span_BL: Tensor
    veil_BL: Tensor

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> "Sight":
        """Return itself on a device."""
        return Sight(*(value.to(device, non_blocking=non_blocking) for value in (self.doc_BL, self.span_BL, self.veil_BL)))

    def mask(self) -> Mask:
        """Return the mask that suits the device."""
        return self.blocks() if self.doc_BL.device.type == "cuda" else self.dense()

    def dense(self) -> Tensor:
        """Return the mask, (B, L, L) bool: [row, q, k]."""
        place = torch.arange(self.doc_BL.shape[1], device=self.doc_BL.device)
        doc, span, veil = self.doc_BL, self.span_BL, self.veil_BL
        same_doc = (doc[:, :, None] == doc[:, None, :]) & (doc[:, :, None] != PADDING_DOC)
        within = (span[:, :, None] == span[:, None, :]) & (span[:, :, None] >= 0)
        shown = (veil[:, None, :] < 0) | (veil[:, :, None] == veil[:, None, :])
        before = place[:, None] >= place[None, :]
        result: Tensor = (same_doc & (before | within) & shown) | (place[:, None] == place[None, :])
        return result

    def blocks(self) -> BlockMask:
        """Return the mask for FlexAttention: whole blocks that nobody sees are passed over."""
        doc, span, veil = self.doc_BL, self.span_BL, self.veil_BL

        def sees(b: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same_doc = (doc[b, q] == doc[b, k]) & (doc[b, q] != PADDING_DOC)
            within = (span[b, q] == span[b, k]) & (span[b, q] >= 0)
            shown = (veil[b, k] < 0) | (veil[b, q] == veil[b, k])
            return (same_doc & ((q >= k) | within) & shown) | (q == k)

        batch, length = doc.shape
        found: BlockMask = _make_blocks(doc.device.type)(sees, batch, None, length, length, device=str(doc.device))
        return found


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


def attend(q_BHLE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask: Mask) -> Tensor:
    """Return attention's output, (B, H, L, E)."""
    if isinstance(mask, BlockMask):
        found: Tensor = _flex(q_BHLE.device.type)(q_BHLE, k_BHKE, v_BHKE, block_mask=mask)
        return found
    if mask is None:
        return functional.scaled_dot_product_attention(q_BHLE, k_BHKE, v_BHKE, is_causal=True)
    return functional.scaled_dot_product_attention(q_BHLE, k_BHKE, v_BHKE, attn_mask=mask[:, None])


def angles(pos_BL: Tensor, head: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angles of positions, (B, 1, L, head / 2): made once for all layers (RoFormer)."""
    half = head // 2
    rates = base ** (-torch.arange(half, device=pos_BL.device, dtype=torch.float64) / half)
    angle = pos_BL[:, None, :, None].double() * rates
    return angle.cos().to(dtype), angle.sin().to(dtype)


def turn(x_BHLE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of features by their angles; in the angles' precision, returned in that of the features."""
    left, right = x_BHLE.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x_BHLE.dtype)


@cache
def _flex(device: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - torch's own types
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


@cache
def _make_blocks(device: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - torch's own types
    return torch.compile(create_block_mask, dynamic=False) if device == "cuda" else create_block_mask
