"""A finished corpus: tars, `corpus.json`, and the indexes that let a loader plan before it reads.

    corpus/
      train-00000.tar ...    plain WebDataset
      corpus.json            shards with SHA-256 and counts, splits, licences, funnel; checked by its own digest
      sizes.json wids.json   what open_clip and wids look for
      index/samples.npy      one 32-byte record a sample        index/sample_ids.npy   (u8, u8) a sample
      index/blocks.npy       one 24-byte record a block

Samples lie in the order of the tars. Offsets count 512-byte tar blocks, so 4 bytes reach 2 TiB.
"""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from mmdata.errors import RunError
from mmdata.storage import Store, digest_json, open_store

SAMPLE_DTYPE = np.dtype([
    ("shard", "<u4"), ("num_blocks", "<u2"), ("split", "<u2"), ("first_block", "<u8"),
    ("start", "<u4"), ("length", "<u4"), ("xxh3", "<u8"),
])  # fmt: skip
# `offset` is relative to the sample's first byte; a text block counts its characters, an image its pixels.
BLOCK_DTYPE = np.dtype([
    ("kind", "u1"), ("suffix", "u1"), ("position", "<u2"), ("offset", "<u4"), ("size", "<u4"),
    ("height", "<u4"), ("width", "<u4"), ("characters", "<u4"),
])  # fmt: skip
ID_DTYPE = np.dtype("u8,u8")
KINDS = ("text", "image", "video")
SUFFIXES = ("txt", "jpg", "png", "webp", "gif", "avif", "mp4")
TAR_BLOCK = 512


@dataclass(frozen=True)
class Corpus:
    """An open corpus; arrays are read when first asked for."""

    store: Store
    facts: dict[str, object]

    @cached_property
    def samples(self) -> np.ndarray:
        """The sample records, (N,) SAMPLE_DTYPE."""
        return self._array("samples", SAMPLE_DTYPE)

    @cached_property
    def blocks(self) -> np.ndarray:
        """The block records, (M,) BLOCK_DTYPE."""
        return self._array("blocks", BLOCK_DTYPE)

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """The sample ids as two 64-bit halves, (N,) u8,u8: DataComp's subset format."""
        return self._array("sample_ids", ID_DTYPE)

    @cached_property
    def shards(self) -> list[str]:
        """Names of the tars, in order."""
        return [shard["name"] for shard in self.facts["shards"]]  # type: ignore[attr-defined]

    @property
    def splits(self) -> list[str]:
        """Names of the splits; a sample's `split` is an index into them."""
        return list(self.facts["splits"])  # type: ignore[call-overload, no-any-return]

    @property
    def trusted(self) -> bool:
        """True when all media was encoded by us; other bytes are decoded in the jail."""
        return bool(self.facts.get("trusted"))

    @property
    def digest(self) -> str:
        """Digest of the manifest: it covers the SHA-256 of every shard."""
        return str(self.facts["digest"])

    def read(self, index: int) -> dict[str, bytes]:
        """Return the members of one sample by their suffix, after checking its xxh3.

        A text block without a file of its own (documents) lies in `json`.
        """
        record = self.samples[index]
        start, size = int(record["start"]) * TAR_BLOCK, int(record["length"]) * TAR_BLOCK
        name = self.shards[record["shard"]]
        data = self.store.read_range(name, start, size)
        if xxhash.xxh3_64_intdigest(data) != int(record["xxh3"]):
            raise RunError(
                f"{self.store.url}/{name}: sample {index} at byte {start} is not what was written",
                hint="the shard is damaged: copy it again, or build the corpus anew from its run folder",
            )
        return dict(_members(data))

    def blocks_of(self, index: int) -> np.ndarray:
        """Return the block records of one sample."""
        first = int(self.samples[index]["first_block"])
        return self.blocks[first : first + int(self.samples[index]["num_blocks"])]

    def sample_id(self, index: int) -> str:
        """Return the sample's id, 32 hex digits."""
        high, low = self.sample_ids[index].tolist()
        return f"{high:016x}{low:016x}"

    def _array(self, name: str, dtype: np.dtype) -> np.ndarray:
        with self.store.open(f"index/{name}.npy") as file:
            array: np.ndarray = np.load(file, allow_pickle=False)
        if array.dtype != dtype:
            raise RunError(f"{self.store.url}/index/{name}.npy: records are {array.dtype}, not {dtype}")
        return array


def open_corpus(url: str) -> Corpus:
    """Open a corpus by its folder; the manifest is checked by its own digest."""
    store = open_store(url)
    try:
        facts = json.loads(store.read("corpus.json"))
    except FileNotFoundError:
        raise RunError(f"{url}: no corpus.json", hint="give a folder that `mmdata run` has finished") from None
    except ValueError as error:
        raise RunError(f"{url}/corpus.json: not valid JSON: {error}", hint="it was cut short; copy it again") from error
    if facts.get("digest") != seal(facts)["digest"]:
        raise RunError(f"{url}/corpus.json: does not match its own digest", hint="it was edited or damaged; copy it again")
    return Corpus(store, facts)


def seal(facts: dict[str, object]) -> dict[str, object]:
    """Return the manifest with the digest of everything else in it."""
    body = {key: value for key, value in facts.items() if key != "digest"}
    return {**body, "digest": digest_json(body)}


def _members(data: bytes) -> list[tuple[str, bytes]]:
    """Cut the tar bytes of one sample into members: suffix after the first dot, data."""
    members, at = [], 0
    while at < len(data):
        name = data[at : at + 100].rstrip(b"\0").decode()
        size = int(data[at + 124 : at + 135], 8)
        members.append((name.split(".", 1)[1], data[at + TAR_BLOCK : at + TAR_BLOCK + size]))
        at += TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK
    return members
