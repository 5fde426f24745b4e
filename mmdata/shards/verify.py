"""Is a corpus whole? Every byte is read once and compared with the manifest, which its own digest vouches for.

Decided here: the SHA-256 of a shard says whether it is damaged, the xxh3 of its samples says where. When the SHA-256 is
right and an xxh3 is not, the index is wrong: the tar's hash rules. All problems are reported, none is mended. Shards that
were indexed without checksums are only measured, and such a corpus is never called whole.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mmdata.errors import ConfigError, RunError
from mmdata.shards.corpus import SAMPLE_DTYPE, Corpus, open_corpus
from mmdata.shards.manifest import listings
from mmdata.shards.members import TAR_BLOCK
from mmdata.shards.reference import FACTS_FILE, FOLDER, open_reference, problems_in
from mmdata.shards.sealed import INDEX_FILES, MANIFEST, RESTORE, ShardFacts
from mmdata.shards.sums import SampleSums, chunks
from mmdata.storage import digest_bytes, open_store

TICK_S = 5.0
NAMED = 5  # samples of a shard that a message names
_INDEX_WRONG = "the tar is right and the index is not: build the corpus anew from its run folder"


class Problem(NamedTuple):
    """What is wrong with one file of a corpus, and what to do."""

    file: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what} ({self.hint})"


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. Tars that the manifest does not list are named and ignored.

    unchecked   shards that the manifest has no SHA-256 of, so that only their sizes could be compared
    """

    url: str
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    problems: tuple[Problem, ...] = ()
    unlisted: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """True when every byte was compared and nothing is wrong."""
        return not self.problems and not self.unchecked


def verify(url: str, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """Compare every file of a corpus with its manifest; `workers` threads read and hash, by default one a core.

    progress   called every 5 s with the bytes read and the bytes of all shards
    """
    store, started = open_store(url), time.monotonic()
    if not store.exists(MANIFEST):
        raise ConfigError(f"{url}: not a corpus: it has no {MANIFEST}", hint="give a folder that `mmdata run` has finished")
    try:
        corpus = open_corpus(url)
    except RunError as error:
        return Verdict(url, problems=(_problem(url, MANIFEST, error),))
    problems = _indexes(corpus)
    job = _Job(corpus, None if problems else corpus.samples, progress)
    problems += [*_listings(corpus), *_reference(corpus), *job.run(workers or os.cpu_count() or 1)]
    unlisted = sorted({name for name in store.list("") if name.endswith(".tar")} - set(corpus.shards))
    unchecked = tuple(shard.name for shard in corpus.manifest.shards if shard.sha256 is None)
    seconds, samples = time.monotonic() - started, corpus.manifest.samples
    return Verdict(url, len(corpus.shards), samples, sum(job.read), seconds, tuple(problems), tuple(unlisted), unchecked)


def _indexes(corpus: Corpus) -> list[Problem]:
    """Check that each index is the manifest's, and that together they describe its shards."""
    problems = []
    for file in INDEX_FILES:
        try:
            getattr(corpus, file.removeprefix("index/").removesuffix(".npy"))
        except (RunError, OSError) as error:
            problems.append(_problem(corpus.store.url, file, error))
    if not problems and not _describes(corpus):
        problems.append(Problem("index/samples.npy", "does not describe the shards that the manifest lists", _INDEX_WRONG))
    return problems


def _describes(corpus: Corpus) -> bool:
    """Say whether samples lie end to end in the listed shards, and blocks end to end in samples."""
    samples, shards = corpus.samples, corpus.manifest.shards
    facts = [(shard.samples, corpus.splits.index(shard.split), shard.bytes) for shard in shards]
    counts, splits, sizes = np.array(facts, dtype=np.int64).reshape(-1, 3).T
    ends = samples["start"].astype(np.int64) + samples["length"]
    starts = np.concatenate([[0], ends])[:-1]
    starts[corpus.first_samples[:-1][counts > 0]] = 0
    blocks = np.concatenate([[0], np.cumsum(samples["num_blocks"], dtype=np.int64)])
    return (
        np.array_equal(samples["shard"], np.repeat(np.arange(len(shards)), counts))
        and np.array_equal(samples["split"], np.repeat(splits, counts))
        and np.array_equal(samples["start"], starts)
        and bool((ends * TAR_BLOCK <= np.repeat(sizes, counts)).all())
        and np.array_equal(samples["first_block"], blocks[:-1])
        and int(blocks[-1]) == len(corpus.blocks)
    )


def _listings(corpus: Corpus) -> Iterator[Problem]:
    """Check what other readers use in place of the manifest."""
    sizes = {shard.name: shard.samples for shard in corpus.manifest.shards}
    for file, value in listings(corpus.manifest.plan, sizes).items():
        try:
            if json.loads(corpus.store.read(file)) != value:
                yield Problem(file, "does not list the manifest's shards", RESTORE)
        except (OSError, ValueError, RecursionError) as error:
            yield _problem(corpus.store.url, file, error)


def _reference(corpus: Corpus) -> Iterator[Problem]:
    """Check the reference that lies with the corpus, if it has one: that it is the manifest's, and every file of it."""
    if (told := corpus.facts.get("reference")) is None:
        return
    try:
        if digest_bytes(corpus.store.read(FACTS_FILE)) != told:
            yield Problem(FACTS_FILE, "its SHA-256 is not the manifest's", RESTORE)
            return
        for file, what in problems_in(open_reference(f"{corpus.store.url}/{FOLDER}")):
            yield Problem(f"{FOLDER}/{file}", what, RESTORE)
    except (RunError, OSError) as error:
        yield _problem(corpus.store.url, FACTS_FILE, error)


@dataclass
class _Job:
    """The reading of all shards; `read` counts bytes by shard, for the progress."""

    corpus: Corpus
    samples: np.ndarray | None
    progress: Callable[[int, int], None] | None
    read: list[int] = field(default_factory=list)

    def run(self, workers: int) -> list[Problem]:
        """Read the shards, several at once; return their problems in the order of the shards."""
        num, total = len(self.corpus.shards), sum(shard.bytes for shard in self.corpus.manifest.shards if shard.sha256)
        self.read = [0] * num
        pool = ThreadPoolExecutor(workers, "verify")
        try:
            futures = [pool.submit(self._shard, shard) for shard in range(num)]
            pending: set[Future[Problem | None]] = set(futures)
            while pending:
                pending = wait(pending, TICK_S).not_done
                if pending and self.progress is not None:
                    self.progress(sum(self.read), total)
        finally:
            pool.shutdown(cancel_futures=True)
        return [problem for future in futures if (problem := future.result()) is not None]

    def _shard(self, shard: int) -> Problem | None:
        facts = self.corpus.manifest.shards[shard]
        try:
            return self._measured(facts) if facts.sha256 is None else self._read(shard, facts)
        except OSError as error:
            return _problem(self.corpus.store.url, facts.name, error)

    def _measured(self, facts: ShardFacts) -> Problem | None:
        size = self.corpus.store.size(facts.name)
        return None if size == facts.bytes else Problem(facts.name, _sizes(size, facts), RESTORE)

    def _read(self, shard: int, facts: ShardFacts) -> Problem | None:
        first = int(self.corpus.first_samples[shard])
        samples = np.zeros(0, SAMPLE_DTYPE) if self.samples is None else self.samples[first : first + facts.samples]
        sums, whole = SampleSums(samples["length"]), hashlib.sha256()
        with self.corpus.store.open(facts.name) as file:
            for chunk in chunks(file):
                self.read[shard] += len(chunk)
                whole.update(chunk)
                sums.update(chunk)
        wrong = [first + place for place in _wrong(sums.sums, samples["xxh3"])]
        damaged = "" if self.samples is None else f"; damaged: {_named(wrong)}"
        if self.read[shard] != facts.bytes:
            return Problem(facts.name, f"{_sizes(self.read[shard], facts)}{damaged}", RESTORE)
        if whole.hexdigest() != facts.sha256:
            return Problem(facts.name, f"its SHA-256 is not the manifest's{damaged}", RESTORE)
        return Problem(facts.name, f"index and tar disagree about {_named(wrong)}", _INDEX_WRONG) if wrong else None


def _wrong(sums: list[int], said: np.ndarray) -> list[int]:
    """Return the places of the samples whose sum is not what the index says, or that were not reached."""
    read = np.array(sums, np.uint64) != said[: len(sums)]
    return [*np.flatnonzero(read).tolist(), *range(len(sums), len(said))]


def _sizes(size: int, facts: ShardFacts) -> str:
    return f"{size:,} bytes, the manifest says {facts.bytes:,}"


def _named(wrong: list[int]) -> str:
    if not wrong:
        return "no sample, only the end of the archive"
    more = f" and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
    return f"sample{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong[:NAMED]))}{more}"


def _problem(url: str, file: str, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(file, "missing", RESTORE)
    if isinstance(error, RunError):
        return Problem(file, error.message.removeprefix(f"{open_store(url).url}/{file}: "), error.hint or RESTORE)
    return Problem(file, f"cannot be read: {error}", RESTORE)
