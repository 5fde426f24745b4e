"""Ways to find rows that are alike though nothing in them is equal: by hashes of their look, by vectors, or by their words.

Decided here: how a way's work is cut into parts that tasks share. Any two rows may be alike, so each task sees what is
compared of all of them (see `Share`), mapped and not read, and finds its part of the pairs. What rows are is left to `dedupe`.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmdata.config import Model
from mmdata.dedupe import clustered, minhash, semdedup
from mmdata.dedupe.alike import REASON, Items, Things, hash_items, hashes_in, judge
from mmdata.dedupe.clustered import Clustering, Stays
from mmdata.dedupe.cosine import Unit, best_screen, near_vectors, tiles
from mmdata.dedupe.groups import dropped
from mmdata.dedupe.hamming import MAX_PAIRS, chance_links, collapse, near_values
from mmdata.dedupe.lines import Lines
from mmdata.dedupe.pairs import Pairs, from_table, to_table
from mmdata.errors import ConfigError, RunError
from mmdata.schema import NOTE, is_embedding
from mmdata.stages.passes import Share

COMPARED = "_by0"  # the column of records that a way compares
_LEAST_CHANCE = 0.1
_BITS = {"pdq": 256, "pixels": 128, "sha256": 256, "raw_sha256": 256}  # of columns in hex
_HELD_MIB = 512  # of vectors, as float32
# What the largest task of a way holds of each row, measured with all that it reads of it: ids, hash, places, ranks.
_BYTES_64, _BYTES_256, _BYTES_VECTOR = 400, 700, 450


class Way(Model, ABC):
    """How rows are compared.

    column  what is compared
    """

    column: str

    def prepare(self, records: pa.Table, *, whole: bool) -> pa.Table:
        """Return the records of a partition with what else is kept of each row; `whole`: samples are compared, not rows."""
        return records

    @abstractmethod
    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse a column of another type."""

    def check_size(self, num: int, fields: dict[str, pa.Field]) -> None:
        """Refuse what makes no sense of so many rows."""

    @abstractmethod
    def shares(self, device: str | None) -> tuple[Share, ...]:
        """Return how pairs are found, by tasks; `device` is None where a GPU may be used, else `cpu`."""

    @abstractmethod
    def memory_mib(self, num: int, kind: pa.DataType) -> int:
        """Return what its largest task holds for so many rows, beside the worker itself."""

    @abstractmethod
    def judge(self, rows: pa.Table, found: pa.Table, things: Things, share: float | None) -> pa.Table:
        """Return the verdicts by what the last of the shares found.

        rows   the records: `_partition`, `_row`, `sample_id`, `position`, what is compared
        share  of things of several items at least so many are to be alike, see `dedupe.alike.things_alike`
        """


class Hashes(Way):
    """Hashes that differ in few bits.

    column      `phash` or `pdq` of `fingerprint`, or their `_views`: uint64, or hex digits, 16 a word, or lists of these. Also
                `pixels` or a SHA-256, with a radius of 0
    radius      in how many bits two of them may differ
    any_chance  allow a radius at which more than a tenth of a link a row comes by chance
    """

    column: str = "phash"
    radius: Annotated[int, Field(ge=0, le=64)] = 4
    any_chance: bool = False

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse what is no hash."""
        kind = _item_type(fields[self.column].type)
        if not (pa.types.is_uint64(kind) or pa.types.is_string(kind)):
            hint = "take `phash` or `pdq` of `fingerprint`"
            raise ConfigError(f"`dedupe`: likeness compares hashes, but `{self.column}` is {fields[self.column].type}", hint=hint)

    def chance(self, num: int, kind: pa.DataType) -> float:
        """Return how many of `num` rows look like a row by chance; refuse more than a tenth unless that was asked for.

        Hex of a column that no `fingerprint` wrote may be of any length: it counts as 64 bits, as cautious as can be.
        """
        known = _BITS.get(self.column.removesuffix("_views"), 64)
        return self._chance(num, 64 if pa.types.is_uint64(_item_type(kind)) else known)

    def _chance(self, num: int, bits: int) -> float:
        links = chance_links(num, self.radius, bits)
        if links > _LEAST_CHANCE and not self.any_chance:
            raise ConfigError(
                f"`dedupe`: of {num:,} rows, {links:.2g} are within {self.radius} of {bits} bits of a row by chance",
                hint="take a smaller radius or `pdq`, or say `any_chance: true`",
            )
        return links

    def check_size(self, num: int, fields: dict[str, pa.Field]) -> None:
        """Refuse a radius at which chance alone makes rows alike."""
        self.chance(num, fields[self.column].type)

    def memory_mib(self, num: int, kind: pa.DataType) -> int:
        """Return what choosing takes: all hashes and ids, and what ranks them."""
        return num * (_BYTES_64 if pa.types.is_uint64(_item_type(kind)) else _BYTES_256) >> 20

    def __str__(self) -> str:
        """Say it for people."""
        return f"{self.column} within {self.radius}"

    def shares(self, device: str | None) -> tuple[Share, ...]:
        """Collapse equal hashes, then share the choices of blocks."""
        return (Share(self._values, most=1), Share(self._pairs))

    def _values(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        values = collapse(hashes_in(rows.column(COMPARED))[0]).values_UW
        self._chance(rows.num_rows, 64 * values.shape[1])
        return pa.table({f"word{word}": values[:, word] for word in range(values.shape[1])})

    def _pairs(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert found is not None
        values = np.column_stack([column.to_numpy() for column in found.columns])
        return to_table(near_values(values, self.radius, part=(part, parts)))

    def judge(self, rows: pa.Table, found: pa.Table, things: Things, share: float | None) -> pa.Table:
        """Return the verdicts."""
        refuse_many(found)
        return judge(rows, things, hash_items(rows, COMPARED, things), from_table(found), share)


class Clusters(Model):
    """Look for pairs inside clusters and across their borders, see `dedupe.clustered`: faster, and how much was found is told.

    clusters  how many; by default 2 * sqrt(rows)     border   share of the distance at which nothing is missed
    visits    clusters that a row visits at most      checked  rows that are compared with all others to measure the recall
    """

    clusters: Annotated[int, Field(ge=1)] | None = None
    border: Annotated[float, Field(ge=0, le=1)] = 1.0
    visits: Annotated[int, Field(ge=0)] = 8
    checked: Annotated[int, Field(ge=0)] = 512
    seed: int = 0

    def how(self) -> Clustering:
        """Return it as the algorithm wants it."""
        return Clustering(self.clusters, self.border, self.visits, self.checked, self.seed)


class _Vectors(Way):
    """Embeddings. Products are made on a GPU where the stage's `resources` ask for one: what comes out is the same."""

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse what is no embedding."""
        if not is_embedding(fields[self.column].type):
            raise ConfigError(
                f"`dedupe` needs embeddings, but `{self.column}` is {fields[self.column].type}",
                hint="name a column of embeddings, such as `clip_score: {embeddings: [image]}` writes",
            )

    def memory_mib(self, num: int, kind: pa.DataType) -> int:
        """Return what choosing takes, or a share of the products."""
        return max(num * _BYTES_VECTOR >> 20, min(num * int(kind.list_size) * 4 >> 20, _HELD_MIB) + 64)

    def _unit(self, rows: pa.Table) -> Unit:
        column = rows.column(COMPARED)
        return Unit(Lines(column if column.null_count == 0 else column.drop_null()), _HELD_MIB)


def _places(rows: pa.Table) -> np.ndarray:
    """Return the row of each vector."""
    found: np.ndarray = np.flatnonzero(rows.column(COMPARED).is_valid().to_numpy())
    return found


class Vectors(_Vectors):
    """Embeddings whose cosine is at least a threshold, exactly, or nearly so by `clustered`."""

    cosine: Annotated[float, Field(gt=0, le=1)] = 0.95
    clustered: Clusters | None = None

    def __str__(self) -> str:
        """Say it for people."""
        return f"{self.column} of cosine {self.cosine:g}"

    def shares(self, device: str | None) -> tuple[Share, ...]:
        """Share the blocks of products, or learn the centres and share what is done with them."""
        if self.clustered is None:
            return (Share(partial(self._tiles, device)),)
        return (Share(self._centres, most=1), Share(self._stays), Share(partial(self._in_clusters, device)))

    def _tiles(self, device: str | None, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        screen, unit = best_screen(device), self._unit(rows)
        return to_table(near_vectors(unit, self.cosine, screen, tiles(len(unit), screen, (part, parts))))

    def _centres(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert self.clustered is not None
        unit, how = self._unit(rows), self.clustered.how()
        return _centre_table(clustered.centres_of(unit, clustered.num_clusters_of(how, len(unit)), how.seed))

    def _stays(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert self.clustered is not None
        assert found is not None
        how, centres = self.clustered.how(), _centres_in(found)
        reach = clustered.reach_of(self.cosine, how)
        return _stay_table(clustered.stays_of(self._unit(rows), centres, reach, how.visits, (part, parts)))

    def _in_clusters(self, device: str | None, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert self.clustered is not None
        assert found is not None
        screen, unit, share = best_screen(device), self._unit(rows), (part, parts)
        pairs = clustered.pairs_in_clusters(unit, _stays_in(found), self.cosine, screen, share)
        truth = clustered.pairs_checked(unit, self.cosine, self.clustered.how(), screen, share)
        return pa.concat_tables([_marked(pairs, truth=False), _marked(truth, truth=True)])

    def judge(self, rows: pa.Table, found: pa.Table, things: Things, share: float | None) -> pa.Table:
        """Return the verdicts, and how much was found."""
        refuse_many(found)
        place, note = _places(rows), None
        if self.clustered is None:
            pairs = from_table(found)
        else:
            truth = found.column("truth").to_numpy()
            pairs, there = (from_table(found.filter(pa.array(mask))) for mask in (~truth, truth))
            note = str(clustered.measured(pairs, there, len(place), self.clustered.how()))
        said = judge(rows, things, Items(np.arange(len(place)), things.of_N[place]), pairs, share)
        return said if note is None else said.replace_schema_metadata({NOTE: note})


class SemDeDup(_Vectors):
    """SemDeDup's rule: inside a cluster all go that have a nearer one than `epsilon` before them, see `dedupe.semdedup`.

    keep      which come first: `hard` (far from the cluster's centre), `easy` (near it), `random`
    epsilon   one minus the cosine      clusters   how many; by default 2 * sqrt(rows)
    """

    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.05
    keep: semdedup.Keep = "hard"
    clusters: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0

    def __str__(self) -> str:
        """Say it for people."""
        return f"{self.column} by SemDeDup, {self.keep}"

    def shares(self, device: str | None) -> tuple[Share, ...]:
        """Learn the centres, put rows into clusters, and share the clusters."""
        return (Share(self._centres, most=1), Share(self._stays), Share(self._befores))

    def _centres(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        unit = self._unit(rows)
        num = clustered.num_clusters_of(Clustering(self.clusters), len(unit))
        return _centre_table(clustered.centres_of(unit, num, self.seed))

    def _stays(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert found is not None
        return _stay_table(clustered.stays_of(self._unit(rows), _centres_in(found), part=(part, parts)))

    def _befores(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert found is not None
        order = (self.keep, self.seed)
        out, at = semdedup.befores(self._unit(rows), _stays_in(found), self.epsilon, order, (part, parts))
        return pa.table({"out": out, "before": at})

    def judge(self, rows: pa.Table, found: pa.Table, things: Things, share: float | None) -> pa.Table:
        """Return the verdicts; a keeper may be farther away than `epsilon`, since likeness chains here."""
        place, unit = _places(rows), self._unit(rows)
        before = np.arange(len(unit))
        before[found.column("out").to_numpy()] = found.column("before").to_numpy()
        nearest, distance = semdedup.by_chains(unit, before)
        keeper_N, distance_N = np.arange(rows.num_rows), np.zeros(rows.num_rows, np.float32)
        keeper_N[place], distance_N[place] = place[nearest], distance
        return dropped(rows, keeper_N, distance_N, REASON)


class Texts(Way):
    """Texts that share most of their runs of words, by MinHash: near ones are met by chance, and each is checked exactly.

    jaccard  of the runs of both texts at least this share is common    words  a run
    hashes   at most so many are taken of each text: they meet 99 of 100 pairs at `jaccard`, and more of those above it
    seed     of the hashes
    """

    column: str = "text"
    jaccard: Annotated[float, Field(gt=0, le=1)] = 0.8
    words: Annotated[int, Field(ge=1, le=100)] = 5
    hashes: Annotated[int, Field(ge=1, le=1024)] = 128
    seed: int = 0

    @property
    def _how(self) -> minhash.MinHash:
        how = minhash.minhash_for(self.jaccard, self.words, self.hashes)
        return replace(how, seed=self.seed)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse what is no text."""
        if not pa.types.is_string(fields[self.column].type):
            kind = fields[self.column].type
            raise ConfigError(
                f"`dedupe` needs texts, but `{self.column}` is {kind}", hint="name a column of texts, such as `text`"
            )

    def memory_mib(self, num: int, kind: pa.DataType) -> int:
        """Return what a share holds beside the runs of those texts that have another beside them."""
        return num * (_BYTES_64 + 8 * self._how.bands) >> 20

    def __str__(self) -> str:
        """Say it for people."""
        return f"words of {self.column}, {self.jaccard:g} of them"

    def prepare(self, records: pa.Table, *, whole: bool) -> pa.Table:
        """Add what is kept of each text; of samples the first row stands for all their texts."""
        if whole:
            records = records.set_column(records.schema.get_field_index(COMPARED), COMPARED, _whole(records))
        kept = minhash.sketches(records.column(COMPARED), self._how).to_table()
        for name in kept.column_names:
            records = records.append_column(name, kept.column(name))
        return records

    def shares(self, device: str | None) -> tuple[Share, ...]:
        """Collapse texts of the same runs, then share the bands."""
        return (Share(self._values, most=1), Share(self._pairs))

    def _values(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        values = self._collapsed(rows)
        return pa.table({"first": values.first_U[: len(values.keys_VB)]})

    def _collapsed(self, rows: pa.Table) -> minhash.Values:
        return minhash.collapse(rows.column(COMPARED), minhash.Sketches.from_table(rows), self._how)

    def _pairs(self, rows: pa.Table, found: pa.Table | None, part: int, parts: int) -> pa.Table:
        assert found is not None
        first = found.column("first").to_numpy()
        keys = minhash.Sketches.from_table(rows.select(["keys", "set"]).take(pa.array(first))).keys_NB
        values = minhash.Values(rows.column(COMPARED), self.words, keys, first, np.zeros(0, np.int64))
        return to_table(minhash.near_values(values, self.jaccard, (part, parts)))

    def judge(self, rows: pa.Table, found: pa.Table, things: Things, share: float | None) -> pa.Table:
        """Return the verdicts."""
        refuse_many(found)
        values = self._collapsed(rows)
        worded = np.flatnonzero(values.of_N < len(values.keys_VB))
        return judge(rows, things, Items(values.of_N[worded], things.of_N[worded]), from_table(found), share)


def _whole(records: pa.Table) -> pa.ChunkedArray:
    """Return the texts that are compared where samples are: a document's all at its first row, a pair's own."""
    inside = records.column("document").to_numpy()
    own = records.column(COMPARED).cast(pa.large_string())
    documents = minhash.whole_at_first(records.filter(pa.array(inside)), COMPARED)
    at = np.arange(len(inside)) + len(documents)
    at[inside] = np.arange(len(documents))
    return pa.chunked_array([*documents.chunks, *own.chunks], pa.large_string()).take(pa.array(at))


def refuse_many(found: pa.Table) -> None:
    """Raise RunError where all parts together found more pairs than the task that chooses can hold."""
    if found.num_rows > MAX_PAIRS:
        raise RunError(
            f"`dedupe`: {found.num_rows:,} pairs of rows are alike", hint="compare more strictly, or drop equal rows first"
        )


def _item_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_list(kind) else kind


def _centre_table(centres_KD: np.ndarray) -> pa.Table:
    dim = centres_KD.shape[1]
    return pa.table({"centre": pa.FixedSizeListArray.from_arrays(pa.array(centres_KD.ravel(), pa.float32()), dim)})


def _centres_in(found: pa.Table) -> np.ndarray:
    column = found.column("centre").combine_chunks()
    centres: np.ndarray = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return centres


def _stay_table(stays: Stays) -> pa.Table:
    columns = {"vector": stays.vector_S, "cluster": stays.cluster_S, "guest": pa.array(stays.guest_S), "cosine": stays.cosine_S}
    return pa.table(columns)


def _stays_in(found: pa.Table) -> Stays:
    return Stays(*(found.column(name).to_numpy() for name in ("vector", "cluster", "guest", "cosine")))


def _marked(pairs: Pairs, *, truth: bool) -> pa.Table:
    return to_table(pairs).append_column("truth", pa.array(np.full(len(pairs), truth)))
