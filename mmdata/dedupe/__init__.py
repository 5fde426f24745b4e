"""Dedupe algorithms: pure functions on arrays and tables."""

from mmdata.dedupe.exact import bucket_of, exact_verdicts

__all__ = ["bucket_of", "exact_verdicts"]
