"""Encode the demo's files: small JPEG, PNG and WebP pictures, edited copies, and files that break.

Everything here is a pure function of its arguments, so the same packages give the same bytes again. (Another version
of Pillow may encode differently; the committed files are what the tests read.)
"""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from recipes.demo_set.choose import draw
from recipes.tiny_clip.openclipart import Clip, lay_on_white, load_rgba

JPEG_QUALITY, WEBP_QUALITY = 88, 80
PERCENT_LARGE, PERCENT_PNG, PERCENT_WEBP = 4, 17, 5
SMALL_SIDES, LARGE_SIDES = (192, 320), (512, 800)  # of the longer side, in pixels
EXIF_ORIENTATION, TURNED_RIGHT = 0x0112, 6
HUGE_SIDE, BAND_SIDE = 20_000, 1_000

HTML_PAGE = b"""<!DOCTYPE html>
<html><head><title>Please log in</title></head>
<body><h1>403</h1><p>Hotlinking of images is not allowed.</p></body></html>
"""


def encode_clip(root: Path, clip: Clip) -> tuple[str, bytes]:
    """Return the file suffix and the bytes of a picture: most JPEG, some PNG with transparency, a few WebP or large.

    Which one is drawn by the path, so that adding a picture leaves the others as they are.
    """
    chance, size = draw("format", clip["path"]) % 100, draw("size", clip["path"])
    is_large = chance < PERCENT_LARGE and max(clip["width"], clip["height"]) >= LARGE_SIDES[0]
    low, high = LARGE_SIDES if is_large else SMALL_SIDES
    picture = load_rgba(root / "png" / clip["path"], low + size % (high - low + 1))
    is_cut_out = picture.getchannel("A").getextrema()[0] == 0
    if PERCENT_LARGE <= chance < PERCENT_LARGE + PERCENT_PNG and is_cut_out:
        return ".png", png_bytes(picture)
    if chance >= 100 - PERCENT_WEBP:
        return ".webp", webp_bytes(lay_on_white(picture))
    return ".jpg", jpeg_bytes(lay_on_white(picture))


def jpeg_bytes(picture: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """Encode as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def png_bytes(picture: Image.Image) -> bytes:
    """Encode as PNG, with the transparency the picture has."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def webp_bytes(picture: Image.Image) -> bytes:
    """Encode as lossy WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=WEBP_QUALITY, method=6)
    return buffer.getvalue()


def resized(content: bytes) -> bytes:
    """Return a JPEG of the picture at 70 % of its size."""
    picture = _decode(content)
    sides = (round(0.7 * picture.width), round(0.7 * picture.height))
    return jpeg_bytes(picture.resize(sides, Image.Resampling.BICUBIC))


def reencoded(content: bytes) -> bytes:
    """Return the picture as a poor JPEG, as content networks serve it."""
    return jpeg_bytes(_decode(content), quality=45)


def turned_photo(path: Path, side: int) -> bytes:
    """Return a photo whose pixels lie on their side, and whose EXIF orientation says how to stand them up."""
    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED_RIGHT
    buffer = io.BytesIO()
    # Orientation 6 asks the viewer for a quarter turn clockwise, so a quarter turn the other way is stored.
    photo.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True, exif=exif)
    return buffer.getvalue()


def truncated(content: bytes) -> bytes:
    """Return the first two fifths of a file, as a broken connection leaves it."""
    return content[: 2 * len(content) // 5]


def huge_png() -> bytes:
    """Return a valid one-bit PNG of 400 megapixels in 50 kB: small on the wire, 400 MB or more when decoded."""
    header = struct.pack(">IIBBBBB", HUGE_SIDE, HUGE_SIDE, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for row in _huge_rows()) + packer.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _huge_rows() -> Iterator[bytes]:
    # A filter byte, then pixels of one bit: white with a black band in the middle.
    white, black = b"\0" + b"\xff" * (HUGE_SIDE // 8), b"\0" * (1 + HUGE_SIDE // 8)
    for row in range(HUGE_SIDE):
        yield black if abs(row - HUGE_SIDE // 2) < BAND_SIDE // 2 else white


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _decode(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as opened:
        return lay_on_white(opened.convert("RGBA"))
