"""Scorers: a small protocol, its implementations, and how a plan names one."""

from mmdata.models.conse import Conse
from mmdata.models.scorer import Fake, HashScorer, HashTowers, Scorer, ScorerModel, Towers
from mmdata.models.spec import TINY_CLIP, TINY_CLIP_FOLDER, AnyScorer, OpenClip, ScorerSpec, scorers

__all__ = [
    "TINY_CLIP", "TINY_CLIP_FOLDER", "AnyScorer", "Conse", "Fake", "HashScorer", "HashTowers", "OpenClip", "Scorer",
    "ScorerModel", "ScorerSpec", "Towers", "scorers",
]  # fmt: skip
