"""Generated images against known ones. Axes: N images, M templates, H height, W width."""

import numpy as np

CHUNK = 256


def nearest(images_NHWC: np.ndarray, templates_MHWC: np.ndarray) -> np.ndarray:
    """Return the template that each image is nearest to in squared error over all bytes, (N,) int64; of equal ones the first.

    Both are uint8 of the same height and width; numbers of up to 16 megapixels a template set are exact in float64.
    """
    if images_NHWC.shape[1:] != templates_MHWC.shape[1:]:
        raise ValueError(f"images of {images_NHWC.shape[1:]} are compared with templates of {templates_MHWC.shape[1:]}")
    known_MK = templates_MHWC.reshape(len(templates_MHWC), -1).astype(np.float64)
    norms_M = np.square(known_MK).sum(1)
    found_N = np.zeros(len(images_NHWC), np.int64)
    for start in range(0, len(images_NHWC), CHUNK):
        chunk = images_NHWC[start : start + CHUNK]
        made_NK = chunk.reshape(len(chunk), -1).astype(np.float64)
        found_N[start : start + CHUNK] = (norms_M - 2 * made_NK @ known_MK.T).argmin(1)
    return found_N
