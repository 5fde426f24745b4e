"""Words, runs of words and likeness of texts in plain Python, one at a time: what the fast ones are held against."""

import random
import unicodedata
from collections.abc import Sequence

import pyarrow as pa

from mmdata.dedupe.exact import lowered

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER", "BOPOMOFO", "IDEOGRAPHIC")
ALPHABETS = ["ab c", "aé, ß'Я", "a 的一是 ", "カタ なa.", "สวัสดีกั ab", "a\u0301 1️⃣😀é", "한국 어x\n"]


def column(texts: Sequence[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.string())])


def words(text: str | None) -> list[str]:
    found: list[str] = []
    before, alone = False, False
    for letter in lowered(column([text]))[0].as_py() or "":
        kind = unicodedata.category(letter)[0]
        if kind not in "LMN" or "VARIATION SELECTOR" in unicodedata.name(letter):
            before = False
            continue
        unspaced = kind in "LM" and unicodedata.name(letter).startswith(UNSPACED)
        if not before or (kind == "L" and unspaced) or (kind != "M" and alone):
            found.append("")
        found[-1] += letter
        before, alone = True, unspaced
    return found


def runs(text: str | None, num: int) -> list[tuple[str, ...]]:
    all_of = words(text)
    return [tuple(all_of[at : at + num]) for at in range(max(len(all_of) - num + 1, min(len(all_of), 1)))]


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other) if one and other else 0.0


def prose(seed: int, num_words: int, vocabulary: int = 2000) -> list[str]:
    """Return words of a made-up language, the common ones more often."""
    chance = random.Random(seed)
    return [f"w{int(vocabulary * chance.random() ** 3)}" for _ in range(num_words)]
