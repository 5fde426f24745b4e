"""How sinks write a reference: what is kept of rows rides with the records of their samples, and each unit writes a part."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mmdata.dedupe.kept import columns_kept, described, facts_of, items_of
from mmdata.shards.manifest import Finish
from mmdata.shards.reference import ColumnFacts, ReferenceFacts
from mmdata.shards.reference_files import finish_reference, names_in, write_part
from mmdata.shards.units import EmitPlace
from mmdata.storage import Store

KEPT = b"kept"  # metadata of the folded value: what each column of the reference holds
_COLUMN = "reference"
_NAMES = ("sample_id", "position")


def with_kept(records: pa.Table, rows: pa.Table, columns: Sequence[str], places: Sequence[Sequence[int]]) -> pa.Table:
    """Return records of samples with what is kept of their rows, as one column of lists.

    places   of each record, its rows' places in `rows`
    """
    order = np.array([place for some in places for place in some], np.int64)
    ends = np.cumsum([0, *map(len, places)], dtype=np.int32)
    kept = columns_kept(rows.take(pa.array(order)), columns)
    struct = pa.StructArray.from_arrays([pa.concat_arrays(c.chunks) for c in kept.columns], fields=list(kept.schema))
    return records.append_column(_COLUMN, pa.ListArray.from_arrays(pa.array(ends), struct))


def kept_in(records: pa.Table) -> bytes:
    """Return as JSON what the columns hold that records have with them."""
    if _COLUMN not in records.column_names:
        return b"{}"
    return facts_json(pa.schema(list(records.schema.field(_COLUMN).type.value_type)))


def facts_json(kept: pa.Schema) -> bytes:
    """Return as JSON what columns hold, by the types of `columns_kept`."""
    told = {field.name: facts_of(field.name, field.type).model_dump(mode="json") for field in kept if field.name not in _NAMES}
    return json.dumps(told).encode()


def write_kept(place: EmitPlace, records: pa.Table) -> dict[str, str]:
    """Write the part of a unit, in the order of its records; return the SHA-256 of each file."""
    lists = records.column(_COLUMN).combine_chunks()
    struct = lists.flatten()
    return write_rows(place, pa.table([struct.field(field.name) for field in struct.type], [field.name for field in struct.type]))


def write_rows(place: EmitPlace, kept: pa.Table) -> dict[str, str]:
    """Write rows as `columns_kept` gives them as the part of a unit; return the SHA-256 of each file."""
    columns = {
        field.name: items_of(kept.column(field.name), facts_of(field.name, field.type))
        for field in kept.schema
        if field.name not in _NAMES
    }
    names = names_in(kept.column("sample_id").to_pylist(), kept.column("position").to_numpy())
    return write_part(place.store, place.folder, place.unit, names, columns)


def finish_kept(store: Store, folder: str, kept: bytes, facts: Finish) -> str:
    """Write what the reference is, of columns as `facts_json` told of them; return the SHA-256 of that file."""
    columns = {
        name: described(name, ColumnFacts.model_validate(column), facts.columns, facts.makers)
        for name, column in json.loads(kept).items()
    }
    told = ReferenceFacts(name=facts.plan_name, rows=0, licences=facts.licences, columns=columns, parts=[])
    return finish_reference(store, folder, told, facts.digests)
