"""Embeddings beside a column file: `.npy`, float16, one line a row held.

A column file names each array that belongs to it, with its SHA-256, in its metadata, and holds in the embedding's place a
flag: whether the row has one. An array is written before the file that vouches for it, under a name that holds its digest, so
that what a killed attempt left is never taken for another's.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa

from mmdata.schema import embedding_array, is_embedding
from mmdata.storage import digest_bytes

BESIDE = b"beside"


class Beside(TypedDict):
    """What a column file says of an array beside it; the file's name goes behind its own."""

    file: str
    sha256: str
    dim: int


@dataclass(frozen=True)
class Array:
    """An array that goes beside a column file: its name ends what the column file's name begins."""

    name: str
    data: bytes


def put_beside(table: pa.Table) -> tuple[pa.Table, list[Array]]:
    """Take the embeddings out of a table: return it with flags in their place, and the arrays."""
    arrays: list[Array] = []
    names: dict[str, Beside] = {}
    for index, field in enumerate(table.schema):
        if not is_embedding(field.type):
            continue
        column = table.column(index).combine_chunks()
        buffer = io.BytesIO()
        np.save(buffer, _lines(column), allow_pickle=False)
        digest = digest_bytes(buffer.getvalue())
        arrays.append(Array(f"{field.name}.{digest[:16]}.npy", buffer.getvalue()))
        names[field.name] = {"file": arrays[-1].name, "sha256": digest, "dim": field.type.list_size}
        table = table.set_column(index, pa.field(field.name, pa.bool_()), column.is_valid())
    if names:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), BESIDE: json.dumps(names)})
    return table, arrays


def named_beside(metadata: Mapping[bytes, bytes]) -> dict[str, Beside]:
    """Return what the metadata of a column file say of its arrays, by column."""
    found: dict[str, Beside] = json.loads(metadata.get(BESIDE, b"{}"))
    return found


def joined(flags: pa.ChunkedArray, data: bytes, told: Beside) -> pa.Array:
    """Return the embeddings of a column file; ValueError where the array is not the one that it names."""
    if digest_bytes(data) != told["sha256"]:
        raise ValueError("its SHA-256 is not the one that its column file names")
    lines = np.load(io.BytesIO(data), allow_pickle=False)
    if lines.shape != (len(flags), told["dim"]):
        raise ValueError(f"it holds {lines.shape}, not ({len(flags)}, {told['dim']})")
    return embedding_array(lines, ~flags.to_numpy())


def _lines(column: pa.Array) -> np.ndarray:
    """Return the (N, D) float16 of a column, zeros where it is null."""
    lines = np.zeros((len(column), column.type.list_size), np.float16)
    lines[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return lines
