"""Pixels on their way in and out: fit an image into a square, cut it into patches, numbers in [-1, 1] and back to bytes.

Axes: B images, H W pixels, C channels (RGB), N patches in raster order, P numbers in a patch (rows x columns x RGB).
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Grid = tuple[int, int]  # rows and columns of tokens
WHITE = (255, 255, 255)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Fit an image into a square, whole and in its own proportions, with white borders.

    image    (H, W, 3) uint8
    returns  (size, size, 3) uint8
    """
    return np.asarray(ImageOps.pad(Image.fromarray(image), (size, size), Image.Resampling.BOX, color=WHITE))


def to_unit(pixels: Tensor) -> Tensor:
    """Return bytes as float32 in [-1, 1]; `to_pixels` gives exactly these bytes back."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_pixels(unit: Tensor) -> Tensor:
    """Return numbers in [-1, 1] as bytes; what lies outside is clipped."""
    return ((unit + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_patches(images_BHWC: Tensor, side: int) -> Tensor:
    """Cut images into patches of `side` x `side` pixels, (B, N, P)."""
    num, height, width, channels = images_BHWC.shape
    cut = images_BHWC.reshape(num, height // side, side, width // side, side, channels).transpose(2, 3)
    return cut.reshape(num, -1, side * side * channels)


def from_patches(patches_BNP: Tensor, grid: Grid, side: int) -> Tensor:
    """Put patches together, (B, H, W, C): the way back from `to_patches`."""
    (rows, columns), num = grid, len(patches_BNP)
    cut = patches_BNP.reshape(num, rows, columns, side, side, -1).transpose(2, 3)
    return cut.reshape(num, rows * side, columns * side, -1)
