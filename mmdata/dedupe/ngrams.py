"""Texts that share runs of words with a reference, such as the captions or questions of an eval set.

The way of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C: runs of 13 words, fewer for short tasks), PaLM (Chowdhery et
al. 2022, arXiv:2204.02311: contaminated where 70 % of the runs of 8 words are known) and the Llama reports. Decided here: what
counts is the share of a text's own runs that the reference has; the caller says from which share on a text goes. A text of
fewer words than a run counts as a whole: it meets a text of the reference that has the same words and no others. Words are
those of `mmdata.dedupe.words`, a run is known by 64 bits: among 10^8 runs of a reference one of 1.8 x 10^11 is met by chance.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmdata.dedupe.words import Pieces, runs_of

WORDS = 8  # a run
LEAST_WORDS = 3  # "a dog" is no copy of "a dog"


@dataclass(frozen=True)
class Grams:
    """The runs of words in a reference, each once. Both arrays may be memory-mapped: they are searched in order, never copied.

    hash_G        (G,) uint64, ascending
    place_G       (G,) int64, the first text of the reference that has it
    n             words a run
    least_words   texts of the reference of fewer words were left out
    """

    hash_G: np.ndarray
    place_G: np.ndarray
    n: int = WORDS
    least_words: int = LEAST_WORDS

    def __len__(self) -> int:
        """Return how many runs there are."""
        return len(self.hash_G)


def grams_of(texts: pa.ChunkedArray, n: int = WORDS, least_words: int = LEAST_WORDS) -> Grams:
    """Return the runs of `n` words in the texts of a reference, 16 bytes each; making them takes about 60.

    least_words   texts of fewer words say nothing, and are left out. In Chinese, Japanese or Thai a character is a word
    """
    runs = runs_of(texts, n)
    hash_S, place_S = runs.hash_S, runs.text_S()
    if least_words > 1:
        enough = _num_words(texts, runs, n) >= least_words
        hash_S, place_S = hash_S[enough[place_S]], place_S[enough[place_S]]
    order = np.argsort(hash_S, kind="stable")  # the first text that has a run comes first
    hash_S = hash_S[order]
    fresh = np.ones(len(hash_S), bool)
    fresh[1:] = hash_S[1:] != hash_S[:-1]
    return Grams(hash_S[fresh], place_S[order[fresh]], n, least_words)


def _num_words(texts: pa.ChunkedArray, runs: Pieces, n: int) -> np.ndarray:
    """Return how many words each text has, (N,) int64."""
    num = runs.num_N() + n - 1
    one = np.flatnonzero(runs.num_N() <= 1)  # they may have fewer than n
    num[one] = runs_of(texts.take(pa.array(one)), 1).num_N()
    return num


def hits(texts: pa.ChunkedArray, grams: Grams) -> tuple[np.ndarray, np.ndarray]:
    """Return which text of the reference each text has most runs in common with, and how many of its runs the reference has.

    The runs of all texts are looked for in one pass over the reference, about 60 bytes of memory each: many at a time are
    cheaper. A run that several texts of the reference have counts for the first of them; of texts that as many runs meet the
    first is named.

    returns   (N,) int64, places in the reference, -1 where no run is met;
              (N,) float32 in [0, 1], of the runs of the text; 0 for a text without words
    """
    runs = runs_of(texts, grams.n)
    place_S = _places(runs.hash_S, grams)
    met = place_S >= 0
    text_M, place_M = runs.text_S()[met], place_S[met]
    num_N = runs.num_N()
    share = np.bincount(text_M, minlength=len(num_N)) / np.maximum(num_N, 1)
    return most_met(text_M, place_M, len(num_N)), share.astype(np.float32)


def _places(hash_S: np.ndarray, grams: Grams) -> np.ndarray:
    """Return the place that the reference has for each run, (S,) int64, -1 for none."""
    order = np.argsort(hash_S)  # so that the reference is read from its start to its end
    asked = hash_S[order]
    at = np.searchsorted(grams.hash_G, asked)
    inside = at < len(grams)
    order, asked, at = order[inside], asked[inside], at[inside]
    known = grams.hash_G[at] == asked
    place_S = np.full(len(hash_S), -1, np.int64)
    place_S[order[known]] = grams.place_G[at[known]]
    return place_S


def most_met(text_M: np.ndarray, place_M: np.ndarray, num: int) -> np.ndarray:
    """Return the place that each of `num` texts meets most often, the first of several, (N,) int64; -1 where it meets none."""
    """Return the place that each of `num` texts meets most often, (N,) int64; of several the first, -1 for none."""
    num_places = int(place_M.max(initial=0)) + 1
    both, count = np.unique(text_M * num_places + place_M, return_counts=True)
    text, place = both // num_places, both % num_places
    worst_first = np.lexsort((-place, count, text))  # of a text's places the best is written last
    found = np.full(num, -1, np.int64)
    found[text[worst_first]] = place[worst_first]
    return found
