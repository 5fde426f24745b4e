"""Decode, resize, encode: pure functions from bytes to pixels and back.

Decided here: pixels are upright sRGB in 8 bits. An image is made small before it is turned, and turned before it is cropped
or padded. JPEG is written at full colour resolution (4:4:4): a scaled decode has the colours at full resolution anyway, and
halving them again would cost more fidelity than all scaling does. What is not resampled keeps the resolution it had.
OpenCV writes it, since turbojpeg's own interface uses a coarser transform below quality 96.
"""

import io
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from mmdata.media.faces import Boxes, blur
from mmdata.media.opening import FORMATS, Opened, open_image, raise_outcome
from mmdata.media.scale import Target, check_asked, framed, resample, target

if TYPE_CHECKING:
    from mmdata.media.resize import Resize

__all__ = ["FORMATS", "Transcoded", "decode", "transcode"]

# How many times the asked size a scaled JPEG decode must leave (`benchmarks/decode.py` gives the figures).
_SPARE = {"exact": 1.5, "fast": 1.0}
_SUFFIXES = {"jpeg": "jpg", "mpo": "jpg"}
_DEFAULT_QUALITY = {"jpg": 95, "webp": 95, "png": 6}
_CHECK_ONLY = 1 / 8
_JPEG_MAGIC = b"\xff\xd8"
_WHOLE_COLOUR, _HALF_COLOUR = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420


class Transcoded(NamedTuple):
    """A stored image: its bytes, its upright size, and what the original was; `ours` if the bytes were encoded by us."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    format: str
    exif: str
    ours: bool = True


def transcode(data: bytes, resize: "Resize", boxes: Boxes = ()) -> Transcoded:
    """Decode untrusted bytes, resize, and encode; raise RecordError with the row's outcome.

    boxes   what to blur, [left, top, right, bottom] each in 0..1, relative to the file's own orientation
    """
    opened = open_image(data)
    check_asked(opened.upright, resize)
    made = target(opened.upright, resize)
    if resize.disable_all_reencoding:
        opened.pixels((1, 1), _CHECK_ONLY)
        return _kept(opened)
    pixels = _resized(opened, made, resize)
    if _may_keep(opened, made, resize) and not boxes:
        return _kept(opened)
    upright = np.ascontiguousarray(framed(_turned(blur(pixels, boxes), opened.orientation), made.frame))
    height, width = upright.shape[:2]
    colour = _HALF_COLOUR if opened.half_colour and not made.changes else _WHOLE_COLOUR
    return Transcoded(_encode(upright, resize, colour), width, height, *opened.upright, opened.kind, opened.exif())


def decode(data: bytes, *, trusted: bool = False) -> np.ndarray:
    """Return upright RGB pixels, (H, W, 3) uint8; raise RecordError with the row's outcome.

    trusted  the bytes were encoded by us: upright sRGB of an allowed size, so that nothing needs to be looked up first
    """
    if trusted and data.startswith(_JPEG_MAGIC):
        try:
            made: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
        except (OSError, ValueError) as error:
            raise_outcome(error)
        return made
    opened = open_image(data)
    return np.ascontiguousarray(_turned(opened.pixels(opened.size, 1.0), opened.orientation))


def _resized(opened: Opened, made: Target, resize: "Resize") -> np.ndarray:
    size = (made.size[1], made.size[0]) if opened.orientation > 4 else made.size
    pixels = opened.pixels(size, _SPARE[resize.decode])
    return resample(pixels, size, made.filter) if made.changes else pixels


def _may_keep(opened: Opened, made: Target, resize: "Resize") -> bool:
    same = _SUFFIXES.get(opened.kind, opened.kind) == resize.encode_format
    return resize.skip_reencode and same and not made.changes and opened.plain


def _kept(opened: Opened) -> Transcoded:
    return Transcoded(opened.data, *opened.upright, *opened.upright, opened.kind, opened.exif(), ours=False)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _encode(pixels: np.ndarray, resize: "Resize", colour: int) -> bytes:
    kind, given = resize.encode_format, resize.encode_quality
    quality = _DEFAULT_QUALITY[kind] if given is None else given
    if kind == "jpg":
        how = [cv2.IMWRITE_JPEG_QUALITY, max(1, quality), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, colour]
        return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), how)[1].tobytes()
    buffer = io.BytesIO()
    options = {"compress_level": quality} if kind == "png" else {"quality": quality}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
