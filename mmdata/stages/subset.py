"""The sink for a pool's metadata: which samples were kept, as a DataComp subset file."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.errors import RunError
from mmdata.failpoint import step
from mmdata.shards.corpus import ID_DTYPE
from mmdata.shards.manifest import Finish
from mmdata.shards.subset import ids_of, sorted_ids, write_subset
from mmdata.shards.units import EmitPlace
from mmdata.stages.passes import Emit, Fold, Pass, Scatter
from mmdata.stages.verbs import Sink
from mmdata.storage import Store, digest_bytes

NAME = "subset.npy"


class Subset(Sink):
    """Write `subset.npy`, the ids of what was kept in order, as DataComp's `apply_filter.py` saves them; no media are needed.

    A pair's id is there once for each row that has it; a document's once. `mmdata reshard` and DataComp's resharder read it.
    """

    name: ClassVar[str] = "subset"

    def reads(self, fields: dict[str, pa.Field]) -> tuple[str, ...]:
        """Read the ids."""
        return ("sample_id", "document")

    def passes(self) -> tuple[Pass, ...]:
        """Ids by range, how many each range has, then one task a range."""
        return (
            Scatter(self._records, self._bucket),
            Fold(lambda records: pa.table({"ids": pa.array([records.num_rows], pa.int64())}), pa.concat_tables),
            Emit(lambda value: value.num_rows, self._needs, lambda _value, _unit, records: records, self._write),
        )

    def _records(self, table: pa.Table) -> pa.Table:
        document = table.column("document").to_numpy()
        ids = table.column("sample_id").to_numpy(zero_copy_only=False)
        first = np.zeros(len(ids), bool)
        first[np.unique(ids.astype(str), return_index=True)[1]] = True
        return ids_of(table.filter(pa.array(~document | first)).column("sample_id"))

    def _bucket(self, records: pa.Table, num_buckets: int) -> np.ndarray:
        high = records.column("f0").to_numpy()
        buckets: np.ndarray = ((high >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int64)
        return buckets

    def _needs(self, value: pa.Table, unit: int, num_buckets: int) -> Sequence[int]:
        return (unit,)

    def _write(self, place: EmitPlace, value: pa.Table, records: pa.Table) -> dict[str, str]:
        data = sorted_ids(records).tobytes()
        place.store.create_same(f"{place.folder}/{_unit(place.unit)}", data)
        return {_unit(place.unit): digest_bytes(data)}

    def finish(self, store: Store, folder: str, value: pa.Table, facts: Finish) -> None:
        """Join the ranges into one file, and write beside it what it is."""
        num_ids = sum(value.column("ids").to_pylist())
        with tempfile.TemporaryDirectory(prefix="mmdata-") as scratch:
            path = Path(scratch) / NAME
            digest = write_subset(path, _pieces(store, folder, value.num_rows), num_ids)
            if not store.create_from(f"{folder}/{NAME}", path):
                raise RunError(f"{folder}/{NAME} exists with other bytes", hint="use a new run folder")
        told = {
            "plan": facts.plan_name, "plan_digest": facts.plan_digest, "ids": num_ids, "sha256": digest,
            "funnel": facts.funnel, "licences": facts.licences, **({"cautions": facts.cautions} if facts.cautions else {}),
        }  # fmt: skip
        with step("corpus"):
            store.create_same(f"{folder}/subset.json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def _pieces(store: Store, folder: str, num: int) -> Iterator[np.ndarray]:
    for unit in range(num):
        yield np.frombuffer(store.read(f"{folder}/{_unit(unit)}"), ID_DTYPE)


def _unit(number: int) -> str:
    return f"units/{number:05d}.ids"
