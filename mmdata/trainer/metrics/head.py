"""A score of image and text that is fitted to pairs in closed form, on what two frozen networks see.

Where a CLIP chose the training data, its own score of what the model then makes would be the judge of its own cause. This head is
fitted to other pairs, in seconds, and without a random number. Axes: N, M images or texts, D image features, E text features.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Head:
    """A linear map from image features to text features, both from their means."""

    map_DE: np.ndarray
    image_mean_D: np.ndarray
    text_mean_E: np.ndarray

    def similarity(self, images_ND: np.ndarray, texts_ME: np.ndarray) -> np.ndarray:
        """Return the cosine of every image's mapped features and every text's, (N, M) float64 in [-1, 1]."""
        left_NE, right_ME = (images_ND - self.image_mean_D) @ self.map_DE, texts_ME - self.text_mean_E
        cosines: np.ndarray = _unit(left_NE) @ _unit(right_ME).T
        return cosines

    def score(self, images_ND: np.ndarray, texts_NE: np.ndarray) -> np.ndarray:
        """Return the cosine of each pair, (N,) float64 in [-1, 1]."""
        left_NE, right_NE = (images_ND - self.image_mean_D) @ self.map_DE, texts_NE - self.text_mean_E
        cosines: np.ndarray = (_unit(left_NE) * _unit(right_NE)).sum(1)
        return cosines


def fit_head(images_ND: np.ndarray, texts_NE: np.ndarray, penalty: float = 1.0) -> Head:
    """Fit texts to images by ridge regression: minimise |T - X W|^2 + penalty * (mean |x|^2) * |W|^2, both centred.

    penalty   in multiples of the images' mean squared length, > 0, so that it does not depend on the features' scale

    Raises ValueError for fewer than two pairs.
    """
    if len(images_ND) < 2 or len(images_ND) != len(texts_NE) or penalty <= 0:
        raise ValueError("a head is fitted to two pairs or more, by a penalty above 0")
    image_mean_D, text_mean_E = images_ND.mean(0, dtype=np.float64), texts_NE.mean(0, dtype=np.float64)
    left_ND, right_NE = images_ND - image_mean_D, texts_NE - text_mean_E
    ridge = penalty * float(np.square(left_ND).sum(1).mean())
    num, width = left_ND.shape
    if num <= width:
        map_DE = left_ND.T @ np.linalg.solve(left_ND @ left_ND.T + ridge * np.eye(num), right_NE)
    else:
        map_DE = np.linalg.solve(left_ND.T @ left_ND + ridge * np.eye(width), left_ND.T @ right_NE)
    return Head(map_DE, image_mean_D, text_mean_E)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: np.ndarray = np.divide(rows, lengths, out=np.zeros(rows.shape), where=lengths > 0)
    return found
