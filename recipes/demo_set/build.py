"""Build the bundled demo set: 500 small pictures with captions, and the accidents of the real web with known truth.

    python -m recipes.demo_set.build --openclipart FOLDER/usr/share/openclipart --photo astronaut.png --out DATA

Written are `images/`, `rows.jsonl` (one line a row of the catalog, with what is wrong with it), `document.json`,
`SOURCES.tsv` and `LICENSES.md`. A test server answers a row's `path` from the file of that path; rows of kind
`not_found` have none, and rows of kind `slow` are answered late.
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from recipes.demo_set import encode, texts
from recipes.demo_set.choose import choose, draw, top_folder, words_of
from recipes.tiny_clip.families import MIN_CONTRAST, Look, look_at
from recipes.tiny_clip.openclipart import Clip, caption

NUM_PICTURES = 490
NUM_HOSTS = 64
SWAPPED_SHARE = 0.12
NUM_COPIES = {"exact_duplicate": 15, "resized_duplicate": 10, "reencoded_duplicate": 10}
NUM_BROKEN = {"empty_caption": 3, "null_caption": 3, "slow": 3, "html_named_jpg": 3, "truncated_jpeg": 3}
NUM_NOT_FOUND = 6
NEAR_BITS = 14  # of a 64-bit perceptual hash; searches for duplicates use 4 to 10


class Row(TypedDict):
    """One line of `rows.jsonl`; `text` is what the catalog says, `true_text` what is true where that differs."""

    path: str
    host: int
    kind: str
    text: str | None
    group: NotRequired[str]  # path of the picture this one is a copy of
    true_text: NotRequired[str]
    language: NotRequired[str]
    slow: NotRequired[bool]  # the server answers late


class Picture(NamedTuple):
    """A picture of the set with its encoded file."""

    clip: Clip
    path: str
    content: bytes


def build(root: Path, families: Path, photo: Path, out: Path) -> list[Row]:
    """Write the demo set into `out`, replacing what is there, and return its rows."""
    fit = choose(root, families, 10_000)
    listed = {translation.path for translation in texts.TRANSLATIONS} | set(texts.DOCUMENT[1::2])
    fit.sort(key=lambda clip: (clip["path"] not in listed, draw("order", clip["path"])))
    pictures = encode_all(root, fit)
    by_source = {picture.clip["path"]: picture for picture in pictures}
    free = [picture for picture in pictures if picture.clip["path"] not in listed]
    shutil.rmtree(out / "images", ignore_errors=True)  # the plan and the catalog beside it stay
    files = {picture.path: picture.content for picture in pictures}
    rows = [*translated_rows(by_source), *broken_rows(free, files), *photo_rows(photo, files)]
    broken = {row["path"] for row in rows}
    clean = [picture for picture in pictures if picture.path not in broken]
    rows += copy_rows([picture for picture in clean if picture in free], files)
    copied = {row["group"] for row in rows if "group" in row}
    rows += caption_rows(clean, keep={*copied, *(by_source[path].path for path in listed)})
    rows += [row_of(f"images/gone/{slug(clip)}.jpg", "not_found", caption(clip)) for clip in fit[-NUM_NOT_FOUND:]]
    rows.sort(key=lambda row: draw("row", row["path"]))
    write_files(out, files)
    write_texts(out, rows, pictures, by_source)
    return rows


def encode_all(root: Path, clips: Sequence[Clip]) -> list[Picture]:
    """Encode the first `NUM_PICTURES` that look unlike each other, under names that are unique in the set.

    Two flags of three stripes are near duplicates to a perceptual hash; with both of them in, the copies made below
    would not be the only ones.
    """
    pictures: list[Picture] = []
    taken: set[str] = set()
    looks: list[Look] = []
    for clip in clips:
        look = look_at(root, clip["path"])
        if look is None or look.contrast < MIN_CONTRAST or is_near(look, looks):
            continue
        looks.append(look)
        suffix, content = encode.encode_clip(root, clip)
        name = slug(clip)
        while name in taken:
            name += "-b"
        taken.add(name)
        pictures.append(Picture(clip, f"images/{name}{suffix}", content))
        if len(pictures) == NUM_PICTURES:
            return pictures
    raise ValueError(f"only {len(pictures)} pictures fit, {NUM_PICTURES} are wanted; see the rules in choose.py")


def is_near(look: Look, looks: Sequence[Look]) -> bool:
    """Tell whether one of the looks is within `NEAR_BITS`."""
    return any((look.phash ^ other.phash).bit_count() <= NEAR_BITS for other in looks)


def slug(clip: Clip) -> str:
    """Return a file name for a picture."""
    return re.sub(r"[^a-z0-9]+", "-", Path(clip["path"]).stem.lower()).strip("-")


def row_of(path: str, kind: str, text: str | None) -> Row:
    """Return a row whose host is drawn by its path."""
    return {"path": path, "host": draw("host", path) % NUM_HOSTS, "kind": kind, "text": text}


def translated_rows(by_source: dict[str, Picture]) -> Iterator[Row]:
    """Give eight pictures a caption in another language."""
    for source, language, text in texts.TRANSLATIONS:
        picture = by_source[source]
        row = row_of(picture.path, "other_language", text)
        yield {**row, "true_text": caption(picture.clip), "language": language}


def broken_rows(pictures: Sequence[Picture], files: dict[str, bytes]) -> Iterator[Row]:
    """Break captions, answers and files of pictures that appear in no other row."""
    edits: dict[str, Callable[[bytes], bytes]] = {
        "html_named_jpg": lambda _: encode.HTML_PAGE,
        "truncated_jpeg": encode.truncated,
    }
    wrong_texts = {"empty_caption": "", "null_caption": None}
    pool = iter([picture for picture in pictures if picture.path.endswith(".jpg")])
    for kind, number in NUM_BROKEN.items():
        for _ in range(number):
            picture = next(pool)
            true_text = caption(picture.clip)
            if kind in edits:
                files[picture.path] = edits[kind](picture.content)
            row = row_of(picture.path, kind, wrong_texts.get(kind, true_text))
            if kind in wrong_texts:
                row["true_text"] = true_text
            if kind == "slow":
                row["slow"] = True
            yield row
    files["images/huge.png"] = encode.huge_png()
    yield row_of("images/huge.png", "huge_png", "A black band across a white poster")


def photo_rows(photo: Path, files: dict[str, bytes]) -> Iterator[Row]:
    """Add the one photo, stored on its side."""
    files["images/astronaut.jpg"] = encode.turned_photo(photo, 512)
    yield row_of("images/astronaut.jpg", "photo_rotated", texts.PHOTO_CAPTION)


def copy_rows(pictures: Sequence[Picture], files: dict[str, bytes]) -> Iterator[Row]:
    """Put copies of pictures under another path, which has another host."""
    edits: dict[str, Callable[[bytes], bytes]] = {
        "exact_duplicate": lambda content: content,
        "resized_duplicate": encode.resized,
        "reencoded_duplicate": encode.reencoded,
    }
    pool = iter(pictures)
    for kind, number in NUM_COPIES.items():
        for _ in range(number):
            picture = next(pool)
            original = Path(picture.path)
            suffix = original.suffix if kind == "exact_duplicate" else ".jpg"
            path = f"images/mirror/{original.stem}{suffix}"
            files[path] = edits[kind](picture.content)
            row = row_of(path, kind, caption(picture.clip))
            # Between 1 and 63 hosts further on than the original's, so never on the same.
            host = row_of(picture.path, kind, None)["host"] + 1 + row["host"] % (NUM_HOSTS - 1)
            yield {**row, "host": host % NUM_HOSTS, "group": picture.path}


def caption_rows(pictures: Sequence[Picture], keep: set[str]) -> Iterator[Row]:
    """Return the rows of whole pictures, in pairs some of whose captions change places."""
    num_swapped = round(SWAPPED_SHARE * len(pictures))
    waiting = sorted((p for p in pictures if p.path not in keep), key=lambda picture: draw("swap", picture.path))
    given: dict[str, Picture] = {}
    while len(given) + 1 < num_swapped:
        one = waiting.pop(0)
        # Captions that could pass for each other would make the truth a lie.
        other = next(picture for picture in waiting if are_unrelated(one.clip, picture.clip))
        waiting.remove(other)
        given |= {one.path: other, other.path: one}
    for picture in pictures:
        true_text = caption(picture.clip)
        if picture.path in given:
            yield {**row_of(picture.path, "swapped", caption(given[picture.path].clip)), "true_text": true_text}
        else:
            yield row_of(picture.path, "clean", true_text)


def are_unrelated(one: Clip, other: Clip) -> bool:
    """Tell whether two pictures lie in different broad folders and share no word."""
    return top_folder(one) != top_folder(other) and not words_of(one) & words_of(other)


def write_files(out: Path, files: dict[str, bytes]) -> None:
    """Write the pictures and what only looks like pictures."""
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_texts(out: Path, rows: Sequence[Row], pictures: Sequence[Picture], by_source: dict[str, Picture]) -> None:
    """Write the rows, the document, the sources and the licences."""
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    (out / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    blocks = [
        {"type": "image", "path": by_source[part].path} if part in by_source else {"type": "text", "text": part}
        for part in texts.DOCUMENT
    ]
    document = {"title": texts.DOCUMENT_TITLE, "blocks": blocks}
    (out / "document.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sources = [
        (picture.path, picture.clip["title"], picture.clip["author"], picture.clip["path"], "public domain")
        for picture in pictures
    ]
    sources = sorted([*sources, ("images/astronaut.jpg", *texts.PHOTO_CREDIT)])
    table = [("file", "title", "author", "path in openclipart-png", "licence"), *sources]
    (out / "SOURCES.tsv").write_text("".join("\t".join(line) + "\n" for line in table), encoding="utf-8")
    (out / "LICENSES.md").write_text(texts.LICENSES, encoding="utf-8")


def main() -> None:
    """Build the set and print how many rows there are of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openclipart", type=Path, required=True, help="folder with png/ and svg/")
    parser.add_argument("--families", type=Path, default=Path(__file__).parents[1] / "tiny_clip" / "families.tsv")
    parser.add_argument("--photo", type=Path, required=True, help="skimage/data/astronaut.png of scikit-image")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    rows = build(flags.openclipart, flags.families, flags.photo, flags.out)
    for kind in sorted({row["kind"] for row in rows}):
        print(f"{kind}: {sum(row['kind'] == kind for row in rows)}")


if __name__ == "__main__":
    main()
