"""Perceptual hashes of an image: bits that stay nearly the same when it is scaled, recompressed or recoloured a little.

Decided here: `phash` gives imagehash's bits, so that old lists of hashes can be compared with ours: Pillow's grey and its
Lanczos resize to 32 x 32, an unnormalised cosine transform, its 8 x 8 lowest frequencies above their median.
`pdq` follows the published PDQ (Facebook 2019): luma, two passes of a box filter (Jarosz), 64 x 64 of its pixels, 16 x 16
frequencies without the lowest, above their lower median, the highest frequency first: the hex that others publish. A picture
larger than 512 pixels is scaled to that first, as PDQ's own reader does; a few bits may then differ from those of others.
"""

import cv2
import numpy as np
from PIL import Image
from scipy.fft import dct

_SIDE, _KEPT = 32, 8
_PDQ_SIDE, _PDQ_KEPT, _PDQ_MOST = 64, 16, 512
_COSINES = np.sqrt(2 / _PDQ_SIDE) * np.cos(
    np.pi / (2 * _PDQ_SIDE) * np.outer(np.arange(1, _PDQ_KEPT + 1), 2 * np.arange(_PDQ_SIDE) + 1)
)
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)


def phash(pixels_HW3: np.ndarray) -> int:
    """Return the 64-bit hash of upright RGB pixels, (H, W, 3) uint8: which low frequencies are above their median.

    The bits are those of pHash (Zauner 2010) in imagehash's order, first row first, highest bit first.
    """
    grey = np.asarray(Image.fromarray(pixels_HW3).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    low = dct(dct(grey.astype(np.float64), axis=0), axis=1)[:_KEPT, :_KEPT]
    return int.from_bytes(np.packbits((low > np.median(low)).ravel()).tobytes(), "big")


def pdq(pixels_HW3: np.ndarray) -> str:
    """Return the 256-bit hash of upright RGB pixels, (H, W, 3) uint8, as 64 hex digits."""
    longest = max(pixels_HW3.shape[:2])
    if longest > _PDQ_MOST:
        size = [max(1, round(side * _PDQ_MOST / longest)) for side in pixels_HW3.shape[1::-1]]
        pixels_HW3 = cv2.resize(pixels_HW3, size, interpolation=cv2.INTER_AREA)
    height, width = pixels_HW3.shape[:2]
    luma = cv2.transform(pixels_HW3.astype(np.float32), _LUMA).reshape(height, width)
    windows = -(-width // (2 * _PDQ_SIDE)), -(-height // (2 * _PDQ_SIDE))
    smooth = _boxed(_boxed(luma, windows), windows)
    rows, columns = (((np.arange(_PDQ_SIDE) + 0.5) * side / _PDQ_SIDE).astype(int) for side in (height, width))
    low = _COSINES @ smooth[np.ix_(rows, columns)].astype(np.float64) @ _COSINES.T
    return np.packbits((low > np.sort(low, axis=None)[low.size // 2 - 1]).ravel()[::-1]).tobytes().hex()


def _boxed(plane_HW: np.ndarray, windows: tuple[int, int]) -> np.ndarray:
    """Return the mean over windows (across, down) of which only what is inside the picture counts."""
    anchor = ((windows[0] - 1) // 2, (windows[1] - 1) // 2)
    total, inside = (
        cv2.boxFilter(plane, -1, windows, anchor=anchor, normalize=False, borderType=cv2.BORDER_CONSTANT)
        for plane in (plane_HW, np.ones_like(plane_HW))
    )
    mean: np.ndarray = total / inside
    return mean
