"""Texts cut into parts: words, lines and paragraphs of a whole batch, each in one long array, and n-grams of them.

Decided here: what is asked of each text is a sum over its part of such an array, and an n-gram is a number for a place in it,
so a batch is counted in a few passes of numpy and polars whatever it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from mmdata.errors import ConfigError

_SPECIAL_ENDS = r"[\p{P}\p{S}\p{N}]+"  # what OBELICS strips from the ends of words
MOST_WORDS = 10  # of an n-gram that anyone asks for


@dataclass(frozen=True)
class Parts:
    """Words or lines of all texts, one after the other.

    text_W   (W,) int64, the text that each part is of, ascending
    chars_W  (W,) int64, its length in characters
    """

    values: pl.Series
    text_W: np.ndarray
    chars_W: np.ndarray


class Texts:
    """A batch of texts, cut up only as far as it is asked to be; nulls count as empty here."""

    def __init__(self, texts: Sequence[str | None], lists: Mapping[str, frozenset[str]] | None = None) -> None:
        self.values = pl.Series("text", texts, dtype=pl.String).fill_null("")
        self.num = len(texts)
        self._lists = lists or {}

    @cached_property
    def chars_N(self) -> np.ndarray:
        """(N,) int64, characters of each text."""
        return self.values.str.len_chars().to_numpy().astype(np.int64)

    @cached_property
    def words(self) -> Parts:
        """The words."""
        return _parts(self.values.str.extract_all(r"\S+"))

    @cached_property
    def lines(self) -> Parts:
        """Lines that hold anything, without the white space around them."""
        return _lines(self.values, "\n")

    @cached_property
    def paragraphs(self) -> Parts:
        """Paragraphs that hold anything: what lies between blank lines."""
        return _lines(self.values.str.replace_all(r"\n\s*\n", "\u2029"), "\u2029")

    @cached_property
    def plain_words(self) -> Parts:
        """Words as OBELICS counts them: lower case, stripped of punctuation, symbols and digits at both ends."""
        words = self.words
        found = words.values.str.to_lowercase().str.replace(f"^{_SPECIAL_ENDS}", "").str.replace(f"{_SPECIAL_ENDS}$", "")
        there = (found != "").to_numpy()
        kept = found.filter(pl.Series(there))
        return Parts(kept, words.text_W[there], kept.str.len_chars().to_numpy().astype(np.int64))

    @cached_property
    def grams(self) -> "Grams":
        """Repeated n-grams of words."""
        return Grams(self.words, self.num)

    def listed(self, name: str) -> pl.Series:
        """Say of each plain word whether a list of words has it."""
        if name not in self._lists:
            raise ConfigError(f"the statistic `{name}` needs a list of words", hint=f"add `lists: {{{name[:-6]}: FILE}}`")
        return self.plain_words.values.is_in(list(self._lists[name]))

    def sums(self, parts: Parts, weights_W: np.ndarray | pl.Series | None = None) -> np.ndarray:
        """Return for each text the sum over its parts, (N,) float64; without weights their number."""
        weights = None if weights_W is None else np.asarray(weights_W, np.float64)
        return np.bincount(parts.text_W, weights, minlength=self.num).astype(np.float64)

    def share(self, parts: Parts, which_W: pl.Series | np.ndarray) -> np.ndarray:
        """Return for each text the share of its parts that are so, (N,) float64."""
        return ratio(self.sums(parts, which_W), self.sums(parts))

    def char_share(self, parts: Parts, which_W: np.ndarray) -> np.ndarray:
        """Return for each text the share of its parts' characters that lie in those that are so, (N,) float64."""
        return ratio(self.sums(parts, parts.chars_W * which_W), self.sums(parts, parts.chars_W))


class Grams:
    """N-grams that a text holds more than once, for n up to `MOST_WORDS`.

    Only where an (n-1)-gram is repeated can an n-gram be, so each n looks at fewer places than the one before.
    """

    def __init__(self, words: Parts, num_texts: int) -> None:
        self.words, self.num_texts = words, num_texts
        word_W = codes(words.values)
        gram_W = _number(words.text_W * (int(word_W.max(initial=0)) + 1) + word_W)
        place = np.arange(len(gram_W))
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        known = gram_W
        for n in range(1, MOST_WORDS + 1):
            if n > 1:
                inside = place + n - 1 < len(words.text_W)
                place, known = place[inside], known[inside]
                same = words.text_W[place] == words.text_W[place + n - 1]
                place, known = place[same], known[same]
                known = _number(known * np.int64(len(gram_W) + 1) + gram_W[place + n - 1])
            counts = np.bincount(known, minlength=1)[known] if len(known) else known
            again = counts > 1
            place, known, counts = place[again], known[again], counts[again]
            self._found.append((place, known, counts))

    def places(self, n: int) -> np.ndarray:
        """Return where an n-gram begins that its text holds more than once, as indexes of words."""
        return self._found[n - 1][0]

    def repeated(self, n: int) -> np.ndarray:
        """Say of each word whether it lies in an n-gram that its text holds more than once, (W,) bool."""
        return self._covered(self.places(n), n)

    def most_frequent(self, n: int) -> np.ndarray:
        """Say of each word whether it lies in the n-gram that its text holds most often, of equals the longest, (W,) bool."""
        place, gram, counts = self._found[n - 1]
        total = np.concatenate([[0], np.cumsum(self.words.chars_W)])
        chars = total[place + n] - total[place] if len(place) else place
        text = self.words.text_W[place]
        order = np.lexsort((place, -chars, -counts, text))
        first = np.flatnonzero(np.append(True, np.diff(text[order]) != 0)[: len(order)])
        best = np.full(self.num_texts, -1)
        best[text[order][first]] = gram[order][first]
        return self._covered(place[best[text] == gram], n)

    def _covered(self, place: np.ndarray, n: int) -> np.ndarray:
        edges = np.zeros(len(self.words.text_W) + 1, np.int64)
        np.add.at(edges, place, 1)
        np.add.at(edges, place + n, -1)
        return np.cumsum(edges)[:-1] > 0


def _parts(lists: pl.Series) -> Parts:
    sizes = lists.list.len().to_numpy()
    values = lists.explode().drop_nulls()
    return Parts(values, np.repeat(np.arange(len(sizes)), sizes), values.str.len_chars().to_numpy().astype(np.int64))


def _lines(texts: pl.Series, end: str) -> Parts:
    lists = texts.str.split(end)
    sizes = lists.list.len().to_numpy()
    values = lists.explode().str.strip_chars()
    there = (values != "").to_numpy()
    kept = values.filter(pl.Series(there))
    text_W = np.repeat(np.arange(len(sizes)), sizes)[there]
    return Parts(kept, text_W, kept.str.len_chars().to_numpy().astype(np.int64))


def codes(values: pl.Series) -> np.ndarray:
    """Return a number for each value, the same for equal ones, (W,) int64."""
    return values.rank("dense").fill_null(0).to_numpy().astype(np.int64)


def _number(keys: np.ndarray) -> np.ndarray:
    """Return small numbers in place of large ones, the same for equal ones."""
    found: np.ndarray = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return found


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return shares, 0 where there is nothing to share."""
    found: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return found
