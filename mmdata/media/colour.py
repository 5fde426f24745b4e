"""Whatever a file holds, as sRGB in 8 bits: profiles, CMYK, 16 bits, palettes, transparency.

Decided here: a profile that fits the pixels is obeyed unless it says sRGB; one that does not is ignored. CMYK without a
profile is taken as ink on white. 16-bit grey is scaled, not clipped. Transparency is composited on white, after the colours
are converted.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from mmdata.errors import RecordError

_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def rgb_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of a loaded image, (H, W, 3) uint8 sRGB, in the orientation of the file."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64) / 257.0
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), profile)
    if image.mode not in _SPACES:
        image = image.convert("RGB")
    return to_srgb(np.asarray(image), profile)


def to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Return (H, W, 3) uint8 sRGB of (H, W), (H, W, 3) or (H, W, 4) grey, RGB or CMYK pixels in the space of `profile`."""
    mode = "L" if pixels.ndim == 2 else {3: "RGB", 4: "CMYK"}[pixels.shape[2]]
    transform = _transform(bytes(profile), mode) if profile else None
    if mode == "RGB" and transform is None:
        return pixels
    image = Image.fromarray(pixels, mode)
    return np.asarray(image.convert("RGB") if transform is None else ImageCms.applyTransform(image, transform))


def is_srgb(profile: bytes | None, mode: str) -> bool:
    """Tell whether pixels of `mode` with this profile are left as they are."""
    return not profile or _transform(bytes(profile), mode) is None


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = str(given.profile.profile_description or "")
        if given.profile.xcolor_space != _SPACES[mode] or (mode == "RGB" and "srgb" in description.lower()):
            return None
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None  # a broken profile says nothing


def _on_white(rgba: Image.Image, profile: bytes | None) -> np.ndarray:
    if rgba.mode != "RGBA":
        raise RecordError(f"transparency in mode {rgba.mode}", outcome="decode_error")
    if not is_srgb(profile, "RGB"):
        coloured = Image.fromarray(to_srgb(np.asarray(rgba.convert("RGB")), profile))
        coloured.putalpha(rgba.getchannel("A"))
        rgba = coloured
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
