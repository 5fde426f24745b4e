"""A perceptual hash of an image: 64 bits that stay nearly the same when it is scaled, recompressed or recoloured a little."""

import cv2
import numpy as np

_SIDE, _KEPT = 32, 8
# The first rows of a cosine transform (DCT-II), not normalised, as imagehash's `phash` takes it.
_COSINES = np.cos(np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE)) * 2


def phash(pixels_HW3: np.ndarray) -> int:
    """Return the 64-bit hash of upright RGB pixels, (H, W, 3) uint8: which low frequencies are above their median.

    The bits are those of pHash (Zauner 2010) in imagehash's order, first row first, highest bit first.
    """
    grey = cv2.resize(cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = _COSINES @ grey.astype(np.float64) @ _COSINES.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
