"""A finished corpus: tars, `corpus.json`, and the indexes that let a loader plan before it reads.

    corpus/
      train-00000.tar ...    plain WebDataset
      corpus.json            shards with SHA-256 and counts, splits, licences, funnel; checked by its own digest
      sizes.json wids.json   what open_clip and wids look for
      index/samples.npy      one 32-byte record a sample        index/sample_ids.npy   (u8, u8) a sample
      index/blocks.npy       one 24-byte record a block
      reference/             what later corpora can be compared with, where the plan asks for it (see `reference`)

Samples lie in the order of the tars. Offsets count 512-byte tar blocks, so 4 bytes reach 2 TiB.
"""

import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from mmdata.errors import RunError
from mmdata.shards.members import TAR_BLOCK, members
from mmdata.shards.sealed import RESTORE, Manifest, read_manifest
from mmdata.storage import LocalStore, Store, digest_bytes, digest_file, open_store

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


@dataclass(frozen=True)
class Corpus:
    """An open corpus. Arrays are read when first asked for; whatever is read is first compared with the manifest.

    A reader that went through all samples of a shard has checked every byte of it: samples lie end to end and carry an
    xxh3 each, and what follows the last one is checked when the shard is first used. A shard without a SHA-256 (`mmdata
    index` without checksums) has no xxh3 either: of it only the length and the headers are checked.
    """

    store: Store
    facts: dict[str, object]
    manifest: Manifest
    _admitted: set[int] = field(default_factory=set, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return open_corpus, (self.store.url,)

    @cached_property
    def samples(self) -> np.ndarray:
        """The sample records, (N,) SAMPLE_DTYPE."""
        return self._array("samples", SAMPLE_DTYPE, self.manifest.samples)

    @cached_property
    def blocks(self) -> np.ndarray:
        """The block records, (M,) BLOCK_DTYPE."""
        return self._array("blocks", BLOCK_DTYPE, self.manifest.blocks)

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """The sample ids as two 64-bit halves, (N,) u8,u8: DataComp's subset format."""
        return self._array("sample_ids", ID_DTYPE, self.manifest.samples)

    @cached_property
    def shards(self) -> list[str]:
        """Names of the tars, in order."""
        return [shard.name for shard in self.manifest.shards]

    @cached_property
    def first_samples(self) -> np.ndarray:
        """The index of each shard's first sample, and the number of all samples last: (shards + 1,) int64."""
        return np.cumsum([0, *(shard.samples for shard in self.manifest.shards)], dtype=np.int64)

    @property
    def splits(self) -> list[str]:
        """Names of the splits; a sample's `split` is an index into them."""
        return list(self.manifest.splits)

    @property
    def trusted(self) -> bool:
        """True when all media was encoded by us; other bytes are decoded in the jail."""
        return self.manifest.trusted

    @cached_property
    def sealed(self) -> bool:
        """False for a foreign folder that was indexed without reading it: nothing says what its bytes should be."""
        return all(shard.sha256 is not None for shard in self.manifest.shards)

    @property
    def digest(self) -> str:
        """Digest of the manifest: it covers the SHA-256 of every shard."""
        return self.manifest.digest

    def read(self, index: int) -> dict[str, bytes]:
        """Return the members of one sample by their suffix, after checking its xxh3.

        A text block without a file of its own (documents) lies in `json`.
        """
        return self.cut(index, self.raw(index))

    def cut(self, index: int, data: bytes) -> dict[str, bytes]:
        """Return the members in the tar bytes of a sample by their suffix."""
        try:
            return dict(members(data))
        except RunError as error:
            raise self._damaged(index, error.message) from error

    def raw(self, index: int) -> bytes:
        """Return the tar bytes of one sample, after checking their xxh3; RunError says which sample of which shard is damaged."""
        try:
            return self._bytes(index)
        except FileNotFoundError:
            problem = "cannot be read: the shard is missing"
        except OSError as error:
            problem = f"cannot be read: {error}"
        except RunError as error:
            problem = error.message
        raise self._damaged(index, problem)

    def _damaged(self, index: int, problem: str) -> RunError:
        return RunError(f"{self.where(index)} {problem}", hint=f"the shard is damaged: {RESTORE}")

    def where(self, index: int) -> str:
        """Return the shard, the sample and where it starts, for messages."""
        record = self.samples[index]
        return f"{self.store.url}/{self.shards[int(record['shard'])]}: sample {index} at byte {int(record['start']) * TAR_BLOCK}"

    def blocks_of(self, index: int) -> np.ndarray:
        """Return the block records of one sample."""
        first = int(self.samples[index]["first_block"])
        return self.blocks[first : first + int(self.samples[index]["num_blocks"])]

    def sample_id(self, index: int) -> str:
        """Return the sample's id, 32 hex digits."""
        high, low = self.sample_ids[index].tolist()
        return f"{high:016x}{low:016x}"

    def _bytes(self, index: int) -> bytes:
        record = self.samples[index]
        shard, start, size = int(record["shard"]), int(record["start"]) * TAR_BLOCK, int(record["length"]) * TAR_BLOCK
        self.admit(shard)
        data = self.store.read_range(self.shards[shard], start, size)
        if self.manifest.shards[shard].sha256 is not None and xxhash.xxh3_64_intdigest(data) != int(record["xxh3"]):
            raise RunError("is not what was written")
        return data

    def admit(self, shard: int) -> None:
        """Check, once a shard, what the xxh3 of samples cannot say: its length, and that only zeros follow the last sample."""
        if shard in self._admitted:
            return
        facts, last = self.manifest.shards[shard], self.samples[self.first_samples[shard + 1] - 1]
        content = (int(last["start"]) + int(last["length"])) * TAR_BLOCK
        size = self.store.size(facts.name)
        if size != facts.bytes:
            raise RunError(f"cannot be trusted: the shard has {size:,} bytes, the manifest says {facts.bytes:,}")
        if self.store.read_range(facts.name, content, size - content).strip(b"\0"):
            raise RunError(f"cannot be trusted: the shard's end, from byte {content} on, is not what was written")
        self._admitted.add(shard)

    def _array(self, name: str, dtype: np.dtype, length: int) -> np.ndarray:
        file = f"index/{name}.npy"
        where = f"{self.store.url}/{file}"
        try:
            # On a local disk an array is mapped: ten million samples then take no memory of their own.
            held = self.store.path(file) if isinstance(self.store, LocalStore) else self.store.read(file)
            digest = digest_file(held) if isinstance(held, Path) else digest_bytes(held)
        except FileNotFoundError:
            raise RunError(f"{where}: missing", hint=RESTORE) from None
        if digest != self.manifest.index[file]:
            raise RunError(f"{where}: its SHA-256 is not the manifest's", hint=RESTORE)
        try:
            array: np.ndarray = (
                np.load(held, mmap_mode="r" if length else None, allow_pickle=False)
                if isinstance(held, Path)
                else np.load(io.BytesIO(held), allow_pickle=False)
            )
        except (ValueError, EOFError) as error:
            raise RunError(f"{where}: not an array of numpy: {error}", hint=RESTORE) from error
        if array.dtype != dtype or array.shape != (length,):
            raise RunError(f"{where}: holds {array.shape} records of {array.dtype}, not ({length},) of {dtype}", hint=RESTORE)
        return array.view(np.ndarray)  # a mapped array, without the price of memmap's own class


def open_corpus(url: str) -> Corpus:
    """Open a corpus by its folder; the manifest is checked by its own digest."""
    store = open_store(url)
    return Corpus(store, *read_manifest(store))
