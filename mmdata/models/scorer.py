"""What a scorer is: a definition that a plan names, what it opens to, and fakes of both kinds that need no weights.

    ScorerModel   names a scorer in a plan; its fields are its YAML keys and it holds nothing live
    Scorer        what it opens to: one number a row
    Towers        a scorer whose image and text meet in one space, so that what it saw can be kept as embeddings

Other packages add theirs under the entry point `mmdata.scorers`: `name = "package.module:Class"`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from mmdata.config import Model

HASH_DIM = 8


class Scorer(Protocol):
    """Scores rows."""

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return one float32 a row.

        images  N arrays (H, W, 3) uint8, upright RGB; none at all if the scorer does not read `image`
        texts   N texts, none of them empty; none at all if it does not read `text`
        returns (N,) float32; not finite where a row cannot be scored, which then ends as `scorer_error`
        """
        ...


class Towers(Scorer, Protocol):
    """A tower for images and one for texts (CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343)."""

    @property
    def profile(self) -> dict[str, object]:
        """What numbers depend on besides the weights: device kind, dtype, batch shape, threads, torch."""
        ...

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return what the image tower takes of one image (H, W, 3) uint8; called from several threads, ahead of time."""
        ...

    def embed(self, prepared: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings of length 1, float32: (N, D) of N prepared images and (M, D) of M texts.

        Raises ShapeError when memory does not hold the batch shape, which is then half of what it was.
        """
        ...


class ScorerModel(Model, ABC):
    """A scorer by its name and fields; adding one is described in `docs/adding-a-score.md`.

    reads   what it looks at: `image`, `text`, or both
    unit    of its numbers
    version goes up when its numbers change: old columns are then not used
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("image", "text")
    unit: ClassVar[str] = "score"
    # Fields that change how it computes, but not what is asked: `batch`, `dtype`.
    not_in_key: ClassVar[set[str]] = set()

    @abstractmethod
    def label(self) -> str:
        """Return the model's id, for manifests and people."""

    @abstractmethod
    def meaning(self) -> str:
        """Say what the number means, and its range."""

    @abstractmethod
    def open(self, device: str, threads: int) -> AbstractContextManager[Scorer]:
        """Load it for as long as the context is open; `device` is `cpu` or `cuda`."""

    def located(self, home: Path) -> Self:
        """Return itself with the paths of its files made absolute from `home`: workers may stand in another folder."""
        return self

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of each file it loads. Raises ConfigError for what does not exist."""
        return ()

    def asked(self) -> dict[str, Any]:
        """Return what decides its numbers, as JSON."""
        fields = self.model_dump(mode="json", exclude=self.not_in_key)
        return {self.name: fields | ({} if self.version == 1 else {"version": self.version})}


class HashScorer:
    """A fake: the score is a hash of pixels and caption, in [-1, 1], the same everywhere and for ever."""

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return the hash of each pair as a number."""
        values = [self._one(image, text) for image, text in zip(images, texts, strict=True)]
        return np.asarray(values, dtype=np.float32)

    def _one(self, image: np.ndarray, text: str) -> float:
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes() + text.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**31 - 1.0


class HashTowers:
    """A fake: embeddings are hashes of pixels and of texts; an image and a text of the same bytes have the cosine 1."""

    def __init__(self) -> None:
        self.profile: dict[str, object] = {"device": "none", "dtype": "float32"}

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each pair's hashes."""
        left, right = self.embed([self.prepare(image) for image in images], texts)
        cosines: np.ndarray = (left * right).sum(axis=1)
        return cosines

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the image's hash."""
        return self._hash(np.ascontiguousarray(image).tobytes())

    def embed(self, prepared: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes."""
        hashes = [self._hash(text.encode()) for text in texts]
        left, right = (np.asarray(list(rows), np.float32).reshape(-1, HASH_DIM) for rows in (prepared, hashes))
        return left, right

    def _hash(self, data: bytes) -> np.ndarray:
        found = np.frombuffer(hashlib.sha256(data).digest()[:HASH_DIM], np.uint8).astype(np.float32) - 127.5
        unit: np.ndarray = found / np.linalg.norm(found)
        return unit


class Fake(ScorerModel):
    """The fake that needs no weights."""

    name: ClassVar[str] = "fake"
    unit: ClassVar[str] = "hash"

    def label(self) -> str:
        """Return what it is."""
        return "a hash (fake)"

    def meaning(self) -> str:
        """Return what it means: nothing."""
        return "hash of pixels and caption, in [-1, 1]; it means nothing"

    @contextmanager
    def open(self, device: str, threads: int) -> Iterator[Scorer]:
        """Return the hashing scorer."""
        yield HashScorer()
