"""Decode, resize, encode: pure functions from bytes to pixels and back.

Decided here: pixels are upright RGB in 8 bits, with alpha composited on white and 16-bit grey scaled, not clipped. Size is
judged from the header before anything is decoded. The resize modes and filters have img2dataset's names and meaning.
"""

import io
import json
import warnings
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from mmdata.config import Model
from mmdata.errors import RecordError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
# Files that are images or documents of a kind that is not decoded here.
_OTHER = (
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"8BPS",
    b"%PDF",
    b"%!PS",
    b"<svg",
    b"\0\0\0\x0cjP",
    b"\0\0\1\0",
    b"SIMPLE",
    b"icns",
)
_FILTERS = {
    "nearest": Image.Resampling.NEAREST, "area": Image.Resampling.BOX, "linear": Image.Resampling.BILINEAR,
    "cubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip
Interpolation = Literal["nearest", "area", "linear", "cubic", "lanczos"]

Image.MAX_IMAGE_PIXELS = None  # the header check below is stricter and does not warn


class Resize(Model):
    """How stored images are made. The side in question is the shorter one, or the longer for `border` and `..._largest`."""

    image_size: Annotated[int, Field(ge=8, le=8192)]
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio_largest"
    resize_only_if_bigger: bool = True
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: Annotated[int, Field(ge=1, le=100)] = 95


class Transcoded(NamedTuple):
    """A stored image: its bytes, its upright size, and what the original was."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    format: str
    exif: str


def transcode(data: bytes, resize: Resize) -> Transcoded:
    """Decode untrusted bytes, resize, and encode; raise RecordError with the row's outcome."""
    image, kind, exif = _open(data)
    size = image.size
    image = _resized(image, resize)
    buffer = io.BytesIO()
    options = {"jpg": ("JPEG", "quality"), "png": ("PNG", None), "webp": ("WEBP", "quality")}
    name, quality = options[resize.encode_format]
    image.save(buffer, name, **({quality: resize.encode_quality} if quality else {}))
    width, height = image.size
    return Transcoded(buffer.getvalue(), width, height, size[0], size[1], kind, exif)


def decode(data: bytes) -> np.ndarray:
    """Return upright RGB pixels, (H, W, 3) uint8; raise RecordError with the row's outcome."""
    return np.asarray(_open(data)[0])


def _open(data: bytes) -> tuple[Image.Image, str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        known = data.lstrip().startswith(_OTHER)
        raise RecordError("not an image of a known format", outcome="unsupported_format" if known else "not_media") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"cannot be opened: {error}", outcome="decode_error") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise RecordError(f"{width} x {height} pixels are too many", outcome="too_many_pixels")
    kind = str(image.format).lower()
    try:
        image.load()
        exif = json.dumps({str(tag): str(value) for tag, value in image.getexif().items()})
        return _rgb(ImageOps.exif_transpose(image)), kind, exif
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        raise RecordError(f"{error}"[:200], outcome="truncated_media" if cut else "decode_error") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _resized(image: Image.Image, resize: Resize) -> Image.Image:
    mode, target = resize.resize_mode, resize.image_size
    by_largest = mode in ("border", "keep_ratio_largest")
    side = max(image.size) if by_largest else min(image.size)
    if mode == "no" or side == target or (side < target and resize.resize_only_if_bigger):
        return image if side != target or mode not in ("border", "center_crop") else _framed(image, mode, target)
    scale = target / side
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    chosen = resize.upscale_interpolation if scale > 1 else resize.downscale_interpolation
    return _framed(image.resize(size, _FILTERS[chosen]), mode, target)


def _framed(image: Image.Image, mode: str, target: int) -> Image.Image:
    left, top = (image.width - target) // 2, (image.height - target) // 2
    if mode == "center_crop":
        return image.crop((left, top, left + target, top + target))
    if mode == "border":
        white = Image.new("RGB", (target, target), (255, 255, 255))
        white.paste(image, (-left, -top))
        return white
    return image
