"""Choose the demo set's pictures: public domain, of families CLIP never saw, one a family, with an English title.

A picture is ranked by a hash of its path, so that the choice changes little when a rule here does.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import polars as pl
from timm.data.imagenet_info import ImageNetInfo

from recipes.tiny_clip.openclipart import Clip, caption, num_words, read_table, rows

SEED = "demo-1"

MIN_SIDE, MAX_ASPECT = 160, 3.0
"""Of the originals: smaller ones would be blown up, longer ones are dividers and page borders."""

FOLDER_LIMITS = {"computer": 70, "signs_and_symbols": 135}
"""Half of the art is icons and signs; with these limits food, animals and tools have siblings in view."""

LEFT_OUT_FOLDERS = ("tools/weapons", "logos", "unsorted", "special/gradients", "computer/icons/people")

FOREIGN_AUTHORS = ("rollandin", "guillou", "corwin", "loic", "jean-victor", "jean victor", "architetto")
"""Their titles are Italian and French. The demo's captions in other languages are planted, so that truth is known."""

FOREIGN_WORDS = frozenset(re.findall(r"\w+", "con da de del des di du et il la le les per una y"))

UNWANTED_WORDS = frozenset(
    re.findall(
        r"\w+",
        "alcohol atomic beer blood bomb bullet cannabis chav cigarette "
        "communist copileftcommies dead drug girls grenade "
        "gun guy ken knife nazi nude nunchaku pantyhose pistol rifle sexy skull smoking soldier soviet sunwheel sword "
        "tank underwear war weapon "
        "beckham coltrane jazz knievel leisler luther "  # portraits of real people
        "emule gundam lovely mascot porcinet "  # trademarks, and drawings that look like other people's characters
        "linked yoga",  # drawings whose linked image is missing
    )
)
"""Nothing in a demo should distract from what it shows."""


EMPTY_WORDS = frozenset({"and", "card", "flag", "icon", "music", "open", "people", "shape", "sign", "simple", "the"})
"""Nouns, or words in names of nouns, that do not say what a picture shows."""


NUM_SYNSETS = 21_841


def draw(*parts: str) -> int:
    """Return a number that depends on the parts and on `SEED` alone."""
    return int.from_bytes(hashlib.sha256(":".join((SEED, *parts)).encode()).digest()[:8])


def choose(root: Path, families: Path, num_pictures: int) -> list[Clip]:
    """Return the chosen pictures, sorted by path."""
    listed = pl.read_csv(families, separator="\t").filter(pl.col("split") == "rest")
    table = read_table(root)[0].join(listed, on="path").sort("path")
    fit = [clip for clip in rows(table) if is_fit(clip)]
    family_of = dict(zip(table["path"], table["family"], strict=True))
    fit = _first_of_each(fit, lambda clip: family_of[clip["path"]])
    fit = _first_of_each(fit, lambda clip: clip["subject"].lower())
    num_taken: Counter[str] = Counter()
    chosen: list[Clip] = []
    for clip in sorted(fit, key=lambda clip: draw("choose", clip["path"])):
        folder = top_folder(clip)
        if len(chosen) < num_pictures and num_taken[folder] < FOLDER_LIMITS.get(folder, num_pictures):
            num_taken[folder] += 1
            chosen.append(clip)
    return sorted(chosen, key=lambda clip: clip["path"])


def is_fit(clip: Clip) -> bool:
    """Tell whether a picture may be in the demo set, by its record alone."""
    sides = sorted((clip["width"], clip["height"]))
    return (
        clip["licence"].lower() == "publicdomain"
        and num_words(caption(clip)) > 1
        and sides[1] >= MIN_SIDE
        and sides[1] <= MAX_ASPECT * sides[0]
        and not any(name in clip["author"].lower() for name in FOREIGN_AUTHORS)
        and not clip["path"].startswith(LEFT_OUT_FOLDERS)
        and not words_of(clip) & UNWANTED_WORDS
        and ("flags/" in clip["path"] or has_noun(caption(clip)))
        and ("flags/" in clip["path"] or not words_of(clip) & FOREIGN_WORDS)
    )


def has_noun(text: str) -> bool:
    """Tell whether a text holds a noun of WordNet: "klipper" and "rnd rectg" describe nothing to a stranger."""
    words = set(re.findall(r"[a-z]{3,}", text.lower()))
    return bool(((words | {word.removesuffix("s") for word in words}) - EMPTY_WORDS) & nouns())


@cache
def nouns() -> set[str]:
    """Return the words in the names of ImageNet's 21,841 classes, which are WordNet's nouns for things one can see."""
    info = ImageNetInfo("imagenet-22k")
    names = (info.index_to_description(index) for index in range(NUM_SYNSETS))
    return {word for name in names for word in re.findall(r"[a-z]{3,}", name.lower())}


def words_of(clip: Clip) -> set[str]:
    """Return the lower-case words of subject and keywords."""
    return set(re.findall(r"\w+", " ".join([clip["subject"], *clip["keywords"]]).lower()))


def top_folder(clip: Clip) -> str:
    """Return the first folder of the path, which is the picture's broad subject."""
    return clip["path"].split("/")[0]


def _first_of_each(clips: list[Clip], key: Callable[[Clip], str]) -> list[Clip]:
    return list({key(clip): clip for clip in reversed(clips)}.values())[::-1]
