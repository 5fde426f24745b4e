"""Ways to compare rows with a reference: by equal values, hashes, embeddings, or runs of words.

Decided here: of all that a way finds for a row the nearest counts; of these the first reference, then the first of its rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmdata.dedupe.cosine import best_screen
from mmdata.dedupe.cross import Asking, hash_indexes
from mmdata.dedupe.cross_vectors import VectorIndex, distinct
from mmdata.dedupe.exact import column_of
from mmdata.dedupe.hamming import chance_links, collapse
from mmdata.dedupe.kept import facts_of, is_hash, kept_column, model_of
from mmdata.dedupe.met import Index, Nearest
from mmdata.dedupe.ngrams import most_met
from mmdata.errors import ConfigError
from mmdata.schema import is_embedding
from mmdata.shards.reference import ColumnFacts, Reference

REASONS = ("in", "near_hash", "near_embedding", "near_text")  # by the number of a way's method
_LEAST_CHANCE = 0.1
_VIEWS = "_views"


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
