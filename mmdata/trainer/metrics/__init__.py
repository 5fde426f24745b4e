"""What evaluation measures: pure functions of what was made and what is true, each with its source, range and unit."""

from mmdata.trainer.metrics.bits import bits_per_dimension, bits_per_token
from mmdata.trainer.metrics.captions import cider, exact_match
from mmdata.trainer.metrics.frechet import Gaussian, frechet_distance, gaussian
from mmdata.trainer.metrics.head import Head, fit_head
from mmdata.trainer.metrics.images import nearest
from mmdata.trainer.metrics.intervals import Estimate, mean, paired, share, student, unpaired
from mmdata.trainer.metrics.judges import judged_by
from mmdata.trainer.metrics.retrieval import Ranks, ranks

__all__ = [
    "Estimate", "Gaussian", "Head", "Ranks", "bits_per_dimension", "bits_per_token", "cider", "exact_match", "fit_head",
    "frechet_distance", "gaussian", "judged_by", "mean", "nearest", "paired", "ranks", "share", "student", "unpaired",
]  # fmt: skip
