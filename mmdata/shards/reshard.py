"""A new corpus from the samples of another that a subset names: what DataComp's resharder does.

Decided here: samples keep the order of the corpus and their ids; one that is asked for k times comes k times, side by side,
under the keys `ID-0`, `ID-1`, ... Members are copied byte for byte, borders follow from sizes before a byte is read, and the
same corpus and subset give the same bytes. What is held is the ids and one sample.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmdata.errors import ConfigError, RunError
from mmdata.shards.corpus import ID_DTYPE, SAMPLE_DTYPE, Corpus, open_corpus
from mmdata.shards.counter import Counter
from mmdata.shards.index_files import IndexFiles, Pieces
from mmdata.shards.indexing import opened
from mmdata.shards.members import TAR_BLOCK, TarDamage, Walk, split_name
from mmdata.shards.sealed import MANIFEST, RESTORE, ShardFacts
from mmdata.shards.subset import match, read_subset, turns
from mmdata.shards.tar import TarFile
from mmdata.shards.tar_index import TarIndex
from mmdata.shards.units import borders
from mmdata.storage import Store, digest_file, digest_json, open_store

SAMPLES, MAX_MIB = 10_000, 1024  # as the sink of a plan

Said = Callable[[str, int, int], None]

_PLAIN = re.compile(r"[!-^`-~][!-~]{0,49}")  # a key has 45 characters at most, a name 100
_UID = re.compile(r"[0-9a-fA-F]{32}")


class Resharded(NamedTuple):
    """What `reshard_corpus` wrote; `missing` of the `distinct` ids in the subset are no sample's."""

    url: str
    shards: int
    samples: int
    distinct: int
    missing: int
    digest: str


def reshard_corpus(  # noqa: PLR0913 - what is written is three things, how large it is cut two
    url: str,
    subset: Path,
    out: str,
    *,
    samples: int = SAMPLES,
    max_mib: int = MAX_MIB,
    uid: bool = False,
    progress: Said | None = None,
) -> Resharded:
    """Write the samples of a corpus that a subset names to a corpus of their own.

    url        folder of a corpus, of a run's or of `mmdata index`
    subset     file of ids, u8,u8, sorted or not; an id k times asks for k copies
    out        folder without a corpus; shards that a killed call has left there are met again
    samples    samples of a shard, at most        max_mib   size of a shard, at most, unless one sample is larger
    uid        match the `uid` in each sample's json, not the corpus's own ids; the new corpus then has these
    progress   called every 5 s with what is counted, how many are done and how many there are

    Raises ConfigError when nothing is to be written, RunError for a sample that is damaged, by shard, sample and byte.
    """
    corpus, store = open_corpus(url), open_store(out)
    if store.exists(MANIFEST):
        raise ConfigError(f"{out}: there is a corpus here already", hint="name a folder that is empty or not there")
    asked = read_subset(subset)
    ids = uids(corpus, _counter("uids read", corpus.manifest.samples, progress)) if uid else corpus.sample_ids
    matched = match(ids, asked)
    if not matched.copies.any():
        hint = "is it another pool's?" if uid else "DataComp's ids lie in each sample's json: `--uid` reads them"
        raise ConfigError(f"{subset}: none of its {len(asked):,} ids is a sample's of {url}", hint=hint)
    rows = np.repeat(np.arange(len(ids)), matched.copies)
    origin = {
        "corpus": corpus.digest, "subset": digest_file(subset), "uid": uid, "samples": samples, "max_mib": max_mib,
        "ids": len(asked), "distinct": matched.distinct, "missing": matched.missing,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mmdata-") as folder:
        copy = _Copy(corpus, store, Path(folder), ids, _counter("samples written", len(rows), progress))
        files = IndexFiles(Path(folder), corpus.splits)
        for facts, pieces in copy.shards(rows, _units(corpus, rows, samples, max_mib)):
            files.add(facts, pieces)
        files.close(store, _facts(corpus, origin))
    return Resharded(store.url, len(files.shards), len(rows), matched.distinct, matched.missing, open_corpus(out).digest)


def uids(corpus: Corpus, counter: Counter) -> np.ndarray:
    """Return the `uid` in the json of each sample, (N,) u8,u8; only headers and these members are read."""
    found = bytearray()
    for facts in corpus.manifest.shards:
        with opened(corpus.store, facts.name) as (data, _):
            try:
                index = TarIndex(facts.name).fill(data)
            except TarDamage as damage:
                raise RunError(f"{corpus.store.url}/{facts.name}: {damage.message}", hint=damage.hint) from damage
            if len(index.samples) != facts.samples:
                raise RunError(f"{corpus.store.url}/{facts.name}: is not what was indexed", hint=RESTORE)
            for place in index.places(b"json"):
                uid = _uid(data[place[0] : sum(place)]) if place else None
                if uid is None:
                    raise RunError(
                        f"{corpus.where(len(found) // ID_DTYPE.itemsize)} has no json with a `uid` of 32 hex digits",
                        hint="without `--uid` the corpus's own ids are matched",
                    )
                found += uid
                counter.add()
    return np.frombuffer(found, ">u8,>u8").astype(ID_DTYPE)


@dataclass
class _Copy:
    """The writing of shards; `ids` are those that the new corpus has. Copies of a sample follow one another: it is read once."""

    corpus: Corpus
    store: Store
    scratch: Path
    ids: np.ndarray
    counter: Counter
    _row: int | None = None
    _members: dict[str, bytes] = field(default_factory=dict)
    _homes: list[str] = field(default_factory=list)

    def shards(self, rows: np.ndarray, units: list[dict[str, Any]]) -> Iterator[tuple[ShardFacts, Pieces]]:
        """Write the shards in order; `first` and `last` of a unit count rows."""
        copies = turns(self.ids[rows])
        for number, unit in enumerate(units):
            split, chosen = self.corpus.splits[unit["split"]], slice(unit["first"], unit["last"] + 1)
            yield self._shard(f"{split}-{number:05d}.tar", split, rows[chosen], copies[chosen])

    def _shard(self, name: str, split: str, rows: np.ndarray, copies: np.ndarray) -> tuple[ShardFacts, Pieces]:
        path, samples, blocks, before = self.scratch / name, np.zeros(len(rows), SAMPLE_DTYPE), [], 0
        with TarFile(path, hashed=True) as tar:
            for place, (row, copy) in enumerate(zip(rows.tolist(), copies.tolist(), strict=True)):
                start = tar.offset
                blocks.append(self._sample(tar, row, copy))
                size = (tar.offset - start) // TAR_BLOCK
                samples[place] = (0, len(blocks[-1]), 0, before, start // TAR_BLOCK, size, 0)
                before += len(blocks[-1])
                self.counter.add()
        samples["xxh3"] = tar.xxh3
        facts = ShardFacts(name=name, split=split, samples=len(rows), bytes=path.stat().st_size, sha256=tar.sha256)
        if not self.store.create_from(name, path):
            raise ConfigError(f"{self.store.url}/{name} exists with other bytes", hint="name an empty folder")
        path.unlink()
        return facts, Pieces(samples, np.concatenate(blocks), self.ids[rows])

    def _sample(self, tar: TarFile, row: int, copy: int) -> np.ndarray:
        """Append one sample; return its block records, which lie elsewhere now."""
        if row != self._row:
            self._members, self._homes = _read(self.corpus, row)
            self._row = row
        high, low = self.ids[row].tolist()
        key, start = f"{high:016x}{low:016x}-{copy}", tar.offset
        placed = {member.name[len(key) + 1 :]: member.offset - start for member in tar.write(key, self._members)}
        blocks = self.corpus.blocks_of(row).copy()
        blocks["offset"] = [placed[home] for home in self._homes]
        return blocks


def _read(corpus: Corpus, row: int) -> tuple[dict[str, bytes], list[str]]:
    """Return the members of a sample by suffix, checked, and the suffix of the member that each block lies in."""
    data = corpus.raw(row)
    try:
        members, homes = _cut(data)
        return members, [homes[int(offset)] for offset in corpus.blocks_of(row)["offset"]]
    except KeyError:
        problem = "does not have its members where the index says"
    except RunError as error:
        problem = error.message
    raise RunError(f"{corpus.where(row)} {problem}", hint=f"is the shard damaged? {RESTORE}")


def _cut(data: bytes) -> tuple[dict[str, bytes], dict[int, str]]:
    """Return the members of a sample's bytes by suffix, and their suffixes by where they lie."""
    members, homes = {}, {}
    for name, offset, size in Walk(data, len(data)):
        place = split_name(name)
        if place is not None:
            suffix = place[1].decode(errors="surrogateescape")
            if not _PLAIN.fullmatch(suffix):
                raise RunError(f"has a member `{suffix}`, which a plain header cannot name or webdataset's writer leaves out")
            members[suffix], homes[offset] = data[offset : offset + size], suffix
    return members, homes


def _units(corpus: Corpus, rows: np.ndarray, samples: int, max_mib: int) -> list[dict[str, Any]]:
    """Cut the rows into shards. A sample's size is the one it has now; extended headers, which are left out, count too."""
    chosen = corpus.samples[rows]
    sizes = {
        "split": pa.array(chosen["split"].astype(np.int32)), "order": pa.array(np.arange(len(rows), dtype=np.uint64)),
        "bytes": pa.array(chosen["length"].astype(np.int64) * TAR_BLOCK),
    }  # fmt: skip
    found: list[dict[str, Any]] = borders(pa.table(sizes), samples, max_mib << 20).to_pylist()
    return found


def _uid(data: bytes) -> bytes | None:
    try:
        uid = json.loads(data)["uid"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return bytes.fromhex(uid) if isinstance(uid, str) and _UID.fullmatch(uid) else None


def _counter(what: str, total: int, progress: Said | None) -> Counter:
    return Counter(total, None if progress is None else partial(progress, what))


def _facts(corpus: Corpus, origin: dict[str, object]) -> dict[str, object]:
    said = corpus.facts.get("cautions")
    cautions = [*said] if isinstance(said, list) else []
    if not corpus.sealed:
        cautions.append("the corpus that this was copied from had no checksums")
    return {
        "plan": corpus.manifest.plan, "plan_digest": digest_json(origin), "trusted": corpus.trusted, "reshard": origin,
        **{key: corpus.facts.get(key, {}) for key in ("columns", "makers", "licences", "funnel")},
        **({"cautions": cautions} if cautions else {}),
        **({"profiles": corpus.facts["profiles"]} if "profiles" in corpus.facts else {}),
    }  # fmt: skip
