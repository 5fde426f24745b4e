"""Numbers about texts that rules are made of: lengths, shares of words and lines, repetition.

Decided here: words are runs between white space. Shares are 0 to 1 and 0 where there is nothing to share; a null text has
null for all. Each statistic names the paper it comes from where it is registered, at the end of this file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmdata.errors import ConfigError, did_you_mean
from mmdata.text.parts import Grams, Parts, Texts, codes, ratio
from mmdata.text.words import GOPHER_STOP_WORDS, PUNCTUATION, STOP_WORDS

_BULLET = r"^[\u2022\u2023\u25B6\u25C0\u25E6\u25A0\u25A1\u25AA\u25AB\u2013\u2043\u204C\u204D\u2219\u25CF\u25CB*\-]"
_ELLIPSIS = r"(\.\.\.|\u2026)$"
_C4_END = r"[.!?\"\u201D]$"
_C4_POLICY = r"(?i)terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
_SENTENCE_END = r"[.!?][\"\u201D')\]]*(\s|$)"
_REPEATED_CHARS = 10
_REPEATED_WORDS = 5
_RUN_CHARS = 4 << 20  # that are counted at once: about 0.6 GB
_FEW = 12  # words and marks: in a shorter paragraph OBELICS does not ask for marks

Count = Callable[[Texts], np.ndarray]


def _copies(parts: Parts) -> np.ndarray:
    """Say of each part whether an equal one stands before it in its text, (W,) bool."""
    value_W = codes(parts.values)
    key = parts.text_W * (int(value_W.max(initial=0)) + 1) + value_W
    first = np.unique(key, return_index=True)[1]
    again = np.full(len(key), True)
    again[first] = False
    return again


def _gopher_stop_words(texts: Texts) -> np.ndarray:
    words = texts.words.values.str.to_lowercase()
    found = np.zeros(texts.num)
    for word in GOPHER_STOP_WORDS:
        found += texts.sums(texts.words, words == word) > 0
    return found


def _symbols(texts: Texts) -> np.ndarray:
    hashes = texts.values.str.count_matches("#", literal=True)
    ellipses = texts.values.str.count_matches(r"\.\.\.|\u2026")
    return ratio((hashes + ellipses).to_numpy().astype(np.float64), texts.sums(texts.words))


def _c4_kept(texts: Texts) -> np.ndarray:
    """Say of each line whether C4 keeps it, (W,) bool."""
    lines = texts.lines.values
    long = lines.str.count_matches(r"\S+") >= 5
    noise = lines.str.contains("(?i)javascript") | lines.str.contains(_C4_POLICY)
    kept: np.ndarray = (lines.str.contains(_C4_END) & ~lines.str.contains(_ELLIPSIS) & long & ~noise).to_numpy()
    return kept


def _c4_sentences(texts: Texts) -> np.ndarray:
    sentences = texts.lines.values.str.count_matches(_SENTENCE_END).to_numpy().astype(np.float64)
    return texts.sums(texts.lines, np.maximum(sentences, 1) * _c4_kept(texts))


def _times(pattern: str) -> Count:
    return lambda texts: texts.values.str.count_matches(pattern).to_numpy().astype(np.float64)


def _char_repetition(texts: Texts) -> np.ndarray:
    """Return the share of 10-grams of characters that are among the most frequent ones, as BigScience and OBELICS have it.

    Of d different ones, those that count are the sqrt(d) most frequent, as far as they come more than once.
    """
    chars = np.frombuffer("".join(texts.values.to_list()).encode("utf-32-le"), np.uint32).astype(np.uint64)
    start = np.concatenate([[0], np.cumsum(texts.chars_N)])
    num_N = np.maximum(texts.chars_N - _REPEATED_CHARS + 1, 0)
    text_G = np.repeat(np.arange(texts.num), num_N)
    place_G = np.arange(num_N.sum()) - np.repeat(np.cumsum(num_N) - num_N, num_N) + start[text_G]
    gram = np.zeros(len(text_G), np.uint64)
    for offset in range(_REPEATED_CHARS):  # a hash of the ten characters
        gram = (gram ^ chars[place_G + offset]) * np.uint64(0x9E3779B97F4A7C15)
        gram ^= gram >> np.uint64(29)
    bits = np.uint64(64 - max(texts.num - 1, 1).bit_length())  # of the hash; above them stands the text's number
    gram = np.sort(text_G.astype(np.uint64) << bits | gram >> np.uint64(64) - bits)
    first = np.flatnonzero(np.append(True, gram[1:] != gram[:-1])[: len(gram)])
    counts, text_D = np.diff(np.append(first, len(gram))), (gram[first] >> bits).astype(np.int64)
    distinct = np.bincount(text_D, minlength=texts.num)
    text_D, counts = text_D[counts > 1], counts[counts > 1]
    order = np.lexsort((-counts, text_D))
    text_D, counts = text_D[order], counts[order]
    again = np.bincount(text_D, minlength=texts.num)
    rank = np.arange(len(text_D)) - np.repeat(np.cumsum(again) - again, again)
    repeated = rank < np.sqrt(distinct)[text_D].astype(np.int64)
    return ratio(np.bincount(text_D, counts * repeated, minlength=texts.num), num_N.astype(np.float64))


def _word_repetition(texts: Texts) -> np.ndarray:
    """Return the share of 5-grams of plain words that are no single ones."""
    words = texts.plain_words
    places = Grams(words, texts.num).places(_REPEATED_WORDS)
    num = np.maximum(texts.sums(words) - _REPEATED_WORDS + 1, 0)
    return ratio(np.bincount(words.text_W[places], minlength=texts.num).astype(np.float64), num)


def _special_chars(texts: Texts) -> np.ndarray:
    special = texts.values.str.count_matches(r"[\p{P}\p{S}\p{N}\s]").to_numpy().astype(np.float64)
    return ratio(special, texts.chars_N.astype(np.float64))


def _punctuation(texts: Texts, at_least: int = 0) -> np.ndarray:
    """Return the share of marks among marks and words; 1 for a text of fewer of both than `at_least`."""
    marks = texts.values.str.count_matches(PUNCTUATION).to_numpy().astype(np.float64)
    words = texts.values.str.count_matches(r"[\w']+").to_numpy().astype(np.float64)
    return np.where((marks + words > 0) & (marks + words < at_least), 1.0, ratio(marks, marks + words))


def _listed(name: str) -> Count:
    return lambda texts: texts.share(texts.plain_words, texts.listed(name))


@dataclass(frozen=True)
class Statistic:
    """One number about a text: what it is, in which unit, and how it is counted for a batch."""

    name: str
    unit: str
    meaning: str
    count: Count


def _repeats(n: int) -> Count:
    return lambda texts: texts.char_share(texts.words, texts.grams.repeated(n))


def _most_frequent(n: int) -> Count:
    return lambda texts: texts.char_share(texts.words, texts.grams.most_frequent(n))


_GOPHER = "Rae et al. 2021, arXiv:2112.11446, A1.1"
_C4 = "Raffel et al. 2020, arXiv:1910.10683, 2.2"
_OBELICS = "Laurencon et al. 2023, arXiv:2306.16527, A.1.4"
_SHARE = "0 to 1"

STATISTICS: dict[str, Statistic] = {
    item.name: item
    for item in (
        Statistic("num_chars", "characters", "length of the text", lambda texts: texts.chars_N.astype(np.float64)),
        Statistic("num_words", "words", f"runs between white space ({_GOPHER})", lambda texts: texts.sums(texts.words)),
        Statistic(
            "mean_word_length", "characters", f"mean length of words ({_GOPHER})",
            lambda texts: ratio(texts.sums(texts.words, texts.words.chars_W), texts.sums(texts.words)),
        ),
        Statistic("symbol_ratio", "a word", f"hashes and ellipses, for each word ({_GOPHER})", _symbols),
        Statistic(
            "bullet_lines", _SHARE, f"lines that begin with a bullet ({_GOPHER})",
            lambda texts: texts.share(texts.lines, texts.lines.values.str.contains(_BULLET)),
        ),
        Statistic(
            "ellipsis_lines", _SHARE, f"lines that end with an ellipsis ({_GOPHER})",
            lambda texts: texts.share(texts.lines, texts.lines.values.str.contains(_ELLIPSIS)),
        ),
        Statistic(
            "alphabetic_words", _SHARE, f"words with a letter in them ({_GOPHER})",
            lambda texts: texts.share(texts.words, texts.words.values.str.contains(r"\p{Alphabetic}")),
        ),
        Statistic(
            "num_stop_words", "words", f"how many of the, be, to, of, and, that, have, with it holds ({_GOPHER})",
            _gopher_stop_words,
        ),
        Statistic(
            "duplicate_lines", _SHARE, f"lines that repeat an earlier one ({_GOPHER})",
            lambda texts: texts.share(texts.lines, _copies(texts.lines)),
        ),
        Statistic(
            "duplicate_paragraphs", _SHARE, f"paragraphs that repeat an earlier one ({_GOPHER})",
            lambda texts: texts.share(texts.paragraphs, _copies(texts.paragraphs)),
        ),
        Statistic(
            "duplicate_line_chars", _SHARE, f"characters in lines that repeat an earlier one ({_GOPHER})",
            lambda texts: texts.char_share(texts.lines, _copies(texts.lines)),
        ),
        Statistic(
            "duplicate_paragraph_chars", _SHARE, f"characters in paragraphs that repeat an earlier one ({_GOPHER})",
            lambda texts: texts.char_share(texts.paragraphs, _copies(texts.paragraphs)),
        ),
        *(
            Statistic(f"top_{n}gram_chars", _SHARE, f"characters in the most frequent {n}-gram ({_GOPHER})", _most_frequent(n))
            for n in range(2, 5)
        ),
        *(
            Statistic(f"duplicate_{n}gram_chars", _SHARE, f"characters in repeated {n}-grams ({_GOPHER})", _repeats(n))
            for n in range(5, 11)
        ),
        Statistic(
            "c4_lines", _SHARE, f"lines that C4 keeps: 5 words, a terminal mark, no javascript or policy ({_C4})",
            lambda texts: texts.share(texts.lines, _c4_kept(texts)),
        ),
        Statistic("c4_sentences", "sentences", f"sentences in the lines that C4 keeps ({_C4})", _c4_sentences),
        Statistic("lorem_ipsum", "times", f"`lorem ipsum` ({_C4})", _times(r"(?i)lorem ipsum")),
        Statistic("curly_brackets", "times", f"curly brackets ({_C4})", _times(r"[{}]")),
        Statistic(
            "num_plain_words", "words", f"words that are more than punctuation and digits ({_OBELICS})",
            lambda texts: texts.sums(texts.plain_words),
        ),
        Statistic("char_repetition", _SHARE, f"10-grams of characters among the most frequent ({_OBELICS})", _char_repetition),
        Statistic("word_repetition", _SHARE, f"5-grams of words that come again ({_OBELICS})", _word_repetition),
        Statistic(
            "special_chars", _SHARE, f"characters that are punctuation, symbols, digits or space ({_OBELICS})", _special_chars
        ),
        Statistic(
            "stop_words", _SHARE, f"words that are English function words ({_OBELICS}; the list is our own)",
            lambda texts: texts.share(texts.plain_words, texts.plain_words.values.is_in(list(STOP_WORDS))),
        ),
        Statistic("punctuation", _SHARE, f"marks among marks and words ({_OBELICS})", _punctuation),
        Statistic(
            "paragraph_punctuation", _SHARE, f"marks among marks and words, 1 for fewer than 12 of both ({_OBELICS})",
            lambda texts: _punctuation(texts, _FEW),
        ),
        Statistic("flagged_words", _SHARE, f"words of the list of flagged words ({_OBELICS})", _listed("flagged_words")),
        Statistic("common_words", _SHARE, f"words of the list of common words ({_OBELICS})", _listed("common_words")),
    )
}  # fmt: skip


def count(
    texts: Sequence[str | None], names: Iterable[str], lists: Mapping[str, frozenset[str]] | None = None
) -> dict[str, np.ndarray]:
    """Return statistics of texts by name, each (N,) float64; NaN for a null text.

    lists  words by the statistic that counts them, `flagged_words` and `common_words`

    Raises ConfigError for a name that is none, or that needs a list which is not given.
    """
    names = tuple(names)
    for name in names:
        if name not in STATISTICS:
            raise ConfigError(f"no statistic is called `{name}`", hint=did_you_mean(name, STATISTICS))
    runs = [_count(texts[run.start : run.stop], names, lists) for run in _runs(texts)]
    return {name: np.concatenate([run[name] for run in runs]) for name in names}


def _count(
    texts: Sequence[str | None], names: Iterable[str], lists: Mapping[str, frozenset[str]] | None
) -> dict[str, np.ndarray]:
    batch = Texts(texts, lists)
    null = np.array([text is None for text in texts], bool)
    return {name: np.where(null, np.nan, STATISTICS[name].count(batch)) for name in names}


def _runs(texts: Sequence[str | None]) -> Iterator[range]:
    """Cut texts into runs that take a bounded memory; there is one at least, and one text is never cut."""
    start, held = 0, 0
    for at, text in enumerate(texts):
        size = len(text or "")
        if at > start and held + size > _RUN_CHARS:
            yield range(start, at)
            start, held = at, 0
        held += size
    yield range(start, len(texts))
