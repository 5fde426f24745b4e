"""What a scorer is, and a public fake that tests and users can run without weights."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Scorer(Protocol):
    """Scores pairs."""

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return one float32 a pair.

        images  N arrays (H, W, 3) uint8, upright RGB
        texts   N captions
        returns (N,) float32; not finite where the pair cannot be scored
        """
        ...


class HashScorer:
    """A fake: the score is a hash of pixels and caption, in [-1, 1], the same everywhere and for ever."""

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return the hash of each pair as a number."""
        values = [self._one(image, text) for image, text in zip(images, texts, strict=True)]
        return np.asarray(values, dtype=np.float32)

    def _one(self, image: np.ndarray, text: str) -> float:
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes() + text.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**31 - 1.0
