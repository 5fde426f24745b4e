"""What is kept of rows so that others can be compared with them later: hashes as they are, embeddings, digests of all else.

Decided here: what is compared for being equal is kept as 128 bits of a SHA-256, and all of them count: of two different texts
or urls to be taken for one, 10^18 others would have to be there. Texts themselves are not kept. Null and empty are nothing.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.dedupe.alike import hashes_in
from mmdata.dedupe.exact import column_of, values_of
from mmdata.dedupe.lines import Lines
from mmdata.dedupe.ngrams import LEAST_WORDS
from mmdata.dedupe.words import runs_of, words_of
from mmdata.errors import ConfigError
from mmdata.schema import is_embedding
from mmdata.shards.reference import ColumnFacts, Items

_DIGEST = pa.binary(16)
_HEX_DIGESTS = ("raw_sha256", "sha256", "pixels")  # of these the first 32 digits are the digest
_HEX_HASHES, _PDQ_WORDS = ("pdq",), 4
_WORD = 64
_RUNS = re.compile(r"runs([1-9]\d?)\((.+)\)")


def source_of(name: str) -> str:
    """Return the column that a kept one is made of: itself, or what stands in `normal(...)`, `folded(...)` or `runs8(...)`."""
    match = _RUNS.fullmatch(name)
    return match[2] if match else column_of(name)


def is_hash(name: str, kind: pa.DataType) -> bool:
    """Say whether a column holds hashes of a look: numbers of 64 bits, `pdq`, or lists of hashes."""
    return bool(pa.types.is_uint64(kind) or pa.types.is_list(kind) or (name in _HEX_HASHES and pa.types.is_string(kind)))


def facts_of(name: str, kind: pa.DataType) -> ColumnFacts:
    """Return what a reference says of a column by the type of what is kept of it."""
    if is_embedding(kind):
        return ColumnFacts(kind="embedding", width=kind.list_size)
    if kind == _DIGEST:
        return ColumnFacts(kind="digest", width=2)
    item = kind.value_type if pa.types.is_list(kind) else kind
    return ColumnFacts(kind="hash", width=1 if pa.types.is_uint64(item) else _PDQ_WORDS)


def described(name: str, facts: ColumnFacts, meanings: dict[str, str], makers: dict[str, dict[str, object]]) -> ColumnFacts:
    """Return it with what the column means and, of an embedding, the model that made it; both by the column's name."""
    meaning, maker = meanings.get(source_of(name), "as the source has it"), makers.get(source_of(name), {})
    if facts.kind == "digest":
        meaning = f"128 bits of the SHA-256 of {name}: {meaning}"
    if source_of(name) != column_of(name):
        meaning = f"each run of so many words as 64 bits, {name}: {meaning}"
    told = {"meaning": meaning} if facts.kind != "embedding" else {"meaning": meaning, **model_of(maker)}
    return facts.model_copy(update=told)


def model_of(maker: dict[str, object]) -> dict[str, object]:
    """Return name and weights of the model of a stage that makes columns, as `Plan.makers` tells of it."""
    weights = maker.get("weights", [])
    return {"model": maker.get("model"), "weights": list(weights) if isinstance(weights, list) else []}


def check_kept(names: Sequence[str], fields: dict[str, pa.Field]) -> None:
    """Raise ConfigError for columns that no stage writes, or of which nothing can be kept."""
    for name in names:
        if source_of(name) not in fields:
            raise ConfigError(f"a reference of `{name}`, which no stage writes", hint=f"columns: {', '.join(fields)}")
        kind = fields[source_of(name)].type
        if source_of(name) != column_of(name) and not pa.types.is_string(kind):
            raise ConfigError(f"a reference of `{name}`, but `{source_of(name)}` is {kind}", hint="runs of words are of texts")
        if pa.types.is_struct(kind) or (
            pa.types.is_list(kind) and not (pa.types.is_uint64(kind.value_type) or kind.value_type == pa.string())
        ):
            raise ConfigError(f"a reference of `{name}`, which is {kind}", hint="keep hashes, embeddings, texts or numbers")


def kept_column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return what is kept of a column, row by row: hashes and embeddings as they are, of all else 16 bytes."""
    if (match := _RUNS.fullmatch(name)) is not None:
        return _runs(table.column(match[2]), int(match[1]))
    kind = table.schema.field(column_of(name)).type
    if is_embedding(kind) or (name == column_of(name) and is_hash(name, kind)):
        return table.column(name)
    values = values_of(table, name)
    if name in _HEX_DIGESTS:
        found = [None if not value else bytes.fromhex(value[:32]) for value in values.to_pylist()]
    else:
        found = [
            None if not value else hashlib.sha256(value.encode()).digest()[:16] for value in values.cast(pa.string()).to_pylist()
        ]
    return pa.chunked_array([pa.array(found, _DIGEST)])


def _runs(texts: pa.ChunkedArray, num: int) -> pa.ChunkedArray:
    """Return the runs of words of each text, null for texts of too few words to say anything."""
    runs = runs_of(texts, num)
    few = np.zeros(len(texts), bool)
    one = np.flatnonzero(runs.num_N() <= 1)
    few[one] = words_of(texts.take(pa.array(one))).num_N() < LEAST_WORDS
    lists = pa.ListArray.from_arrays(pa.array(runs.first_N, pa.int32()), pa.array(runs.hash_S))
    return pa.chunked_array([pc.if_else(pa.array(few), pa.scalar(None, lists.type), lists)])


def items_of(column: pa.ChunkedArray, facts: ColumnFacts) -> Items:
    """Return the items of what `kept_column` gave, and whose they are: vectors as `Lines`.

    Raises ConfigError for hashes of another length.
    """
    if is_embedding(column.type):
        there = column.is_valid()
        return Items(Lines(column.filter(there)), np.flatnonzero(there.to_numpy()))
    if column.type == _DIGEST:
        return Items(*_digests(column))
    values, owner = hashes_in(column)
    if len(values) and values.shape[1] != facts.width:
        raise ConfigError(
            f"hashes of {values.shape[1] * _WORD} bits cannot be compared with those of {facts.width * _WORD}",
            hint="compare columns that the same kind of `fingerprint` wrote",
        )
    return Items(values if len(values) else np.zeros((0, facts.width), np.uint64), owner)


def _digests(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    there = column.is_valid().to_numpy()
    data = b"".join(value for value in column.to_pylist() if value is not None)
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2), np.flatnonzero(there)


def columns_kept(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return whose rows they are and what is kept of them: `sample_id`, `position`, then the columns."""
    told = {name: table.column(name) for name in ("sample_id", "position")}
    return pa.table(told | {name: kept_column(table, name) for name in names})
