"""The Frechet distance of two sets of images, by Gaussians fitted to features of a frozen network.

Decided here: the trace of the square root of the product of two covariances is the sum of the singular values of the product of
their own roots, which are symmetric. Nothing is taken the root of that rounding could have made negative or complex, as the
general matrix root of the product does when a covariance has no full rank. Axes: N images, D features.
"""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """Mean, (D,), and a root R of the covariance R R^T, (D, K), float64; `num` samples were fitted."""

    mean_D: np.ndarray
    root_DK: np.ndarray
    num: int

    @property
    def trace(self) -> float:
        """Sum of the variances."""
        return float(np.square(self.root_DK).sum())


def gaussian(features_ND: np.ndarray) -> Gaussian:
    """Fit a Gaussian: mean, and covariance over N - 1. Raises ValueError for fewer than two samples."""
    num, width = features_ND.shape
    if num < 2:
        raise ValueError(f"a covariance needs two samples or more, not {num}")
    features = features_ND.astype(np.float64)
    mean_D = features.mean(0)
    centred = (features - mean_D) / np.sqrt(num - 1)
    return Gaussian(mean_D, centred.T if num <= width else _root(centred.T @ centred), num)


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    root: np.ndarray = vectors_DD * np.sqrt(np.clip(values_D, 0, None))
    return root


def frechet_distance(left: Gaussian, right: Gaussian) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, >= 0, in squared units of the features.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500, eq. 6:
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With few samples it is too large, by more the fewer they are (arXiv:1911.07023):
    compare only numbers of the same N, and of the same features.
    """
    apart = float(np.square(left.mean_D - right.mean_D).sum())
    shared = float(np.linalg.svd(left.root_DK.T @ right.root_DK, compute_uv=False).sum())
    return max(apart + left.trace + right.trace - 2 * shared, 0.0)
