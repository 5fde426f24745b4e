"""Nearest centroids of features, and the centroids that a target set falls to: the image part of DataComp's baselines.

Decided here: files of torch are read without running code from them: tensors, and plain numpy arrays, which DataComp's files
hold. Nearest is the largest inner product, in float32, of equals the first (Gadre et al. 2023, arXiv:2304.14108).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdata.errors import ConfigError, first_line

_FEATURES, _CENTROIDS = 1024, 16_384  # of each at a time: 64 MiB of products
_KEY = "image_features"  # of DataComp's files of ImageNet's features


def read_array(path: Path, key: str | None = None) -> np.ndarray:
    """Return the rows of numbers in a `.pt` file, (N, D) float32; with `key` those under this name.

    Raises ConfigError for a file that holds anything else, or something that could run.
    """
    try:
        with torch.serialization.safe_globals(_plain_numpy()):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"{path}: cannot be read without running code from it: {first_line(error)[:200]}",
            hint="give a file of torch that holds one tensor or numpy array",
        ) from error
    if key is not None and isinstance(found, dict):
        found = found.get(key)
    if not isinstance(found, torch.Tensor | np.ndarray) or found.ndim != 2:
        what = type(found).__name__ + (f" of {found.ndim} dimensions" if hasattr(found, "ndim") else "")
        raise ConfigError(f"{path}: holds {what}, not rows of numbers", hint=f"DataComp's files hold an array, or `{_KEY}`")
    return np.asarray(found.detach().float() if isinstance(found, torch.Tensor) else found, np.float32)


def nearest(features_ND: np.ndarray, centroids_KD: torch.Tensor) -> np.ndarray:
    """Return the number of the nearest centroid of each feature, (N,) int64; on the device of the centroids."""
    if features_ND.shape[1] != centroids_KD.shape[1]:
        raise ConfigError(
            f"the features have {features_ND.shape[1]} numbers, the centroids {centroids_KD.shape[1]}",
            hint="centroids of ViT-L/14 go with `l14_img`",
        )
    blocks = (features_ND[start : start + _FEATURES] for start in range(0, len(features_ND), _FEATURES))
    found = [_nearest(torch.from_numpy(block.astype(np.float32)).to(centroids_KD.device), centroids_KD) for block in blocks]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def target_centroids(paths: Sequence[Path], centroids_KD: torch.Tensor) -> np.ndarray:
    """Return the numbers of the centroids that any feature of a target set is nearest to, (T,) int64, ascending."""
    found = [np.unique(nearest(read_array(path, _KEY), centroids_KD)) for path in paths]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _nearest(features_ND: torch.Tensor, centroids_KD: torch.Tensor) -> np.ndarray:
    best = torch.full((len(features_ND),), -torch.inf, device=features_ND.device)
    which = torch.zeros(len(features_ND), dtype=torch.int64, device=features_ND.device)
    for start in range(0, len(centroids_KD), _CENTROIDS):
        top, place = (features_ND @ centroids_KD[start : start + _CENTROIDS].T).max(dim=1)
        better = top > best
        best, which = torch.where(better, top, best), torch.where(better, place + start, which)
    found: np.ndarray = which.cpu().numpy()
    return found


def _plain_numpy() -> list[Any]:
    """Return what a numpy array in such a file names; none of it runs anything but the making of an array."""
    import _codecs

    from numpy._core import multiarray

    rebuild = multiarray._reconstruct
    kinds = [type(np.dtype(code)) for code in ("<f2", "<f4", "<f8")]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *kinds, _codecs.encode]
