"""What a tokenizer is worth: how close its images come to the originals, and how much of its codebook is used.

Axes: B images, H W pixels, N tokens, K codes.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdata.trainer.vision.base import ImageTokenizer

_SHOWN = 12
_ZOOM = 2


@dataclass(frozen=True)
class Figures:
    """Figures of a tokenizer on one split.

    psnr_db             of all bytes of all images: 10 log10(255^2 / mean squared error); null where all are the same
    codes_used          share of the codes that come up at all; null, as what follows, where tokens are continuous
    perplexity          exp of the entropy of the codes: how many equally likely ones would say as much
    bits_per_token      log2 of the codebook's size: what a token can say at most
    """

    split: str
    num_images: int
    tokens_per_image: int
    channels: int
    codes: int
    psnr_db: float | None
    codes_used: float | None
    perplexity: float | None
    bits_per_token: float | None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return a table, a figure a line."""
        psnr = "exact" if self.psnr_db is None else f"{self.psnr_db:.2f} dB"
        rows = [
            ("images", f"{self.num_images:,} of `{self.split}`"),
            ("tokens an image", f"{self.tokens_per_image:,}"),
            ("PSNR", psnr),
        ]
        if self.codes_used is None or self.perplexity is None or self.bits_per_token is None:
            rows.append(("a token", f"{self.channels} numbers"))
        else:
            rows += [
                ("codes used", f"{self.codes_used:.1%} of {self.codes:,}"),
                ("perplexity", f"{self.perplexity:.1f}"),
                ("bits a token", f"{self.bits_per_token:.2f}"),
            ]
        return "\n".join(f"{name:<16} {value}" for name, value in rows)


def measure(tokenizer: ImageTokenizer, images: Iterable[Tensor], split: str) -> tuple[Figures, bytes]:
    """Return the figures over batches of images, (B, H, W, 3) uint8 each, and a sheet of the first ones as a PNG.

    There must be one image at least.
    """
    error, num_bytes, num, tokens_each = 0.0, 0, 0, 0
    counts_K = torch.zeros(tokenizer.codes, dtype=torch.int64)
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    for pixels_BHWC in images:
        grid = (pixels_BHWC.shape[1] // tokenizer.factor, pixels_BHWC.shape[2] // tokenizer.factor)
        tokens = tokenizer.encode(pixels_BHWC)
        again_BHWC = tokenizer.decode(tokens, grid)
        # Whole numbers: the sum does not depend on how images are batched.
        error += int((again_BHWC.long() - pixels_BHWC.long()).square().sum())
        num_bytes, num, tokens_each = num_bytes + pixels_BHWC.numel(), num + len(pixels_BHWC), grid[0] * grid[1]
        if tokenizer.codes:
            counts_K += torch.bincount(tokens.flatten().cpu(), minlength=tokenizer.codes)
        both = zip(pixels_BHWC, again_BHWC, strict=True)
        shown += [(before.cpu().numpy(), after.cpu().numpy()) for before, after in both][: _SHOWN - len(shown)]
    psnr = 10 * math.log10(255**2 * num_bytes / error) if error else None
    figures = Figures(split, num, tokens_each, tokenizer.channels, tokenizer.codes, psnr, *_use(counts_K))
    return figures, _sheet(shown)


def _use(counts_K: Tensor) -> tuple[float, float, float] | tuple[None, None, None]:
    if not len(counts_K):
        return None, None, None
    share_K = counts_K[counts_K > 0].double() / counts_K.sum()
    entropy = -float((share_K * share_K.log()).sum())
    return len(share_K) / len(counts_K), math.exp(entropy), math.log2(len(counts_K))


def _sheet(pairs: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Draw originals in a row and below each what becomes of it."""
    rows = [np.concatenate(row, 1) for row in zip(*pairs, strict=True)]
    both = np.concatenate(rows, 0).repeat(_ZOOM, 0).repeat(_ZOOM, 1)
    buffer = io.BytesIO()
    Image.fromarray(both).save(buffer, "PNG")
    return buffer.getvalue()
