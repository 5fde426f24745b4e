"""Two sets from outside the clip art: Tux Paint's stamps with sentences, and GCompris' photos with titles.

    dpkg-deb -x tuxpaint-stamps-default_*.deb FOLDER      stamps: FOLDER/usr/share/tuxpaint/stamps
    dpkg-deb -x gcompris-qt-data_*.deb FOLDER             photos: FOLDER/usr/share/gcompris-qt/rcc

Neither is shipped: the stamps are GPL-2, the photos mostly CC BY-SA. They only measure.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from recipes.tiny_clip.openclipart import lay_on_white, load_rgb

MAX_SIDE = 256
DIRECTORY, ZLIB = 2, 1  # flags of a node in a Qt resource file


class Captioned(NamedTuple):
    """A picture with its caption."""

    picture: Image.Image
    caption: str


def read_stamps(folder: Path) -> Iterator[Captioned]:
    """Yield the stamps that are PNGs with a sentence; mirrored and coloured variants have no text of their own."""
    for path in sorted(folder.rglob("*.png")):
        note = path.with_suffix(".txt")
        if note.exists() and (sentence := note.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()):
            yield Captioned(load_rgb(path, MAX_SIDE), sentence)


def read_photos(folder: Path) -> Iterator[Captioned]:
    """Yield the photos of the "explore" activities: title and first sentence of the paragraph."""
    for bundle in sorted(folder.glob("explore_*.rcc")):
        files = dict(read_resources(bundle.read_bytes()))
        for name, content in files.items():
            if name.endswith(".qml"):
                yield from _read_dataset(content.decode("utf-8"), files)


def _read_dataset(source: str, files: dict[str, bytes]) -> Iterator[Captioned]:
    seen: set[str] = set()
    for record in re.findall(r"\{[^{}]*\}", source):
        images = re.findall(r'"image2?":\s*"[^"]*/([^"/]+\.(?:webp|jpg|jpeg))"', record)
        title, text = (re.search(rf'"{key}":\s*qsTr\("((?:[^"\\]|\\.)*)"\)', record) for key in ("title", "text"))
        if images and title and text and images[0] not in seen and images[0] in files:
            seen.add(images[0])
            with Image.open(io.BytesIO(files[images[0]])) as opened:
                photo = lay_on_white(opened.convert("RGBA"))
            yield Captioned(photo, f"{title[1]}. {re.split(r'(?<=[.!?]) ', text[1])[0]}")


def read_resources(bundle: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files in a Qt resource bundle of version 2 or 3."""
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", bundle)
    if magic != b"qres" or version not in (2, 3):
        raise ValueError(f"not a Qt resource bundle of version 2 or 3: {magic!r}, version {version}")
    waiting = [0]
    while waiting:
        # A node: offset of its name, flags, then children or (locale, offset of the data), then a time; 22 bytes.
        name_at, flags, first, second = struct.unpack_from(">IHII", bundle, tree + 22 * waiting.pop())
        if flags & DIRECTORY:
            waiting += range(second, second + first)
            continue
        (length,) = struct.unpack_from(">H", bundle, names + name_at)
        start = names + name_at + 6
        (size,) = struct.unpack_from(">I", bundle, data + second)
        content = bundle[data + second + 4 : data + second + 4 + size]
        # Qt puts the unpacked size, four bytes, before a zlib stream.
        yield (
            bundle[start : start + 2 * length].decode("utf-16-be"),
            zlib.decompress(content[4:]) if flags & ZLIB else content,
        )
