"""A file's header, and its pixels at the size that is needed.

Decided here: size is judged from the header before anything is decoded, and what is decoded must have that size. JPEG is
decoded by turbojpeg, whose warnings are errors: nothing that is cut or damaged is ever filled with grey. Plain WebP and PNG
are decoded by OpenCV, to the same pixels in three quarters of the time; all else, and what that refuses, by Pillow. Of several
frames the first is taken.
"""

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

import cv2
import exifread
import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from mmdata.errors import RecordError
from mmdata.media.colour import is_srgb, rgb_of, to_srgb
from mmdata.media.scale import Size, check_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
# Files that are images or documents of a kind that is not decoded here.
_OTHER = (
    b"BM", b"II*\0", b"MM\0*", b"8BPS", b"%PDF", b"%!PS", b"<svg", b"<?xml", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"\0\0\1\0",
    b"SIMPLE", b"icns", b"\xd7\xcd\xc6\x9a", b"\xc5\xd0\xd3\xc6",
)  # fmt: skip
_PNG_END = b"IEND\xaeB`\x82"
_PNG_TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_PNG_PLAIN = b"\x08\x02"  # of the header, at 24: eight bits a channel, RGB
_ORIENTATION = 0x0112
_MAX_EXIF_CHARS = 1 << 16
_TEXTS = ("exif", "xmp", "photoshop", "comment", "Comment", "Raw profile type exif", "XML:com.adobe.xmp")
_JPEG_MODES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}

Image.MAX_IMAGE_PIXELS = None  # our check of the header is stricter and does not warn
ImageFile.LOAD_TRUNCATED_IMAGES = False


class Opened(NamedTuple):
    """An image whose header has been read. `size` is that of the file; it is turned upright by `orientation`."""

    data: bytes
    image: Image.Image
    kind: str
    size: Size
    orientation: int

    @property
    def upright(self) -> Size:
        """Width and height as a person sees them."""
        return (self.size[1], self.size[0]) if self.orientation > 4 else self.size

    @property
    def half_colour(self) -> bool:
        """Whether this is a JPEG with its colours at half the resolution (4:2:0)."""
        layers = getattr(self.image, "layer", ())
        return len(layers) == 3 and [layer[1:3] for layer in layers] == [(2, 2), (1, 1), (1, 1)]

    @property
    def plain(self) -> bool:
        """Whether the file's own bytes may stand for its pixels: upright sRGB, opaque, one frame, and nothing else said in it."""
        info = self.image.info
        simple = self.orientation == 1 and self.image.mode in ("RGB", "L") and not self.image.has_transparency_data
        silent = not any(info.get(name) for name in _TEXTS) and not getattr(self.image, "text", None)
        single = getattr(self.image, "n_frames", 1) == 1 and self.kind != "mpo"
        return simple and silent and single and is_srgb(info.get("icc_profile"), self.image.mode)

    def pixels(self, least: Size, spare: float) -> np.ndarray:
        """Return (H, W, 3) uint8 sRGB pixels, not turned; a JPEG at 1/2, 1/4 or 1/8 if `spare` times `least` is left."""
        with _as_outcomes():
            if self.kind not in ("jpeg", "mpo") or self.image.mode not in _JPEG_MODES:
                if (pixels := self._by_opencv()) is not None:
                    return to_srgb(pixels, self.image.info.get("icc_profile"))
                self.image.load()
                if self.kind == "png" and _PNG_END not in self.data:
                    raise RecordError("the file ends before its last chunk", outcome="truncated_media")
                return rgb_of(self.image)
            return to_srgb(self._jpeg(least, spare), self.image.info.get("icc_profile"))

    def exif(self) -> str:
        """Return the EXIF tags as img2dataset writes them: a JSON object of texts."""
        if not self.image.info.get("exif"):
            return "{}"
        try:
            tags = exifread.process_file(io.BytesIO(self.data), details=False)
            text = json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
        except Exception:  # noqa: BLE001 - whatever a damaged block raises, the picture is good without it
            return "{}"
        return text if len(text) <= _MAX_EXIF_CHARS else "{}"

    def _by_opencv(self) -> np.ndarray | None:
        """Return the pixels of an opaque RGB image of one frame, or null where Pillow has to look: it knows what is wrong."""
        image = self.image
        known = self.kind == "webp" or (self.kind == "png" and self.data[24:26] == _PNG_PLAIN and _PNG_END in self.data)
        if not known or image.mode != "RGB" or image.has_transparency_data or getattr(image, "n_frames", 1) != 1:
            return None
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(self.data, np.uint8), how)
        return pixels if pixels is not None and pixels.shape[1::-1] == self.size else None

    def _jpeg(self, least: Size, spare: float) -> np.ndarray:
        room = min(self.size[0] / least[0], self.size[1] / least[1]) / spare
        factor = max(step for step in (1, 2, 4, 8) if step <= max(1.0, room))
        width, height = (-(-side // factor) for side in self.size)
        space = _JPEG_MODES[self.image.mode]
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            self.data, space, min_height=height, min_width=width, min_factor=factor, strict=True
        )
        if pixels.shape[:2] != (height, width):
            raise RecordError("header and frame give different sizes", outcome="decode_error")
        if space == "CMYK":
            return 255 - pixels  # Adobe's convention, which all such files follow: ink is stored inverted
        return pixels[:, :, 0] if space == "GRAY" else pixels


def open_image(data: bytes) -> Opened:
    """Read a header; raise RecordError with the outcome of what is no image, or too large a one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        known = data.lstrip().startswith(_OTHER)
        raise RecordError("not an image of a known format", outcome="unsupported_format" if known else "not_media") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"cannot be opened: {error}"[:200], outcome="decode_error") from error
    check_pixels(image.size)
    kind = str(image.format).lower()
    with _as_outcomes():
        late = kind == "png" and any(name in data for name in _PNG_TEXTS)  # its EXIF may stand behind the pixels
        if late or kind not in ("jpeg", "mpo", "webp", "png"):
            image.load()
        told = any(image.info.get(name) for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))
        orientation = image.getexif().get(_ORIENTATION, 1) if told else 1
    size = image.size
    return Opened(data, image, kind, size, orientation if orientation in range(1, 9) else 1)


@contextmanager
def _as_outcomes() -> Iterator[None]:
    """Whatever a decoder raises becomes the outcome that its row ends with."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise_outcome(error)


def raise_outcome(error: Exception) -> NoReturn:
    """Raise what a decoder raised as the outcome that its row ends with."""
    text = str(error)
    if "nsufficient memory" in text or "llocat" in text:
        raise MemoryError(text) from error
    cut = isinstance(error, EOFError) or any(word in text for word in ("truncated", "Premature end", "broken"))
    raise RecordError(text[:200], outcome="truncated_media" if cut else "decode_error") from error
