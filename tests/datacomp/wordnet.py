"""A small dictionary in WordNet's own files, with words for every way in which a caption can name a class, or not.

Offsets are places in a file of their own part of speech. All four files open with the same bytes, so the first synset of
each has the same offset: `dog` (noun), `breathe` (verb), `blue` (adjective), `quickly` (adverb).
"""

from dataclasses import dataclass
from pathlib import Path

HEADER = "".join(f"  {line} This dictionary was made for tests; its format is that of WordNet 3.0.  \n" for line in range(1, 30))
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
EXCEPTIONS = {"noun": ["mice mouse", "men man"], "verb": ["ran run"], "adj": [], "adv": []}


@dataclass(frozen=True)
class Synset:
    """A meaning: part of speech, the words for it, and whether ImageNet-21k has it."""

    pos: str
    words: tuple[str, ...]
    imagenet: bool = False


# A word's meanings are ranked in the order of this list, nouns before verbs before adjectives before adverbs.
SYNSETS = (
    Synset("n", ("dog", "domestic_dog"), imagenet=True),
    Synset("n", ("bank", "depository")),
    Synset("n", ("bank", "slope"), imagenet=True),  # the second meaning of `bank`: not looked at
    Synset("n", ("mouse",), imagenet=True),
    Synset("n", ("man",)),
    Synset("n", ("box",), imagenet=True),
    Synset("n", ("hot_dog",), imagenet=True),
    Synset("n", ("run",)),
    Synset("n", ("garden",)),
    Synset("n", ("car", "automobile"), imagenet=True),
    Synset("n", ("glass",), imagenet=True),
    Synset("n", ("glasses", "spectacles")),
    Synset("v", ("breathe",)),  # its offset is that of `dog`
    Synset("v", ("run",)),
    Synset("v", ("car",)),
    Synset("a", ("blue",)),  # and so is this
    Synset("r", ("quickly",)),  # and this
)


def write_wordnet(folder: Path) -> Path:
    """Write the dictionary and return its folder."""
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    (folder / "cntlist.rev").write_text("")
    (folder / "index.sense").write_text("")
    for pos, name in FILES.items():
        data, index = _files_of(pos)
        (folder / f"data.{name}").write_text(data)
        (folder / f"index.{name}").write_text(index)
        (folder / f"{name}.exc").write_text("".join(f"{line}\n" for line in EXCEPTIONS[name]))
    return folder


def write_ids(path: Path) -> Path:
    """Write ImageNet-21k's list: all its synsets, as if all were nouns."""
    offsets = (offset for synset, offset in offsets_of("n") if synset.imagenet)
    path.write_text("".join(f"n{offset:08d}\n" for offset in offsets))
    return path


def offsets_of(pos: str) -> list[tuple[Synset, int]]:
    """Return the synsets of a part of speech, each with its place in the file."""
    found, place = [], len(HEADER)
    for synset in SYNSETS:
        if synset.pos == pos:
            found.append((synset, place))
            place += len(_data_line(synset, place))
    return found


def _files_of(pos: str) -> tuple[str, str]:
    """Return the data file and the index of a part of speech."""
    synsets = offsets_of(pos)
    places: dict[str, list[int]] = {}
    for synset, place in synsets:
        for word in synset.words:
            places.setdefault(word, []).append(place)
    index = [
        f"{word} {pos} {len(found)} 0 {len(found)} 0 {' '.join(f'{place:08d}' for place in found)}  \n"
        for word, found in sorted(places.items())
    ]
    return HEADER + "".join(_data_line(synset, place) for synset, place in synsets), HEADER + "".join(index)


def _data_line(synset: Synset, place: int) -> str:
    words = " ".join(f"{word} 0" for word in synset.words)
    frames = " 01 + 02 00" if synset.pos == "v" else ""
    return f"{place:08d} 00 {synset.pos} {len(synset.words):02x} {words} 000{frames} | made for tests  \n"
