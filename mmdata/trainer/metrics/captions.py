"""Generated captions against references: equal, and CIDEr-D.

Decided here: words are runs of letters and digits, case folded, so that punctuation is no difference. The reference code cuts
words by a Java tokenizer that also drops punctuation; on texts of plain words the numbers are the same.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4
SIGMA = 6.0
_WORD = re.compile(r"\w+(?:[-']\w+)*")

Grams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """Return the words of a caption, case folded."""
    return _WORD.findall(text.casefold())


def exact_match(made: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """Return which captions have the words of the true ones, in order, (N,) bool."""
    return np.array([words(left) == words(right) for left, right in zip(made, true, strict=True)], bool)


def cider(made: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return CIDEr-D of each caption, (N,) float64 in [0, 10]; a model's score is their mean.

    Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", arXiv:1411.5726, section 5.2: cosine of the
    tf-idf vectors of n-grams, counts clipped to the reference's, times exp(-(difference of lengths)^2 / (2 * 6^2)), mean over n =
    1..4 and over references, times 10. An n-gram's weight falls with the number of images that have it in any reference, so
    numbers of different sets of images do not compare, and those of a single image are 0. A text of fewer than four words has no
    4-grams: an equal one of three words is 7.5 at most.

    references   one or more a caption; they are the corpus that words are weighed by

    Raises ValueError for a caption without references.
    """
    if not all(references):
        raise ValueError("CIDEr needs a reference for each caption")
    cut = [[_grams(words(text)) for text in each] for each in references]
    num_with = Counter(gram for each in cut for gram in set().union(*each))
    log_num = math.log(max(len(cut), 1))
    idf = {gram: log_num - math.log(num) for gram, num in num_with.items()}
    scores = [_one(_Vector(_grams(words(text)), idf, log_num), [_Vector(each, idf, log_num) for each in own])
              for text, own in zip(made, cut, strict=True)]  # fmt: skip
    return np.array(scores, np.float64)


def _grams(tokens: list[str]) -> Grams:
    return Counter(tuple(tokens[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(tokens) - n + 1))


class _Vector:
    """The tf-idf weights of a text, their norm for each length of n-gram, and its number of words."""

    def __init__(self, grams: Grams, idf: dict[tuple[str, ...], float], unseen: float) -> None:
        self.weights = {gram: count * idf.get(gram, unseen) for gram, count in grams.items()}
        squares = np.zeros(LONGEST)
        for gram, weight in self.weights.items():
            squares[len(gram) - 1] += weight**2
        self.norms = np.sqrt(squares)
        self.length = sum(count for gram, count in grams.items() if len(gram) == 1)


def _one(made: _Vector, references: list[_Vector]) -> float:
    return 10 * float(np.mean([_alike(made, reference) for reference in references]))


def _alike(made: _Vector, reference: _Vector) -> float:
    products = np.zeros(LONGEST)
    for gram, weight in made.weights.items():
        known = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, known) * known
    norms = made.norms * reference.norms
    cosines = np.divide(products, norms, out=np.zeros(LONGEST), where=norms > 0)
    return float(cosines.mean()) * math.exp(-((made.length - reference.length) ** 2) / (2 * SIGMA**2))
