"""The manifest of a corpus as readers see it: nothing in it counts before its own digest and its shape are checked.

The digest finds accidents. It does not say who wrote the file: a stranger can seal what they like, so a name that leads out
of the corpus's folder is refused although the digest is right.
"""

import json
import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmdata.errors import RunError
from mmdata.storage import Store, digest_json

MANIFEST = "corpus.json"
VERSION = 1
INDEX_FILES = ("index/blocks.npy", "index/sample_ids.npy", "index/samples.npy")
RESTORE = "copy it again, or build the corpus anew from its run folder"

SHARD_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*\.tar")

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Facts(BaseModel):
    """Checked plain values. Other keys are for people and for later versions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class ShardFacts(_Facts):
    """What the manifest says of one tar. Without a SHA-256 (`mmdata index`) its samples have no xxh3 either."""

    name: str
    split: str
    samples: Count
    bytes: Count
    sha256: Sha256 | None


class Manifest(_Facts):
    """What readers rely on."""

    digest: str
    plan: str
    trusted: bool = False
    samples: Count
    blocks: Count
    splits: list[str]
    shards: list[ShardFacts]
    index: dict[str, Sha256]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for shard in self.shards:
            if not SHARD_NAME.fullmatch(shard.name):
                raise ValueError(f"`{shard.name}` is no name of a shard: shards are tars in the corpus's own folder")
            if shard.split not in self.splits:
                raise ValueError(f"{shard.name} is of the split `{shard.split}`, which is not listed")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        if sum(shard.samples for shard in self.shards) != self.samples:
            raise ValueError(f"the shards' samples do not add up to {self.samples}")
        if sorted(self.index) != list(INDEX_FILES):
            raise ValueError(f"`index` does not list {', '.join(INDEX_FILES)}")
        return self


def seal(facts: dict[str, object]) -> dict[str, object]:
    """Return the manifest with the digest of everything else in it."""
    body = {key: value for key, value in facts.items() if key != "digest"}
    return {**body, "digest": digest_json(body)}


def read_manifest(store: Store) -> tuple[dict[str, object], Manifest]:
    """Return the manifest of a corpus's folder as it is written, and what readers rely on, checked."""
    where = f"{store.url}/{MANIFEST}"
    try:
        facts = json.loads(store.read(MANIFEST))
        if not isinstance(facts, dict):
            raise RunError(f"{where}: not the manifest of a corpus: it holds a {type(facts).__name__}", hint=RESTORE)
        sealed = facts.get("digest") == seal(facts)["digest"]
    except FileNotFoundError:
        raise RunError(f"{store.url}: no {MANIFEST}", hint="give a folder that `mmdata run` has finished") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: not valid JSON: {error}; it was cut short or damaged", hint=RESTORE) from error
    if not sealed:
        raise RunError(f"{where}: does not match its own digest; it was edited or damaged", hint=RESTORE)
    if facts.get("version") != VERSION:
        raise RunError(
            f"{where}: of version {facts.get('version')!r:.20}, not {VERSION}", hint="read it with the mmdata that made it"
        )
    try:
        return facts, Manifest.model_validate(facts)
    except ValidationError as error:
        raise RunError(f"{where}: {_first(error)}", hint="its digest is right, so it was written like this") from None


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False)[0]
    key = ".".join(str(step) for step in item["loc"])
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"`{key}` is required"
    return f"`{key}`: {text}, not {item['input']!r:.80}" if key else text
