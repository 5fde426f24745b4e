"""What is in a corpus: counts, spreads of sizes and lengths, licences, sources, scores.

Decided here: what the index says is said of all samples, from its arrays. What only the samples say (sources, scores, pictures)
comes from a random choice of at most 2,000, the same each time, and is told as such. Samples that cannot be read are counted
and named; finding all damage is `mmdata verify`'s.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mmdata.errors import MmdataError
from mmdata.report.spread import Spread, spread
from mmdata.shards import KINDS, Corpus, open_corpus
from mmdata.shards.contents import PAIR, SAMPLE_KINDS, VIDEO_PAIR, Read, choose_samples, kinds_of, read_samples, with_text
from mmdata.shards.corpus import SUFFIXES
from mmdata.shards.members import TAR_BLOCK

LOOKED_AT = 2_000
PICTURES = 64
MAX_SCORES = 40
MAX_SOURCES = 20
_IN_INDEX = frozenset({"width", "height", "position"})


@dataclass(frozen=True)
class Part:
    """Some of the samples, or of the blocks of media: how many, and their bytes."""

    name: str
    samples: int
    blocks: int
    bytes: int


@dataclass(frozen=True)
class Picture:
    """An image as it is stored, untrusted, and the text that belongs to it."""

    data: bytes
    text: str


@dataclass
class Chosen:
    """What the samples say that were read.

    unreadable  samples that could not be read, and what was wrong with the first
    sources     by source, how many of the samples that were read
    """

    samples: int = 0
    unreadable: int = 0
    problem: str | None = None
    sources: dict[str, int] = field(default_factory=dict)
    scores: list[Spread] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """What is in a corpus. `bytes` of a split or kind are those of its samples in the tars, of a format those of its media.

    untold   pairs without a text: none was given
    """

    url: str
    plan: str
    generation: object
    digest: str
    trusted: bool
    samples: int
    blocks: int
    bytes: int
    shards: int
    splits: list[Part]
    kinds: list[Part]
    formats: list[Part]
    untold: int
    spreads: list[Spread]
    chosen: Chosen
    licences: dict[str, str]
    funnel: dict[str, Any]
    cautions: list[str]

    def as_json(self) -> dict[str, object]:
        """Return it as plain values, without the pictures."""
        facts = asdict(self)
        del facts["chosen"]["pictures"]
        return facts


def inspect_corpus(url: str) -> Inspection:
    """Look at a corpus. Raises RunError when its manifest or its index is not what was written."""
    corpus = open_corpus(url)
    facts, manifest, kinds = corpus.facts, corpus.manifest, kinds_of(corpus)
    return Inspection(
        url=corpus.store.url, plan=manifest.plan, generation=facts.get("generation"), digest=corpus.digest,
        trusted=corpus.trusted, samples=manifest.samples, blocks=manifest.blocks,
        bytes=sum(shard.bytes for shard in manifest.shards), shards=len(manifest.shards),
        splits=_parts(corpus, corpus.samples["split"], corpus.splits), kinds=_parts(corpus, kinds, SAMPLE_KINDS),
        formats=_formats(corpus), untold=_untold(corpus, kinds), spreads=_spreads(corpus), chosen=_look(corpus),
        licences=_texts(facts.get("licences")), funnel=_mapping(facts.get("funnel")), cautions=_lines(facts.get("cautions")),
    )  # fmt: skip


def _parts(corpus: Corpus, part: np.ndarray, names: list[str] | tuple[str, ...]) -> list[Part]:
    """Count the samples of each part. An index that names a part that is not there is left to `verify`."""
    num = len(names)
    samples = np.bincount(part, minlength=num)
    blocks, length = (np.bincount(part, corpus.samples[column], minlength=num) for column in ("num_blocks", "length"))
    return [Part(name, int(samples[at]), int(blocks[at]), int(length[at]) * TAR_BLOCK) for at, name in enumerate(names)]


def _formats(corpus: Corpus) -> list[Part]:
    media = corpus.blocks["kind"] > 0
    suffix, size = corpus.blocks["suffix"][media], corpus.blocks["size"][media]
    blocks = np.bincount(suffix, minlength=len(SUFFIXES))
    sizes = np.bincount(suffix, size, minlength=len(SUFFIXES))
    return [Part(name, 0, int(blocks[at]), int(sizes[at])) for at, name in enumerate(SUFFIXES) if blocks[at]]


def _untold(corpus: Corpus, kinds: np.ndarray) -> int:
    return int(np.count_nonzero(((kinds == PAIR) | (kinds == VIDEO_PAIR)) & ~with_text(corpus)))


def _spreads(corpus: Corpus) -> list[Spread]:
    blocks, samples, shards = corpus.blocks, corpus.samples, corpus.manifest.shards
    found = [each for number, kind in enumerate(KINDS) if number for each in _sizes(blocks, blocks["kind"] == number, kind)]
    found.append(spread("text length", "characters", blocks["characters"][blocks["kind"] == 0]))
    found.append(spread("sample", "bytes in its tar", np.multiply(samples["length"], TAR_BLOCK, dtype=np.uint64)))
    found.append(spread("blocks of a sample", "blocks", samples["num_blocks"]))
    found.append(spread("shard", "bytes", np.array([shard.bytes for shard in shards], dtype=np.int64)))
    found.append(spread("samples of a shard", "samples", np.array([shard.samples for shard in shards], dtype=np.int64)))
    return [each for each in found if each.count or each.unknown]


def _sizes(blocks: np.ndarray, of_kind: np.ndarray, kind: str) -> Iterator[Spread]:
    """Yield the spreads of a kind of media. An index has 10^7 blocks and more, so nothing is copied that is not looked at."""
    width, height = blocks["width"][of_kind], blocks["height"][of_kind]
    known = (width > 0) & (height > 0)
    width, height, unknown = width[known], height[known], int(np.count_nonzero(~known))
    yield spread(f"{kind} width", "pixels", width, unknown)
    yield spread(f"{kind} height", "pixels", height, unknown)
    yield spread(f"{kind} area", "pixels", np.multiply(width, height, dtype=np.uint64), unknown)
    yield spread(f"{kind} aspect ratio", "width / height", np.divide(width, height, dtype=np.float32), unknown)
    yield spread(f"{kind} size", "bytes", blocks["size"][of_kind])


def _look(corpus: Corpus) -> Chosen:
    """Read a random choice of samples."""
    chosen, numbers, sources = Chosen(), _Numbers(), Counter[str]()
    if not corpus.manifest.samples:
        return chosen
    for index, future in read_samples(corpus, choose_samples(corpus, LOOKED_AT).tolist()):
        try:
            read = future.result()
        except (MmdataError, LookupError, ValueError) as error:  # the latter two: an index that leads nowhere
            chosen.unreadable += 1
            chosen.problem = chosen.problem or (error.message if isinstance(error, MmdataError) else repr(error))
            continue
        chosen.samples += 1
        facts = _facts(read.members)
        sources[str(facts.get("source", "unknown"))] += 1
        numbers.add(facts)
        if len(chosen.pictures) < PICTURES:
            chosen.pictures += _picture(corpus, index, read, facts)
    chosen.sources = dict(sources.most_common(MAX_SOURCES))
    chosen.scores = numbers.spreads()
    return chosen


class _Numbers:
    """The numbers in samples' JSON, by name."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, facts: dict[str, Any]) -> None:
        """Take those of a sample, or of each block of a document."""
        blocks = facts.get("blocks")
        for part in blocks if isinstance(blocks, list) else [facts]:
            for name, value in part.items() if isinstance(part, dict) else ():
                if type(value) in (int, float) and name not in _IN_INDEX and _finite(value):
                    self.values.setdefault(name, []).append(float(value))

    def spreads(self) -> list[Spread]:
        """Return how each is spread, those of most samples first."""
        names = sorted(self.values, key=lambda name: -len(self.values[name]))[:MAX_SCORES]
        return [spread(name, "value", np.array(self.values[name]), ratios=False) for name in names]


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _picture(corpus: Corpus, index: int, read: Read, facts: dict[str, Any]) -> list[Picture]:
    """Return the first image of a sample with its text: a pair's caption, or the first text of a document."""
    images = (block for block in corpus.blocks_of(index) if block["kind"] == KINDS.index("image"))
    return [Picture(read.media(block), _caption(read.members, facts)) for block in images][:1]


def _caption(members: dict[str, bytes], facts: dict[str, Any]) -> str:
    if "txt" in members:
        return members["txt"].decode(errors="replace")
    blocks = facts.get("blocks")
    texts = [block.get("text") for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    first = next((text for text in texts if isinstance(text, str)), "")
    return f"document of {len(texts)} blocks: {first}"


def _facts(members: dict[str, bytes]) -> dict[str, Any]:
    try:
        return _mapping(json.loads(members.get("json", b"{}")))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> dict[str, str]:
    return {str(name): str(text) for name, text in _mapping(value).items()}


def _lines(value: object) -> list[str]:
    return [str(line) for line in value] if isinstance(value, list) else []
