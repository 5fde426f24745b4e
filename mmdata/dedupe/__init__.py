"""Dedupe algorithms: pure functions on arrays and tables."""

from mmdata.dedupe.alike import alike_verdicts
from mmdata.dedupe.exact import bucket_of, exact_verdicts
from mmdata.dedupe.groups import keepers
from mmdata.dedupe.hamming import chance_links, near_hashes
from mmdata.dedupe.minhash import chance_met, near_texts, whole_texts
from mmdata.dedupe.pairs import Pairs

__all__ = [
    "Pairs",
    "alike_verdicts",
    "bucket_of",
    "chance_links",
    "chance_met",
    "exact_verdicts",
    "keepers",
    "near_hashes",
    "near_texts",
    "whole_texts",
]
