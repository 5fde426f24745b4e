"""Faces made unrecognisable, as DataComp did it: the pixels equal those of img2dataset's blurrer.

Decided here: the boxes are relative to the image as it is stored, before EXIF turns it, since that is what they were found on.
"""

from collections.abc import Sequence

import cv2
import numpy as np

Boxes = Sequence[Sequence[float]]


def blur(pixels: np.ndarray, boxes: Boxes) -> np.ndarray:
    """Return pixels with what lies in the boxes blurred, and a soft edge around it.

    pixels   (H, W, 3) uint8
    boxes    [left, top, right, bottom] each, relative to width and height, in 0..1
    """
    if len(boxes) == 0:
        return pixels
    height, width = pixels.shape[:2]
    image = pixels.astype(np.float32) / 255.0
    mask = np.zeros_like(image)
    largest = 0
    for box in boxes:
        left, top, right, bottom = (int(part * side) for part, side in zip(box, (width, height, width, height), strict=True))
        extent = max(right - left, bottom - top)
        largest = max(largest, extent)
        left, right = (_within(edge, width) for edge in (left - 0.1 * extent, right + 0.1 * extent))
        top, bottom = (_within(edge, height) for edge in (top - 0.1 * extent, bottom + 0.1 * extent))
        mask[top:bottom, left:right] = 1
    taps = max(3, int(2 * np.ceil(0.1 * largest) + 1))  # odd by construction
    blurred, soft = (cv2.GaussianBlur(plane, (taps, taps), 0) for plane in (image, mask))
    return ((image * (1 - soft) + blurred * soft) * 255.0).astype(np.uint8)


def _within(edge: float, side: int) -> int:
    return min(max(int(edge), 0), side - 1)
