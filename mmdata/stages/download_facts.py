"""What varies of a download from run to run: who answered, when, from where and by which rule. It lies beside the payload.

Nothing here enters a column, a shard or a digest.
"""

import importlib.metadata
import io
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.net import Failure, Fetched
from mmdata.storage import Store

_FACTS = pa.schema([
    pa.field("row", pa.int64()), pa.field("url", pa.string()), pa.field("final_url", pa.string()),
    pa.field("hops", pa.list_(pa.string())), pa.field("address", pa.string()), pa.field("rule", pa.string()),
    pa.field("outcome", pa.string()), pa.field("detail", pa.string()), pa.field("elapsed_s", pa.float32()),
    pa.field("fetched_at", pa.timestamp("ms", "UTC")), pa.field("content_type", pa.string()), pa.field("pass", pa.int8()),
    pa.field("raw_sha256", pa.string()), pa.field("sha256", pa.string()),
])  # fmt: skip
_TOOLS = ("mmdata", "pillow", "simplejpeg", "opencv-python-headless", "httptools")


def facts_of(answer: Fetched | Failure, number: int) -> dict[str, Any]:
    """Return what is noted of an answer in a pass."""
    return {
        "final_url": answer.url, "hops": list(answer.hops), "address": answer.address, "rule": answer.rule,
        "detail": answer.detail if isinstance(answer, Failure) else None, "elapsed_s": answer.elapsed_s,
        "fetched_at": int(time.time() * 1000), "pass": number,
        "content_type": None if isinstance(answer, Failure) else answer.headers.get("content-type"),
    }  # fmt: skip


def write_facts(store: Store, place: str, shard: int, rows: list[dict[str, Any]]) -> None:
    """Write the facts of a shard's rows; a second attempt leaves the first's.

    place  the folder of the payload, `payload/KEY/NAME`; the facts lie in `facts/KEY/NAME-SHARD.parquet`
    """
    tools = {name: importlib.metadata.version(name) for name in _TOOLS}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_FACTS.with_metadata(tools)), buffer, compression="zstd")
    key, _, name = place.removeprefix("payload/").rpartition("/")
    store.create(f"facts/{key}/{name}-{shard:05d}.parquet", buffer.getvalue())
