"""What `against` and `decontaminate` share: which references rows are compared with, by what, and what is near.

Decided here: comparisons are asked in one order, equal values first, and the first that finds something gives the verdict. Of
all that a comparison finds for a row the nearest counts; of these the first reference, then the first of its rows. So a verdict
depends on no order of work.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mmdata.config import Model
from mmdata.dedupe.cosine import best_screen
from mmdata.dedupe.cross import Asking, Index, Nearest, VectorIndex, distinct, hash_indexes
from mmdata.dedupe.exact import column_of
from mmdata.dedupe.hamming import chance_links, collapse
from mmdata.dedupe.kept import facts_of, is_hash, kept_column, model_of, source_of
from mmdata.dedupe.ngrams import WORDS, most_met
from mmdata.errors import ConfigError
from mmdata.schema import is_embedding
from mmdata.shards.reference import ColumnFacts, Reference, facts_digest, open_reference

_LEAST_CHANCE = 0.1
_VIEWS = "_views"
REASONS = ("in", "near_hash", "near_embedding", "near_text")  # by the number of a comparison's method


@dataclass(frozen=True)
class Once:
    """Values, each once where that is worth it, and which of them each item has, (M,) int64."""

    values: Any
    of_M: np.ndarray


class Comparison(ABC):
    """One way to compare rows with a reference.

    name    what is kept of the rows, see `dedupe.kept`       method  the place in `REASONS`
    """

    name: str
    method: int

    def column(self, reference: Reference) -> str:
        """Return the column of a reference that the rows are compared with."""
        return self.name

    @abstractmethod
    def once(self, values: Any) -> Once:  # noqa: ANN401 - words or vectors
        """Return values without repeats."""

    @abstractmethod
    def indexes(self, values: Any, asking: Asking, device: str | None) -> Iterator[Index]:  # noqa: ANN401
        """Yield indexes of values that find together what is near."""

    def by_rows(self, nearest: Nearest, once: Once, owner_M: np.ndarray, num_rows: int) -> Nearest:
        """Return what is nearest to rows by what is nearest to the values of their items, whose rows are `owner_M`, (M,)."""
        found = Nearest(num_rows)
        met = np.flatnonzero(nearest.of_N[once.of_M] >= 0)
        value = once.of_M[met]
        found.add(owner_M[met], nearest.of_N[value], nearest.place_N[value], nearest.distance_N[value])
        return found

    def kept(self, table: pa.Table) -> pa.ChunkedArray:
        """Return what is compared of rows."""
        return kept_column(table, self.name)

    def check(self, fields: dict[str, pa.Field], reference: Reference) -> None:
        """Raise ConfigError for columns that cannot be compared."""
        theirs = reference.column(self.column(reference))
        mine = self.facts(fields)
        if (mine.kind, mine.width) != (theirs.kind, theirs.width):
            raise ConfigError(
                f"`{self.name}` is {_told(mine)}, but `{self.column(reference)}` of reference `{reference.name}` is "
                f"{_told(theirs)}",
                hint="compare columns of one kind, made by one stage",
            )

    def facts(self, fields: dict[str, pa.Field]) -> ColumnFacts:
        """Return what the rows' own column holds."""
        kind = fields[column_of(self.name)].type
        hashed = self.name == column_of(self.name) and is_hash(self.name, kind)
        return facts_of(self.name, kind if hashed or is_embedding(kind) else pa.binary(16))


def _told(facts: ColumnFacts) -> str:
    size = f"{facts.width} numbers" if facts.kind == "embedding" else f"{64 * facts.width} bits"
    return f"{'an' if facts.kind == 'embedding' else 'a'} {facts.kind} of {size}"


@dataclass(frozen=True)
class Equal(Comparison):
    """Rows of which a value is equal."""

    name: str
    method: int = 0

    def column(self, reference: Reference) -> str:
        """Return the column of the same name; an eval set that lay in files has its files' own bytes as stored ones."""
        known = reference.facts.columns
        return "sha256" if self.name == "raw_sha256" and self.name not in known and "sha256" in known else self.name

    def once(self, values: np.ndarray) -> Once:
        """Return digests, or hashes, each once."""
        found = collapse(values)
        return Once(found.values_UW, found.of_N)

    def indexes(self, values: np.ndarray, asking: Asking, device: str | None) -> Iterator[Index]:
        """Yield an index."""
        return hash_indexes(values, 0, asking)


@dataclass(frozen=True)
class Alike(Equal):
    """Rows whose hashes differ in few bits."""

    radius: int = 0
    any_chance: bool = False
    method: int = 1

    def column(self, reference: Reference) -> str:
        """Return the hashes of all views, if the reference has them, or else the plain ones."""
        plain = self.name.removesuffix(_VIEWS)
        known = [name for name in (f"{plain}{_VIEWS}", plain) if name in reference.facts.columns]
        return known[0] if known else self.name

    def indexes(self, values: np.ndarray, asking: Asking, device: str | None) -> Iterator[Index]:
        """Yield indexes by choices of blocks."""
        return hash_indexes(values, self.radius, asking)

    def check(self, fields: dict[str, pa.Field], reference: Reference) -> None:
        """Refuse what is no hash, and a radius at which rows are near by chance."""
        if (facts := self.facts(fields)).kind != "hash":
            raise ConfigError(
                f"`likeness` compares hashes, but `{self.name}` is {_told(facts)}", hint="take `phash` or `pdq` of `fingerprint`"
            )
        super().check(fields, reference)
        links = chance_links(reference.facts.rows + 1, self.radius, 64 * facts.width)
        if links > _LEAST_CHANCE and not self.any_chance:
            raise ConfigError(
                f"of the {reference.facts.rows:,} rows of reference `{reference.name}`, {links:.2g} are within {self.radius} of "
                f"{64 * facts.width} bits of a row by chance",
                hint="take a smaller radius or `pdq`, or say `any_chance: true`",
            )


@dataclass(frozen=True)
class Meaning(Comparison):
    """Rows whose embeddings have at least a cosine."""

    name: str
    cosine: float
    method: int = 2

    def once(self, values: Any) -> Once:  # noqa: ANN401
        """Return the vectors, each once."""
        return Once(*distinct(values))

    def indexes(self, values: Any, asking: Asking, device: str | None) -> Iterator[Index]:  # noqa: ANN401
        """Yield the vectors."""
        yield VectorIndex(values, self.cosine, best_screen(device))

    def check(self, fields: dict[str, pa.Field], reference: Reference) -> None:
        """Refuse what is no embedding."""
        if (facts := self.facts(fields)).kind != "embedding":
            hint = "name a column of embeddings, such as `clip_score: {embeddings: [image]}` writes"
            raise ConfigError(f"`semantic` compares embeddings, but `{self.name}` is {_told(facts)}", hint=hint)
        super().check(fields, reference)

    def check_model(self, maker: dict[str, object], reference: Reference, stage: str) -> None:
        """Refuse embeddings of another model than the reference's."""
        theirs, mine = reference.column(self.name), model_of(maker)
        if theirs.model is None or mine["model"] is None or (theirs.model, theirs.weights) == (mine["model"], mine["weights"]):
            return
        other = "" if theirs.model != mine["model"] else " with other weights"
        raise ConfigError(
            f"`{stage}`: `{self.name}` is made by {mine['model']}, that of reference `{reference.name}` by {theirs.model}{other}",
            hint="embeddings of two models cannot be compared: make the reference anew by this plan's model",
        )


@dataclass(frozen=True)
class Worded(Equal):
    """Rows of whose runs of words a share is known; the sample that has most of them is named, and the distance is the rest."""

    share: float = 1.0
    method: int = 3

    def facts(self, fields: dict[str, pa.Field]) -> ColumnFacts:
        """Return that these are hashes of runs."""
        return ColumnFacts(kind="hash", width=1)

    def by_rows(self, nearest: Nearest, once: Once, owner_M: np.ndarray, num_rows: int) -> Nearest:
        """Return for each row that has its share the first of those with most of its runs."""
        found = Nearest(num_rows)
        met = np.flatnonzero(nearest.of_N[once.of_M] >= 0)
        value, row = once.of_M[met], owner_M[met]
        share = np.bincount(row, minlength=num_rows) / np.maximum(np.bincount(owner_M, minlength=num_rows), 1)
        # Places of several references as one number, in their order.
        pairs = np.stack([nearest.of_N[value].astype(np.int64), nearest.place_N[value]], axis=1)
        places, number = np.unique(pairs, axis=0, return_inverse=True)
        most = most_met(row, number.ravel(), num_rows)
        # So many in a hundred is meant as it is written: 0.7 of 10 runs are 7.
        at = np.flatnonzero((most >= 0) & (share >= self.share - 1e-9))
        found.add(at, places[most[at], 0], places[most[at], 1], (1 - share[at]).astype(np.float32))
        return found


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


class Comparing(Model):
    """The fields of stages that compare rows with references."""

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

    def compared(self) -> tuple[str, ...]:
        """Return the columns that are compared."""
        return tuple(dict.fromkeys(source_of(way.name) for way in self.comparisons()))

    def opened(self) -> tuple[Reference, ...]:
        """Return the references."""
        return tuple(opened(url) for url in self.references)

    def digests(self) -> tuple[str, ...]:
        """Return the digest of each reference."""
        return tuple(reference.digest for reference in self.opened())

    def check_references(self, fields: dict[str, pa.Field]) -> None:
        """Raise ConfigError for a reference without what is asked of it."""
        for reference in self.opened():
            for way in self.comparisons():
                way.check(fields, reference)

    def check_models(self, makers: dict[str, dict[str, object]], stage: str) -> None:
        """Raise ConfigError for embeddings of two models."""
        for reference in self.opened():
            for way in self.comparisons():
                if isinstance(way, Meaning):
                    way.check_model(makers.get(way.name, {}), reference, stage)

    def moved(self, home: Path) -> tuple[str, ...]:
        """Return where the references lie, absolute from `home`; those in a store are that already."""
        return tuple(url if "://" in url else str(home / url) for url in self.references)

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
