"""Sizes and filters: which size an image gets, and how its pixels get there.

Decided here: sizes are img2dataset's to the pixel. A filter that makes an image smaller is stretched by the ratio, so that
it cannot alias. It is applied as one short convolution of the source followed by cubic sampling at the target's centres:
the cost goes with the ratio, not with the filter, and is half that of an area average.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from mmdata.errors import RecordError

if TYPE_CHECKING:
    from mmdata.media.resize import Resize

MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
Size = tuple[int, int]  # width, height

_ALIASES = {"bilinear": "linear", "bicubic": "cubic", "lanczos4": "lanczos"}
_SAMPLERS = {
    "nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}  # fmt: skip
_REACH = {"area": 0.5, "linear": 1.0, "cubic": 2.0, "lanczos": 3.0}  # in pixels of the target
_FAR = 4.0  # beyond this ratio a convolution costs more than an area average
cv2.setNumThreads(1)


class Target(NamedTuple):
    """What becomes of an image: the size it is resampled to, the filter, and the size it is then cropped or padded to."""

    size: Size
    filter: str
    frame: Size

    @property
    def changes(self) -> bool:
        """Whether there is a filter to apply."""
        return bool(self.filter)


def target(size: Size, resize: "Resize") -> Target:
    """Return what becomes of an upright image of `size`; RecordError `too_many_pixels` where that would be a bomb."""
    mode, asked = resize.resize_mode, resize.image_size
    side = max(size) if mode in ("border", "keep_ratio_largest") else min(size)
    shrinks = side > asked
    if mode == "no" or (resize.resize_only_if_bigger and not shrinks):
        return Target(size, "", size)
    scale = asked / side
    made = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    check_pixels(made, "made")
    chosen = resize.downscale_interpolation if shrinks else resize.upscale_interpolation
    frame = (asked, asked) if mode in ("border", "center_crop") else made
    return Target(made, _ALIASES.get(chosen, chosen), frame)


def check_pixels(size: Size, which: str = "given") -> None:
    """Raise RecordError `too_many_pixels` for an image over 50 megapixels or 16,384 px a side."""
    if size[0] * size[1] > MAX_PIXELS or max(size) > MAX_SIDE:
        raise RecordError(f"{size[0]} x {size[1]} pixels {which} are too many", outcome="too_many_pixels")


def check_asked(size: Size, resize: "Resize") -> None:
    """Raise RecordError, with img2dataset's message, for an original that the user does not want."""
    long, short = max(size), min(size)
    if short < resize.min_image_size:
        raise RecordError("image too small", outcome="image_too_small")
    if resize.max_image_area is not None and long * short > resize.max_image_area:
        raise RecordError("image area too large", outcome="image_area_too_large")
    if resize.max_aspect_ratio is not None and long / short > resize.max_aspect_ratio:
        raise RecordError("aspect ratio too large", outcome="aspect_ratio_too_large")


def resample(pixels: np.ndarray, size: Size, filter_name: str) -> np.ndarray:
    """Return (H, W, 3) uint8 pixels at `size` (width, height)."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    ratios = (width / size[0], height / size[1])
    if max(ratios) <= 1 or filter_name == "nearest":
        return cv2.resize(pixels, size, interpolation=_SAMPLERS[filter_name])
    if max(ratios) > _FAR:
        between = size if filter_name == "area" else (min(width, 2 * size[0]), min(height, 2 * size[1]))
        return resample(cv2.resize(pixels, between, interpolation=cv2.INTER_AREA), size, filter_name)
    across, down = (_kernel(filter_name, max(1.0, ratio)) for ratio in ratios)
    smooth = cv2.sepFilter2D(pixels, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(smooth, size, interpolation=cv2.INTER_CUBIC)


def framed(pixels: np.ndarray, frame: Size) -> np.ndarray:
    """Crop what is larger than `frame` and lay what is smaller on white, both centred as img2dataset does."""
    height, width = pixels.shape[:2]
    if (width, height) == frame:
        return pixels
    left, top = max(0, width - frame[0]) // 2, max(0, height - frame[1]) // 2
    pixels = pixels[top : top + frame[1], left : left + frame[0]]
    height, width = pixels.shape[:2]
    left, top = (frame[0] - width) // 2, (frame[1] - height) // 2
    white = np.full((frame[1], frame[0], 3), 255, np.uint8)
    white[top : top + height, left : left + width] = pixels
    return white


@lru_cache(maxsize=256)
def _kernel(filter_name: str, ratio: float) -> np.ndarray:
    reach = _REACH[filter_name] * ratio
    x = np.arange(-max(1, int(np.ceil(reach - 0.5))), max(1, int(np.ceil(reach - 0.5))) + 1)
    weights = np.clip(ratio / 2 + 0.5 - np.abs(x), 0, 1) if filter_name == "area" else _shape(filter_name, np.abs(x) / ratio)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def _shape(filter_name: str, x: np.ndarray) -> np.ndarray:
    if filter_name == "linear":
        return np.asarray(np.maximum(1 - x, 0.0))
    if filter_name == "lanczos":
        return np.asarray(np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0))
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2  # Catmull-Rom
    return np.asarray(np.where(x < 1, near, np.where(x < 2, far, 0)))
