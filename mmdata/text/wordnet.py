"""Whether a text names a thing: the text part of DataComp's baselines (Gadre et al. 2023, arXiv:2304.14108).

Decided here: a word is what lies between white space, case and punctuation as given; what counts is its first sense in WordNet,
of any part of speech, and that sense is compared by its offset alone. Which sense is first is what NLTK's reader says (nouns,
verbs, adjectives, adverbs; the word itself, then its base forms by the exception list, or else by the endings of WordNet's
morphy(7), taken off again and again until a word is found: as NLTK 3.8.1 does it, which DataComp's requirements name), found in
WordNet's own files: they need no package, and no other release of one changes the answer.
"""

from functools import lru_cache
from pathlib import Path

from mmdata.errors import ConfigError
from mmdata.text.assets import asset_of

_SEEN_WORDS = 1 << 20
_WHERE = "unpack WordNet 3.0: NLTK's package `wordnet` (nltk.download), or Debian's `wordnet-base`"

# By part of speech, in the order in which senses count: endings, and what stands in their place in a base form.
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
FILES = tuple(name for part in _ENDINGS for name in (f"index.{part}", f"{part}.exc"))


class WordNet:
    """The first sense of English words; `folder` holds WordNet's index files and exception lists."""

    def __init__(self, folder: Path) -> None:
        wordnet_digests(folder)  # says what is missing
        self._senses = {part: _read_index(folder / f"index.{part}") for part in _ENDINGS}
        self._exceptions = {part: _read_exceptions(folder / f"{part}.exc") for part in _ENDINGS}

    def first_sense(self, word: str) -> int | None:
        """Return the offset of a word's first sense in the file of its part of speech; null for no word."""
        word = word.lower()
        for part, endings in _ENDINGS.items():
            senses, irregular = self._senses[part], self._exceptions[part].get(word)
            forms = [word] if irregular is None else [word, *irregular]
            while forms:
                for form in forms:
                    if form in senses:
                        return senses[form]
                forms = _shortened(forms, endings) if irregular is None else []
        return None


def _shortened(forms: list[str], endings: tuple[tuple[str, str], ...]) -> list[str]:
    """Return what is left of words when an ending is taken off, once each: one word may end in several ways."""
    found = [form[: -len(old)] + new for form in forms for old, new in endings if form.endswith(old)]
    return list(dict.fromkeys(found))


class Entities:
    """The things that count.

    wordnet  folder of WordNet's files, such as nltk_data/corpora/wordnet
    ids      file of one sense a line, a letter and its offset, such as imagenet21k_wordnet_ids.txt
    """

    def __init__(self, wordnet: Path, ids: Path) -> None:
        known, offsets = WordNet(wordnet), _read_ids(ids)
        self._counts = lru_cache(maxsize=_SEEN_WORDS)(lambda word: known.first_sense(word) in offsets)

    def named_in(self, text: str) -> bool:
        """Say whether any word of a text names one of the things."""
        return any(map(self._counts, text.split()))


def wordnet_digests(folder: Path) -> tuple[str, ...]:
    """Return the SHA-256 of the files that are read; raise ConfigError where one is missing."""
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: holds no `{name}`", hint=_WHERE)
    return tuple(asset_of(folder / name).sha256 for name in FILES)


def _read_index(path: Path) -> dict[str, int]:
    """Return the offset of the first sense of each lemma: `lemma pos senses p pointer*p senses tagged offset...`."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith(" "):
            continue
        fields = line.split()
        try:
            found[fields[0]] = int(fields[6 + int(fields[3])])
        except (ValueError, IndexError):
            raise ConfigError(f"{path}:{number}: not a line of WordNet's index", hint=_WHERE) from None
    return found


def _read_exceptions(path: Path) -> dict[str, list[str]]:
    """Return the base forms of irregular words: `word base...`."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {fields[0]: fields[1:] for fields in lines if fields}


def _read_ids(path: Path) -> frozenset[int]:
    found = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                found.add(int(line.strip()[1:]))
            except ValueError:
                raise ConfigError(f"{path}:{number}: not a sense of WordNet", hint="one a line, such as n01440764") from None
    return frozenset(found)
