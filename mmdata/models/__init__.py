"""Scorers: a small protocol, its implementations, and how a plan names one."""

from mmdata.models.scorer import HashScorer, Scorer
from mmdata.models.spec import TINY_CLIP, TINY_CLIP_FOLDER, OpenClip, ScorerSpec

__all__ = ["TINY_CLIP", "TINY_CLIP_FOLDER", "HashScorer", "OpenClip", "Scorer", "ScorerSpec"]
