"""What `against` and `decontaminate` share: the fields that say with which references rows are compared, and by what.

Decided here: comparisons are asked in one order, equal values first, and the first that finds something gives the verdict, so
that a verdict depends on no order of work.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mmdata.config import Model
from mmdata.dedupe.kept import source_of
from mmdata.dedupe.ngrams import WORDS
from mmdata.shards.reference import Reference, facts_digest, open_reference
from mmdata.stages.comparisons import Alike, Comparison, Equal, Meaning, Worded
from mmdata.stages.verbs import Stage


class PastHashes(Model):
    """Hashes that differ in few bits.

    column      `phash` or `pdq` of `fingerprint`, or their `_views`, so that mirrored and turned copies are found: it is enough
                that one side has them
    radius      in how many bits they may differ
    any_chance  allow a radius at which more than a tenth of a reference's rows is near a row by chance
    """

    column: str = "phash"
    radius: Annotated[int, Field(ge=0, le=64)] = 4
    any_chance: bool = False

    def __str__(self) -> str:
        """Say it for people."""
        return f"{self.column} within {self.radius}"


class PastVectors(Model):
    """Embeddings whose cosine is at least a threshold, by the model that made those of the reference."""

    column: str
    cosine: Annotated[float, Field(gt=0, le=1)] = 0.95

    def __str__(self) -> str:
        """Say it for people."""
        return f"{self.column} of cosine {self.cosine:g}"


class PastTexts(Model):
    """Texts of whose runs of words a share is in the reference, however they are spread there, see `dedupe.ngrams`.

    ngram   words a run; a text of fewer words meets texts of the same words alone, one of fewer than three none
    share   of a row's own runs
    """

    column: str = "text"
    ngram: Annotated[int, Field(ge=2, le=50)] = WORDS
    share: Annotated[float, Field(gt=0, le=1)] = 0.8

    @property
    def name(self) -> str:
        """What is kept of texts for it."""
        return f"runs{self.ngram}({self.column})"

    def __str__(self) -> str:
        """Say it for people."""
        return f"{self.share:g} of runs of {self.ngram} words"


class Comparing(Stage):
    """What stages that compare rows with references have in common."""

    not_in_key: ClassVar[set[str]] = {"resources", "references"}  # paths: what lies there is in `inputs`

    references: Annotated[tuple[str, ...], Field(min_length=1)]
    by: tuple[str, ...] = ()
    likeness: PastHashes | None = None
    semantic: PastVectors | None = None
    texts: PastTexts | None = None

    @model_validator(mode="after")
    def _some_way(self) -> "Comparing":
        if not self.comparisons():
            raise ValueError("give at least one way to compare: `by`, `likeness`, `semantic` or `texts`")
        return self

    def comparisons(self) -> tuple[Comparison, ...]:
        """Return how rows are compared, in the order in which they are."""
        found: list[Comparison] = [Equal(name) for name in self.by]
        if self.likeness is not None:
            found.append(Alike(self.likeness.column, radius=self.likeness.radius, any_chance=self.likeness.any_chance))
        if self.semantic is not None:
            found.append(Meaning(self.semantic.column, self.semantic.cosine))
        if self.texts is not None:
            found.append(Worded(self.texts.name, share=self.texts.share))
        return tuple(found)

    def reads(self) -> tuple[str, ...]:
        """Read what is compared."""
        return tuple(dict.fromkeys(source_of(way.name) for way in self.comparisons()))

    def opened(self) -> tuple[Reference, ...]:
        """Return the references."""
        return tuple(opened(url) for url in self.references)

    def inputs(self) -> tuple[str, ...]:
        """Return the digest of each reference."""
        return tuple(reference.digest for reference in self.opened())

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse references without what is compared."""
        for reference in self.opened():
            for way in self.comparisons():
                way.check(fields, reference)

    def check_makers(self, makers: dict[str, dict[str, object]]) -> None:
        """Refuse embeddings of two models."""
        for reference in self.opened():
            for way in self.comparisons():
                if isinstance(way, Meaning):
                    way.check_model(makers.get(way.name, {}), reference, self.name)

    def located(self, home: Path) -> Self:
        """Return itself with absolute paths; those of a store are that already."""
        return self.model_copy(update={"references": tuple(url if "://" in url else str(home / url) for url in self.references)})

    def told(self) -> str:
        """Say for people by what rows are compared."""
        return ", ".join(map(str, filter(None, (*self.by, self.likeness, self.semantic, self.texts))))


def references_of(stages: Sequence[object]) -> list[Reference]:
    """Return the references that stages compare rows with, in the order in which they stand in a plan."""
    return [one for stage in stages if isinstance(stage, Comparing) for one in stage.opened()]


def opened(url: str) -> Reference:
    """Return a reference; one whose `reference.json` did not change is opened, and its files are checked, once a process."""
    return _opened(url, facts_digest(url))


@lru_cache(maxsize=16)
def _opened(url: str, _digest: str) -> Reference:
    return open_reference(url)


def names_of(references: Sequence[Reference], of_M: np.ndarray, part_M: np.ndarray, row_M: np.ndarray) -> list[tuple[str, int]]:
    """Return sample id and position of rows of references."""
    found: list[tuple[str, int]] = [("", 0)] * len(of_M)
    order = np.lexsort((part_M, of_M))
    borders = np.flatnonzero(np.diff(of_M[order]) | np.diff(part_M[order])) + 1
    for some in np.split(order, borders) if len(order) else ():
        names = references[of_M[some[0]]].names(int(part_M[some[0]]), row_M[some])
        for place, name in zip(some, names, strict=True):
            found[place] = name
    return found
