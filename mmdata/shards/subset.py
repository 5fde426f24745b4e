"""DataComp's subset files, and how often each sample of a corpus is in one.

A subset is an array of 128-bit ids as two halves, `u8,u8`: a `.npy`, or the records alone. An id that is in it k times asks
for k copies. Decided here: all is done by sorting and bisecting columns of 64-bit numbers, 16 to 50 bytes an id.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmdata.errors import ConfigError
from mmdata.shards.corpus import ID_DTYPE

IDS = pa.schema([pa.field("f0", pa.uint64()), pa.field("f1", pa.uint64())])
_MAGIC = b"\x93NUMPY"
_FORMAT = "a subset is a `.npy` of dtype `u8,u8` with one dimension, as DataComp's `apply_filter.py` saves it"


@dataclass(frozen=True)
class Matched:
    """What a subset asks of a corpus.

    copies    (N,) int64, how often each sample of the corpus is asked for
    distinct  different ids in the subset
    missing   those of them that no sample has
    """

    copies: np.ndarray
    distinct: int
    missing: int


def read_subset(path: Path) -> np.ndarray:
    """Return the ids in a subset file, (n,) u8,u8, mapped; raise ConfigError when it is none."""
    try:
        with path.open("rb") as file:
            plain = file.read(len(_MAGIC)) != _MAGIC
        if plain and path.stat().st_size % ID_DTYPE.itemsize:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes are no whole number of ids", hint=_FORMAT)
        if plain and path.stat().st_size:
            return np.memmap(path, ID_DTYPE, "r")
        found: np.ndarray = np.zeros(0, ID_DTYPE) if plain else np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a subset: {error}", hint=_FORMAT) from error
    if found.dtype != ID_DTYPE or found.ndim != 1:
        raise ConfigError(f"{path}: holds {found.ndim} dimensions of {found.dtype}", hint=_FORMAT)
    return found


def write_subset(path: Path, pieces: Iterable[np.ndarray], num_ids: int) -> str:
    """Write ids, (n,) u8,u8 in order piece by piece, as `np.save` would write them all; return the file's SHA-256.

    Nothing but a piece is held. Raises ValueError when the pieces are not `num_ids` ids in order.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(ID_DTYPE), "fortran_order": False, "shape": (num_ids,)}
    )
    digest, last, left = hashlib.sha256(header.getvalue()), np.zeros(0, ID_DTYPE), num_ids
    with path.open("wb") as file:
        file.write(header.getvalue())
        for piece in pieces:
            digest.update(piece.tobytes())
            file.write(piece.tobytes())
            ends, left = np.concatenate([last, piece]), left - len(piece)
            if not in_order(ends):
                raise ValueError("the ids of a subset are not in order")
            last = ends[-1:]
    if left:
        raise ValueError(f"{num_ids} ids were promised, {num_ids - left} came")
    return digest.hexdigest()


def ids_of(sample_ids: pa.Array) -> pa.Table:
    """Return 128-bit ids, texts of 32 hex digits, as two columns of 64 bits, `f0` the upper half."""
    data = bytes.fromhex("".join(sample_ids.to_pylist()))
    halves = np.frombuffer(data, ">u8").reshape(-1, 2).astype(np.uint64)
    return pa.table([pa.array(halves[:, 0]), pa.array(halves[:, 1])], IDS)


def sorted_ids(table: pa.Table) -> np.ndarray:
    """Return ids that `ids_of` gave in order, (n,) u8,u8; repeats are kept."""
    high, low = (table.column(name).to_numpy() for name in IDS.names)
    order = np.lexsort((low, high))
    found = np.empty(len(order), ID_DTYPE)
    found["f0"], found["f1"] = high[order], low[order]
    return found


def match(ids: np.ndarray, subset: np.ndarray) -> Matched:
    """Count how often each id of a corpus is in a subset, sorted or not; both are u8,u8."""
    high, low, repeats = _distinct(subset)
    order = np.argsort(ids["f0"])  # neighbours then meet in the cache
    place = _bisect(high, low, ids["f0"][order], ids["f1"][order])
    found = place < len(high)
    copies = np.zeros(len(ids), np.int64)
    copies[order[found]] = repeats[place[found]]
    met = np.zeros(len(high), bool)
    met[place[found]] = True
    return Matched(copies, len(high), int((~met).sum()))


def turns(ids: np.ndarray) -> np.ndarray:
    """Return for each id how many of the same stand before it, (N,) int64."""
    order = np.lexsort((ids["f1"], ids["f0"]))  # stable
    starts = np.flatnonzero(_new(ids["f0"][order], ids["f1"][order]))
    sizes = np.diff(np.append(starts, len(ids)))
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids)) - np.repeat(starts, sizes)
    return found


def in_order(ids: np.ndarray) -> bool:
    """Say whether ids, (n,) u8,u8, stand in order; repeats may follow each other."""
    high, low = ids["f0"], ids["f1"]
    return bool(((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] >= low[:-1]))).all())


def _distinct(subset: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct ids in order, as two columns, and how often each comes."""
    high, low = np.ascontiguousarray(subset["f0"]), np.ascontiguousarray(subset["f1"])
    if not in_order(subset):
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
    starts = np.flatnonzero(_new(high, low))
    return high[starts], low[starts], np.diff(np.append(starts, len(high)))


def _new(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Say of sorted ids which differ from the one before."""
    return np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))[: len(high)]


def _bisect(high: np.ndarray, low: np.ndarray, asked_high: np.ndarray, asked_low: np.ndarray) -> np.ndarray:
    """Return where each id asked for stands among the distinct ones, and their number for those that are not there."""
    left, right = np.searchsorted(high, asked_high), np.searchsorted(high, asked_high, side="right")
    stop = right.copy()
    while len(apart := np.flatnonzero(left < right)):  # one turn, unless ids share their upper half
        middle = (left[apart] + right[apart]) // 2
        below = low[middle] < asked_low[apart]
        left[apart] = np.where(below, middle + 1, left[apart])
        right[apart] = np.where(below, right[apart], middle)
    there = left < stop
    there[there] = low[left[there]] == asked_low[there]
    return np.where(there, left, len(high))
