"""Open, list, create once, digest: on a local disk or in an object store that has conditional create.

Decided here: a name is written once and never renamed. `create` makes the whole object under its final name, or finds it
there, so two writers can never both win and a reader never meets half a file. It says whether the name now holds these
bytes, not who wrote them: an answer that got lost, an attempt that died and a copy of the task that ran twice are then one
case, settled by reading back. `put` overwrites and serves only facts that vary (progress, heartbeats).
"""

from mmdata.storage.digest import digest_bytes, digest_file, digest_json, mix64
from mmdata.storage.disk import Disk, sync
from mmdata.storage.faulty import Faults, FaultyObjectStore, FaultyStore
from mmdata.storage.local import LocalStore
from mmdata.storage.objects import ObjectStore
from mmdata.storage.opening import open_store
from mmdata.storage.parquet_rows import ParquetRows, rows_url
from mmdata.storage.process import host, started
from mmdata.storage.store import Store
from mmdata.storage.temps import TEMP_PREFIX, abandoned, clear_temps, temp_name, walk_temps

__all__ = [
    "TEMP_PREFIX", "Disk", "Faults", "FaultyObjectStore", "FaultyStore", "LocalStore", "ObjectStore", "ParquetRows", "Store",
    "abandoned", "clear_temps", "digest_bytes", "digest_file", "digest_json", "host", "mix64", "open_store", "rows_url",
    "started", "sync", "temp_name", "walk_temps",
]  # fmt: skip
