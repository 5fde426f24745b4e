"""The small convolutional encoder and decoder that `vq`, `fsq` and `kl` share.

Decided here: the first layer halves the resolution and the last one doubles it, so no block works at full resolution, where it
would cost most; each further level doubles the channels, up to four times `width`. GroupNorm and SiLU, no attention: what a
token says comes from its neighbourhood, and images of any size are one code path. The layout of blocks is that of VQGAN
(arXiv 2012.09841, appendix A), smaller.

Axes: B images, C channels, H W places.
"""

from torch import Tensor, nn

from mmdata.trainer.vision.config import NetSpec

GROUPS = 8


def widths(spec: NetSpec) -> list[int]:
    """Return the channels of each level, from half the resolution down to that of the tokens."""
    return [spec.width * min(2**level, 4) for level in range(spec.factor.bit_length() - 1)]


class Residual(nn.Module):
    """Two convolutions beside a straight way; it starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        last = self.inner[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the input plus what the block adds."""
        added: Tensor = self.inner(x_BCHW)
        return x_BCHW + added


class Encoder(nn.Sequential):
    """Images (B, 3, H, W) to (B, channels, H / factor, W / factor)."""

    def __init__(self, spec: NetSpec, channels: int) -> None:
        layers: list[nn.Module] = []
        before = 3
        for width in widths(spec):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), *(Residual(width) for _ in range(spec.blocks))]
            before = width
        super().__init__(*layers, nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, channels, 3, padding=1))


class Decoder(nn.Sequential):
    """The way back, to (B, 3, H, W)."""

    def __init__(self, spec: NetSpec, channels: int) -> None:
        deepest, *others = reversed(widths(spec))
        layers: list[nn.Module] = [nn.Conv2d(channels, deepest, 3, padding=1), *(Residual(deepest) for _ in range(spec.blocks))]
        before = deepest
        for width in others:
            # Nearest neighbours and a convolution leave no checkerboard, as a transposed convolution does.
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, width, 3, padding=1)]
            layers += [Residual(width) for _ in range(spec.blocks)]
            before = width
        last = (nn.Conv2d(before, 3 * 4, 3, padding=1), nn.PixelShuffle(2))
        super().__init__(*layers, nn.GroupNorm(GROUPS, before), nn.SiLU(), *last)
