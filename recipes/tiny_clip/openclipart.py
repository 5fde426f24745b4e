"""Read the Debian packages `openclipart-png` and `openclipart-svg` into one table.

The picture is the PNG; its title, keywords, description, author and licence are in the RDF of the SVG of the same
path. What this module decides: which files are usable at all, what a picture is *of* when its title only names the
collection it came from, and how a caption is worded. The CLIP recipe and the demo set share these decisions.

Unpack both packages into one folder with `dpkg-deb -x`; `root` is then `FOLDER/usr/share/openclipart`.
"""

import hashlib
import html
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast
from xml.etree import ElementTree

import polars as pl
from PIL import Image

MAX_PIXELS = 50_000_000
"""Larger pictures are skipped: three are over 179 MP, and each would take half a gigabyte to decode."""

COLLECTION_SUBJECTS = 6
"""A title that stands over this many differently named files names a collection, not a picture."""

NOISE_KEYWORDS = frozenset({"hash", "clip art", "clipart", "image", "media", "png", "svg", "unsorted", "public domain"})
"""Left by the upload form of 2004 on thousands of pictures; they say nothing about any of them."""

NEARLY_WHITE = 245
"""Grey level from which on a pixel counts as empty border."""

HEX_OR_NUMBER = re.compile(r"0x[0-9a-f]{4}|^\W*\d+\W*$")
"""Addresses of Perl hashes, and bare numbers, from the same form."""

FOLDER_NOUNS = {
    "cards": "playing card",
    "flags": "flag",
    "gradients": "gradient",
    "icons": "icon",
    "patterns": "pattern",
    "roadsigns": "road sign",
    "smilies": "smiley",
    "stars": "star",
}
"""What every picture under a folder of that name is, and what their titles mostly leave out: "Georgia", "no buses"."""

Image.MAX_IMAGE_PIXELS = None  # sizes are read from headers here; bombs are refused before any decode


class Clip(TypedDict):
    """One row of the table."""

    path: str
    title: str
    subject: str
    keywords: list[str]
    description: str
    licence: str
    author: str
    sha256: str
    width: int
    height: int


@dataclass
class Skipped:
    """Why files are not in the table, with their paths, so that a change of the packages shows."""

    paths: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        """Return "reason: count" for each reason."""
        return ", ".join(f"{reason}: {len(paths)}" for reason, paths in sorted(self.paths.items())) or "none"


def read_table(root: Path) -> tuple[pl.DataFrame, Skipped]:
    """Return one row per usable PNG under `root`/png, sorted by path, and what was left out."""
    skipped = Skipped()
    clips = []
    for path in sorted((root / "png").rglob("*.png")):
        name = path.relative_to(root / "png").as_posix()
        try:
            clips.append(_read_clip(root, name))
        except (OSError, SyntaxError, ValueError) as error:
            skipped.paths[str(error) if isinstance(error, UnusableError) else "unreadable"].append(name)
    _name_subjects(clips)
    return pl.DataFrame(clips), skipped


def rows(table: pl.DataFrame) -> list[Clip]:
    """Return the table's rows as typed dictionaries."""
    return cast("list[Clip]", table.to_dicts())


def caption(clip: Clip) -> str:
    """Word the caption of a picture: its subject, followed by keywords if it is one word, or else for one in three.

    Which third is fixed by the bytes of the picture, so that two copies of a picture have the same caption.
    """
    draw = int(clip["sha256"][:4], 16)
    has_keywords = draw % 9 in (0, 1, 2) or not is_informative(clip)
    return worded(clip, num_keywords=1 + draw % 3 if has_keywords else 0)


def worded(clip: Clip, num_keywords: int) -> str:
    """Word a caption with up to `num_keywords` of the keywords that the subject does not already contain."""
    known = clip["subject"].lower()
    news = [word for word in clip["keywords"] if word.lower() not in known][:num_keywords]
    return f"{clip['subject']}, {', '.join(news)}" if news else clip["subject"]


def is_informative(clip: Clip) -> bool:
    """Tell whether the subject has two words of letters or more."""
    return num_words(clip["subject"]) > 1


def load_rgb(path: Path, max_side: int) -> Image.Image:
    """Decode a picture, cut its empty border, shrink it to `max_side` and lay it on white.

    White is what most of this art was drawn for. Many drawings fill a corner of an A4 page, hence the cut.
    """
    return lay_on_white(load_rgba(path, max_side))


def load_rgba(path: Path, max_side: int) -> Image.Image:
    """Like `load_rgb`, with the transparency kept."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    picture = picture.crop(_drawn_box(picture))
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def lay_on_white(picture: Image.Image) -> Image.Image:
    """Composite a picture with transparency on white."""
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _drawn_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Return the box around what is not white, with a margin of a fiftieth; the whole picture if all is white."""
    small = picture.copy()
    small.thumbnail((512, 512), reducing_gap=2.0)
    grey = lay_on_white(small).convert("L").point(lambda level: 255 * (level < NEARLY_WHITE))
    box = grey.getbbox() or (0, 0, *grey.size)
    zoom, margin = picture.width / small.width, max(picture.size) // 50
    left, top, right, bottom = (round(zoom * side) for side in box)
    return (
        max(left - margin, 0),
        max(top - margin, 0),
        min(right + margin, picture.width),
        min(bottom + margin, picture.height),
    )


def stem_words(path: str, author: str) -> str:
    """Return the words of a file name without counters and without the author's name, which uploads append."""
    words = [word for word in re.split(r"[\W_]+", Path(path).stem.lower()) if word]
    names = re.findall(r"[^\W\d_]+", author.lower())
    while len(words) > 1 and (words[-1].isdigit() or _is_part_of(words[-1], names)):
        words.pop()
    return " ".join(word for word in words if not word.isdigit()) or words[0]


class UnusableError(ValueError):
    """The file is left out; the message is the reason under which it is counted."""


def _read_clip(root: Path, name: str) -> Clip:
    path = root / "png" / name
    with Image.open(path) as picture:
        width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnusableError(f"over {MAX_PIXELS // 1_000_000} MP")
    about = _read_rdf((root / "svg" / name).with_suffix(".svg"))
    return {
        "path": name,
        "title": _text(about.get("title")),
        "subject": "",
        "keywords": _clean_keywords(about.get("keywords", []), _text(about.get("author"))),
        "description": _text(about.get("description")),
        "licence": _text(about.get("licence")),
        "author": _text(about.get("author")),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "width": width,
        "height": height,
    }


def _read_rdf(path: Path) -> Mapping[str, list[str]]:
    """Return the texts in an SVG's `metadata` element; {} if the SVG is missing or is not XML up to there."""
    if not path.exists():
        return {}
    try:
        for _, node in ElementTree.iterparse(path):
            if _local(node) == "Work":
                return _read_work(node)
    except ElementTree.ParseError:
        return {}
    return {}


def _read_work(work: ElementTree.Element) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in work:
        match _local(node):
            case "title" | "description":
                found[_local(node)] = [node.text or ""]
            case "subject":
                found["keywords"] = [item.text or "" for item in node.iter() if _local(item) == "li"]
            case "creator":
                found["author"] = [item.text or "" for item in node.iter() if _local(item) == "title"]
            case "license":
                found["licence"] = [value.rstrip("/").rsplit("/", 1)[-1] for value in node.attrib.values()]
    return found


def _name_subjects(clips: Sequence[Clip]) -> None:
    """Set `subject`: the title, or the words of the file name where the title is missing or names a collection."""
    stems = {clip["path"]: stem_words(clip["path"], clip["author"]) for clip in clips}
    named = {(clip["title"].lower(), stems[clip["path"]]) for clip in clips}
    num_stems = Counter(title for title, _ in named)
    for clip in clips:
        title, stem = clip["title"], stems[clip["path"]]
        collection = num_stems[title.lower()] >= COLLECTION_SUBJECTS or re.match(r"clip ?art by\b", title, re.IGNORECASE)
        clip["subject"] = _with_noun(title if title and not collection else stem, clip["path"])


def num_words(text: str) -> int:
    """Count the words of two letters or more."""
    return len(re.findall(r"[^\W\d_]{2,}", text))


def _with_noun(subject: str, path: str) -> str:
    """Drop separators and counters ("01", "bus1") from a subject and add the noun of its folder if it is missing."""
    words = re.sub(r"\b0\d+\b", " ", re.sub(r"[\s_-]+", " ", subject))
    words = re.sub(r"(?<=[^\W\d_]{3})\d+\b", "", words)
    cleaned = re.sub(r"\s+", " ", words).strip() or subject
    nouns = [FOLDER_NOUNS[part] for part in reversed(Path(path).parts) if part in FOLDER_NOUNS]
    return f"{cleaned} {nouns[0]}" if nouns and nouns[0] not in cleaned.lower() else cleaned


def _clean_keywords(words: Sequence[str], author: str) -> list[str]:
    """Return the keywords once each, without the author's name and what the upload form left behind."""
    cleaned = [re.sub(r"[\s_]+", " ", html.unescape(word)).strip().lower() for word in words]
    noise = NOISE_KEYWORDS | {author.lower()}
    return list(dict.fromkeys(word for word in cleaned if word and word not in noise and not HEX_OR_NUMBER.search(word)))


def _is_part_of(word: str, names: Sequence[str]) -> bool:
    # Names are cut at a fixed length in file names: "jean_victor_bal_" stands for Jean Victor Balin.
    return any(name.startswith(word) for name in names)


def _local(node: ElementTree.Element) -> str:
    return str(node.tag).rsplit("}", 1)[-1]


def _text(texts: Sequence[str] | None) -> str:
    return re.sub(r"\s+", " ", html.unescape(texts[0])).strip() if texts else ""
