"""Tokenizers without a net: `patches`, the pixels themselves, and `kmeans`, the nearest of a codebook of patches.

Axes: B images, N tokens, P numbers in a patch, K codes.
"""

import torch
from torch import Tensor

from mmdata.trainer.vision.base import ImageTokenizer
from mmdata.trainer.vision.clusters import nearest
from mmdata.trainer.vision.config import KmeansSpec, PatchesSpec
from mmdata.trainer.vision.pixels import Grid, from_patches, to_patches


class PatchTokenizer(ImageTokenizer):
    """A token is a patch of pixels in [-1, 1], (rows, columns, RGB) flat; the round trip is exact."""

    def __init__(self, spec: PatchesSpec) -> None:
        super().__init__(spec, channels=3 * spec.factor**2)

    def _encode(self, images_BHWC: Tensor) -> Tensor:
        return to_patches(images_BHWC, self.factor)

    def _decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        return from_patches(tokens, grid, self.factor)


class KmeansTokenizer(ImageTokenizer):
    """A token is the nearest patch of a codebook, in squared distance of pixels."""

    codebook_KP: Tensor

    def __init__(self, spec: KmeansSpec) -> None:
        super().__init__(spec, codes=spec.codes, channels=3 * spec.factor**2)
        self.register_buffer("codebook_KP", torch.zeros(spec.codes, self.channels))

    def _encode(self, images_BHWC: Tensor) -> Tensor:
        patches_BNP = to_patches(images_BHWC, self.factor)
        return nearest(patches_BNP.flatten(0, 1), self.codebook_KP).view(patches_BNP.shape[:2])

    def _decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        return from_patches(self.codebook_KP[tokens], grid, self.factor)
