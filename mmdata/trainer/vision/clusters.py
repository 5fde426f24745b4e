"""k-means in torch: seeds by k-means++ and Lloyd's rounds; what the codebooks of `kmeans` and `vq` start from.

Sources: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (2007); Lloyd (1982). All chance comes from
the generator that is given.

Axes: N points, K codes, D numbers in a point.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

CHUNK = 8192  # points compared with all codes at once: the distances of more would not fit in memory


def nearest(points_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Return the number of the nearest code of each point, (N,) int64; of equally near ones the first."""
    # |x - c|^2 without |x|^2, which is the same for all codes.
    half_K = codes_KD.square().sum(-1) / 2
    return torch.cat([(half_K - part_ND @ codes_KD.T).argmin(-1) for part_ND in torch.split(points_ND, CHUNK)])


def seeds(points_ND: Tensor, num: int, random: np.random.Generator) -> Tensor:
    """Choose `num` points by k-means++: each with a chance that grows with its squared distance to those chosen before.

    Where all points are chosen or equal to one, the rest repeats points: (num, D) whatever N is.
    """
    chosen = [int(random.integers(len(points_ND)))]
    left_N = torch.full((len(points_ND),), torch.inf, dtype=torch.float64, device=points_ND.device)
    for draw in random.random(num - 1):
        left_N = torch.minimum(left_N, (points_ND - points_ND[chosen[-1]]).square().sum(-1).double())
        sums_N = left_N.cumsum(0)
        if total := float(sums_N[-1]):
            place = int(torch.searchsorted(sums_N, sums_N.new_tensor(draw * total), right=True))
        else:
            place = int(draw * len(points_ND))
        chosen.append(min(place, len(points_ND) - 1))
    return points_ND[chosen].clone()


def totals(points_ND: Tensor, codes_N: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return how many points each code has, (K,), and their sum, (K, D)."""
    counts_K = torch.bincount(codes_N, minlength=num).to(points_ND.dtype)
    return counts_K, points_ND.new_zeros(num, points_ND.shape[1]).index_add_(0, codes_N, points_ND)


def lloyd(points_ND: Tensor, num: int, rounds: int, random: np.random.Generator, told: Callable[[int, float], None]) -> Tensor:
    """Return the codes of k-means, (num, D).

    A code without points moves to a point that is farthest from its own. It ends when no point changes its code.
    told  is called after each round with its number and the mean squared error of a number
    """
    codes_KD = seeds(points_ND, num, random)
    before_N = points_ND.new_full((len(points_ND),), -1, dtype=torch.int64)
    for number in range(1, rounds + 1):
        codes_N = nearest(points_ND, codes_KD)
        error_N = (points_ND - codes_KD[codes_N]).square().mean(-1)
        told(number, float(error_N.mean()))
        if torch.equal(codes_N, before_N):
            break
        before_N = codes_N
        counts_K, sums_KD = totals(points_ND, codes_N, num)
        empty_K = counts_K == 0
        codes_KD = sums_KD / counts_K.clamp(min=1)[:, None]
        far = error_N.topk(min(int(empty_K.sum()), len(points_ND))).indices
        codes_KD[empty_K.nonzero()[: len(far), 0]] = points_ND[far]
    return codes_KD
