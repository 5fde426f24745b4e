"""The last step of a corpus: join the shards' index pieces and write `corpus.json`, which makes it a corpus."""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdata.failpoint import step
from mmdata.shards.reference import FACTS_FILE
from mmdata.shards.sealed import MANIFEST, VERSION, seal
from mmdata.shards.units import INDEXES
from mmdata.storage import Store, digest_bytes


@dataclass(frozen=True)
class Finish:
    """What a Sink's last step knows: the plan's facts, and the SHA-256 of each file that its units wrote.

    makers    by column: the stage that made it, its version, the model's id and the SHA-256 of its weights
    profiles  by column whose numbers come from several: device, dtype, batch shape, threads and torch of each, as JSON
    """

    plan_name: str
    plan_digest: str
    funnel: dict[str, object]
    licences: dict[str, str]
    columns: dict[str, str]
    digests: dict[str, str]
    trusted: bool
    cautions: list[str]
    makers: dict[str, dict[str, object]] = field(default_factory=dict)
    profiles: dict[str, list[str]] = field(default_factory=dict)


def write_manifest(store: Store, folder: str, units: list[dict[str, Any]], splits: list[str], facts: Finish) -> None:
    """Write indexes, `sizes.json`, `wids.json` and, last, `corpus.json`."""
    digests = dict(facts.digests)
    names = [f"{splits[unit['split']]}-{number:05d}" for number, unit in enumerate(units)]
    arrays = _join(store, folder, names)
    for index, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        digests[f"index/{index}.npy"] = digest_bytes(buffer.getvalue())
        store.create_same(f"{folder}/index/{index}.npy", buffer.getvalue())
    shards = [
        {"name": f"{name}.tar", "split": splits[unit["split"]], "samples": unit["samples"], "bytes": unit["bytes"],
         "sha256": digests[f"{name}.tar"]}
        for name, unit in zip(names, units, strict=True)
    ]  # fmt: skip
    sizes = {shard["name"]: shard["samples"] for shard in shards}
    for name, value in listings(facts.plan_name, sizes).items():
        store.create_same(f"{folder}/{name}", _json(value))
    manifest = seal({
        "version": VERSION, "generation": 1, "plan": facts.plan_name, "plan_digest": facts.plan_digest,
        "trusted": facts.trusted,
        "samples": sum(sizes.values()), "blocks": len(arrays["blocks"]), "splits": splits, "shards": shards,
        "index": {name: digest for name, digest in sorted(digests.items()) if name.startswith("index/")},
        "columns": facts.columns, "makers": facts.makers, "licences": facts.licences, "funnel": facts.funnel,
        **({"reference": digests[FACTS_FILE]} if FACTS_FILE in digests else {}),
        **({"cautions": facts.cautions} if facts.cautions else {}),
        **({"profiles": {name: [json.loads(item) for item in items] for name, items in facts.profiles.items()}}
           if facts.profiles else {}),
    })  # fmt: skip
    with step("corpus"):
        store.create_same(f"{folder}/{MANIFEST}", _json(manifest))


def listings(plan_name: str, sizes: dict[str, int]) -> dict[str, dict[str, object]]:
    """Return what other readers look for beside the shards: open_clip's `sizes.json` and wids' index."""
    wids = {
        "__kind__": "wids-shard-index-v1", "wids_version": 1, "name": plan_name,
        "shardlist": [{"url": name, "nsamples": count} for name, count in sizes.items()],
    }  # fmt: skip
    return {"sizes.json": dict(sizes), "wids.json": wids}


def _join(store: Store, folder: str, names: list[str]) -> dict[str, np.ndarray]:
    joined: dict[str, np.ndarray] = {}
    for index, dtype in INDEXES:
        parts = [np.frombuffer(store.read(f"{folder}/units/{name}.{index}"), dtype=dtype).copy() for name in names]
        joined[index] = np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
    samples = joined["samples"]
    samples["first_block"] = np.concatenate([[0], np.cumsum(samples["num_blocks"], dtype=np.uint64)])[: len(samples)]
    return joined


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
