"""Copy media into tars in the corpus's order, so that every shard reads its part of each on end: an external merge sort.

Decided here: what is sorted at a time fits the memory that is given for it, and its sizes are known beforehand. Where reads
come one at a time, from a store that answers late or a file that is only read in groups, this reads every file once, from
its start to its end. A corpus of N bytes, sorted M at a time, is then read in pieces of M * M / N bytes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.errors import RunError
from mmdata.failpoint import step
from mmdata.schema import PAYLOAD
from mmdata.shards.payloads import read_payloads
from mmdata.shards.tar import TarFile
from mmdata.shards.units import BLOCK_TYPE, in_order, payloads_of, suffix_of, windows
from mmdata.storage import Store

LARGE = 16 << 20  # such a payload is worth a read of its own: it is not copied


@dataclass(frozen=True)
class SortPlace:
    """Where sorted media are written: the run's store, a folder in it, the unit's number, a scratch folder.

    memory  bytes of media that may be held at a time
    """

    store: Store
    folder: str
    unit: int
    scratch: Path
    memory: int


def sort_media(place: SortPlace, records: pa.Table) -> pa.Table:
    """Copy the media of records into tars of at most `memory` bytes each, `UNIT.0.tar` and so on, each in the corpus's order.

    Returns the records, in that order, with references to the copies; media above 16 MiB, or above `memory`, stay where
    they lie.
    """
    records = in_order(records)
    payloads = payloads_of(records)
    sizes = payloads.field("size").to_numpy()
    copied = np.flatnonzero(sizes <= min(LARGE, place.memory))
    keys = pa.table({name: payloads.field(name).take(pa.array(copied)) for name in ("set", "tar", "offset")})
    lying = copied[pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]).to_numpy()]
    tars, offsets = np.full(len(sizes), -1), payloads.field("offset").to_numpy().copy()
    for number, window in enumerate(windows(sizes[lying], place.memory)):
        inside = np.sort(lying[window.start : window.stop])
        tars[inside] = number
        offsets[inside] = _copy(place, f"{place.unit}.{number}.tar", payloads.take(pa.array(inside)))
    return _pointing(records, _moved(place, payloads, tars, offsets))


def _copy(place: SortPlace, name: str, payloads: pa.StructArray) -> list[int]:
    """Write the media of references into a tar, in their order; return where each lies."""
    refs = payloads.to_pylist()
    media: list[bytes] = [b""] * len(refs)
    for at, data in read_payloads(place.store, refs):
        media[at] = data
    media.reverse()
    path, offsets = place.scratch / name, []
    with TarFile(path) as tar:
        for number in range(len(refs)):
            data = media.pop()  # it is let go of once it is written
            offsets.append(tar.write(f"{number:08d}", {suffix_of(data): data})[0].offset)
    with step("media"):
        if not place.store.create_from(f"{place.folder}/{name}", path):
            raise RunError(f"{place.store.url}/{place.folder}/{name} exists with other bytes", hint="use a new run folder")
    path.unlink()
    return offsets


def _moved(place: SortPlace, payloads: pa.StructArray, tars: np.ndarray, offsets: np.ndarray) -> pa.StructArray:
    """Return references to the copies; `tars` numbers the tar of each, -1 for a payload that stays where it is."""
    names = pa.array([f"{place.unit}.{number}.tar" for number in range(int(tars.max(initial=-1)) + 1)], pa.string())
    name = names.take(pa.array(tars, mask=tars < 0))
    new = {
        "set": pc.if_else(name.is_valid(), place.folder, payloads.field("set")),
        "tar": pc.coalesce(name, payloads.field("tar")),
        "offset": pa.array(offsets, pa.int64()),
    }
    columns = [new.get(field.name, payloads.field(field.name)) for field in PAYLOAD]
    return pa.StructArray.from_arrays(columns, fields=list(PAYLOAD))


def _pointing(records: pa.Table, payloads: pa.StructArray) -> pa.Table:
    """Return records with other payload references: one for each that there is, in order."""
    lists = records.column("blocks").combine_chunks()
    blocks = lists.flatten()
    held = blocks.field("payload").is_valid().to_numpy(zero_copy_only=False)
    column = payloads.take(pa.array(np.cumsum(held) - 1, mask=~held))
    columns = [column if field.name == "payload" else blocks.field(field.name) for field in BLOCK_TYPE]
    ends = np.cumsum(lists.value_lengths().to_numpy(), dtype=np.int32)
    blocks = pa.StructArray.from_arrays(columns, fields=list(BLOCK_TYPE))
    lists = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), blocks)
    return records.set_column(records.schema.get_field_index("blocks"), records.schema.field("blocks"), lists)
