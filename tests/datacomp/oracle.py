"""DataComp's seven baseline filters, row by row, for tests to compare with: slow, plain, and nothing else.

Written from the definitions (the projects' `baselines/apply_filter.py` as users run it), without a look at `mmdata`: what
both say is then likely to be true. Of `mmdata` it imports nothing. fastText's `predict` is called, as the definitions do.
Two functions that they call are written out: `fasttext.tokenize`, which the wheels of fastText leave out, and NLTK's
`wordnet.synsets`, whose reader takes no folder but NLTK's own. Each rule is one function, in the order of the definitions.

Where the definitions are silent:
- A null text or a null uid stops DataComp's script. Here a null text passes no rule that reads the text.
- A null score is what pandas makes of it, NaN: no score is kept that is not a number, and in a fraction's order NaNs come
  last, but they count among the N.
- A null side is NaN too, and no such picture is 200 wide.
- Scores are float32, and a threshold is compared as the nearest float32, as numpy does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow.parquet as pq

SUBSET = np.dtype("u8,u8")
NAMES = (
    "no_filter", "basic_filter", "text_based", "clip_score", "laion2b", "image_based", "image_based_intersect_clip_score",
)  # fmt: skip
SCORES = {"l14": "clip_l14_similarity_score", "b32": "clip_b32_similarity_score"}
LAION_2B_SCORE = 0.28

Pool = Sequence[tuple[Path, Path]]
Row = dict[str, Any]
Rule = Callable[[Row], bool]


@dataclass(frozen=True)
class Assets:
    """What the filters read beside the pool.

    fasttext_model     the language model, `lid.176.bin` or what stands in for it
    wordnet            a folder with WordNet's `index.*` and `*.exc`
    imagenet21k_ids    a file with a line `n01440764` for each synset
    pool_centroids_CD  (C, D) float32, the clusters of the pool
    target_centroids   ids in 0..C-1 of the clusters that ImageNet lies in; or null, and then
    in1k_features_ND   (N, D), features of ImageNet's pictures, whose nearest clusters those are
    gcld3_language     a text's language, in place of gcld3's `FindLanguage(text).language`
    """

    fasttext_model: Path
    wordnet: Path
    imagenet21k_ids: Path
    pool_centroids_CD: np.ndarray
    gcld3_language: Callable[[str], str]
    target_centroids: frozenset[int] | None = None
    in1k_features_ND: np.ndarray | None = None


def keep(
    filter_name: str, pool: Pool, assets: Assets, *,
    arch: str | None = None, fraction: float | None = None, threshold: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the subset of a pool that a filter keeps.

    pool     (parquet, npz) of each file; row i of one is row i of the other
    returns  (n,) of `u8,u8`, sorted; a uid that is kept twice stands twice
    """
    _check_flags(filter_name, arch, fraction, threshold)
    if fraction is not None:
        threshold = threshold_of(pool, SCORES[str(arch)], fraction)
    kept = _rule(filter_name, Judge(assets), SCORES.get(str(arch), ""), threshold)
    subset = np.array([uid_pair(row["uid"]) for row in rows(pool) if kept(row)], SUBSET)
    subset.sort()
    return subset


def _check_flags(name: str, arch: str | None, fraction: float | None, threshold: float | None) -> None:
    if name not in NAMES:
        raise ValueError(f"no baseline is called {name!r}")
    if name in ("clip_score", "image_based_intersect_clip_score"):
        if arch not in SCORES or (fraction is None) == (threshold is None):
            raise ValueError(f"{name} takes an arch (l14 or b32) and exactly one of fraction and threshold")
    elif (arch, fraction, threshold) != (None, None, None):
        raise ValueError(f"{name} takes no arch, fraction or threshold")


def _rule(name: str, judge: "Judge", score: str, threshold: float | None) -> Rule:
    """Return the line of the table that has this name."""
    rules: dict[str, Rule] = {
        "no_filter": lambda row: True,
        "basic_filter": judge.basic,
        "text_based": judge.names_an_imagenet_class,
        "clip_score": lambda row: at_least(row[score], threshold),
        "laion2b": lambda row: judge.gcld3_english(row) and at_least(row[SCORES["b32"]], LAION_2B_SCORE),
        "image_based": judge.near_imagenet,
        "image_based_intersect_clip_score": lambda row: at_least(row[score], threshold) and judge.near_imagenet(row),
    }
    return rules[name]


def rows(pool: Pool) -> Iterator[Row]:
    """Yield the rows of a pool, file by file, with `l14_img` (D,) beside the columns of the parquet."""
    for parquet, npz in pool:
        with np.load(npz) as arrays:
            features_ND = arrays["l14_img"]
        for row, feature_D in zip(pq.read_table(parquet).to_pylist(), features_ND, strict=True):
            yield {**row, "l14_img": feature_D}


def uid_pair(uid: str) -> tuple[int, int]:
    """Return the high and the low 64 bits of a uid of 32 hexadecimal digits."""
    return int(uid[:16], 16), int(uid[16:32], 16)


def at_least(score: float | None, threshold: float | None) -> bool:
    """Say whether `score >= threshold`, both as float32."""
    assert threshold is not None
    return score is not None and bool(np.float32(score) >= np.float32(threshold))


def threshold_of(pool: Pool, column: str, fraction: float) -> float:
    """Return the score at place `int(N * fraction)`, from 0, of the whole pool's scores from high to low.

    As the rule is `>=`, one sample more than `int(N * fraction)` is kept, and all that have that score.
    """
    columns = [pq.read_table(parquet, columns=[column])[column].to_pylist() for parquet, _ in pool]
    scores = [np.nan if score is None else score for column_of_file in columns for score in column_of_file]
    descending = sorted((score for score in scores if not np.isnan(score)), reverse=True)
    descending += [np.nan] * (len(scores) - len(descending))
    return descending[int(len(scores) * fraction)]


def tokenize(text: str) -> list[str]:
    """Return the words of a text as `fasttext.tokenize` does (`Dictionary::readWord`).

    Words end at seven ASCII characters and at no other space of Unicode; each line end is a word of its own.
    """
    words, word = [], ""
    for char in text:
        if char not in " \n\r\t\v\f\0":
            word += char
            continue
        if word:
            words.append(word)
            word = ""
        if char == "\n":
            words.append("</s>")
    return [*words, word] if word else words


class WordNet:
    """What NLTK's `wordnet.synsets(word)` says first, from WordNet's own files."""

    # In this order the parts of speech are asked. Endings are taken off a word until something is found, as in NLTK 3.8.1,
    # which DataComp's requirements name: first one of each kind, then one more of what that left, and so on.
    endings = (
        ("noun", "s/ ses/s ves/f xes/x zes/z ches/ch shes/sh men/man ies/y"),
        ("verb", "s/ ies/y es/e es/ ed/e ed/ ing/e ing/"),
        ("adj", "er/ est/ er/e est/e"),
        ("adv", ""),
    )

    def __init__(self, folder: Path) -> None:
        self.places = {name: {} for name, _ in self.endings}
        self.irregular = {name: {} for name, _ in self.endings}
        for name, _ in self.endings:
            for line in (folder / f"index.{name}").read_text(encoding="utf-8").splitlines():
                if not line.startswith(" "):  # word, part of speech, number of synsets, ..., the offsets of so many
                    fields = line.split()
                    self.places[name][fields[0]] = int(fields[-int(fields[2])])
            for line in (folder / f"{name}.exc").read_text(encoding="utf-8").splitlines():
                word, *stems = line.split()
                self.irregular[name][word] = stems

    places: dict[str, dict[str, int]]  # by part of speech: of each word the first synset's offset
    irregular: dict[str, dict[str, list[str]]]  # by part of speech: the stems of irregular forms

    def first_synset_offset(self, word: str) -> int | None:
        """Return the offset of a word's first synset, whatever its part of speech; null for a word without one."""
        word = word.lower()
        for name, endings in self.endings:
            pairs = [ending.split("/") for ending in endings.split()]
            forms = [word, *self.irregular[name].get(word, [])]
            while forms:
                for form in forms:
                    if form in self.places[name]:
                        return self.places[name][form]
                if word in self.irregular[name]:
                    break
                forms = [form[: -len(old)] + new for form in forms for old, new in pairs if form.endswith(old)]
        return None


class Judge:
    """The rules that read assets, one row at a time."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets

    def basic(self, row: Row) -> bool:
        """`basic_filter`: English, more than 2 words, more than 5 characters, 200 pixels or more, at most 3 to 1."""
        text, width, height = row["text"], row["original_width"], row["original_height"]
        if text is None or width is None or height is None:
            return False
        return (
            self.fasttext_english(text)
            and len(text.split()) > 2
            and len(text) > 5
            and min(width, height) >= 200
            and max(width, height) / min(width, height) <= 3.0
        )

    def names_an_imagenet_class(self, row: Row) -> bool:
        """`text_based`: English, and the first synset of some word is one of ImageNet-21k's."""
        text = row["text"]
        if text is None or not self.fasttext_english(text):
            return False
        return any(self.wordnet.first_synset_offset(word) in self.imagenet21k for word in text.split())

    def gcld3_english(self, row: Row) -> bool:
        """The language rule of `laion2b`, which is not fastText's. It too reads a line end as a space."""
        text = row["text"]
        return text is not None and self.assets.gcld3_language(text.replace("\n", " ")) == "en"

    def near_imagenet(self, row: Row) -> bool:
        """`image_based`: a caption rule of its own (not the basic one), and the nearest cluster is one of ImageNet's."""
        text = row["text"]
        if text is None:
            return False
        caption = self.fasttext_english(text) and len(tokenize(text)) > 1 and len(text) > 5
        return caption and self.nearest_centroid(row["l14_img"]) in self.targets

    def fasttext_english(self, text: str) -> bool:
        """The first label for the text, with line ends as spaces, is English."""
        labels, _ = self.language.predict(text.replace("\n", " "))
        return bool(labels[0] == "__label__en")

    def nearest_centroid(self, feature_D: np.ndarray) -> int:
        """The cluster with the largest inner product in float32; of equal ones, the first."""
        return int(np.argmax([np.dot(centroid_D, feature_D.astype(np.float32)) for centroid_D in self.centroids_CD]))

    @cached_property
    def language(self) -> Any:  # noqa: ANN401 - fastText has no types
        """The language model, loaded."""
        return fasttext.load_model(str(self.assets.fasttext_model))

    @cached_property
    def wordnet(self) -> "WordNet":
        """The dictionary, read."""
        return WordNet(self.assets.wordnet)

    @cached_property
    def imagenet21k(self) -> frozenset[int]:
        """The numbers of ImageNet-21k's synsets, without the letter of their part of speech."""
        return frozenset(int(line.strip()[1:]) for line in self.assets.imagenet21k_ids.read_text().splitlines())

    @cached_property
    def centroids_CD(self) -> np.ndarray:
        """The clusters of the pool in float32."""
        return self.assets.pool_centroids_CD.astype(np.float32)

    @cached_property
    def targets(self) -> frozenset[int]:
        """The clusters nearest to pictures of ImageNet-1k."""
        if self.assets.target_centroids is not None:
            return self.assets.target_centroids
        assert self.assets.in1k_features_ND is not None, "image_based needs target_centroids or in1k_features_ND"
        return frozenset(self.nearest_centroid(feature_D) for feature_D in self.assets.in1k_features_ND)
