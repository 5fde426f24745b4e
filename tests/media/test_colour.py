"""Colours and directions come out as a person sees them, whatever the file holds."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from mmdata.media import Resize, decode, transcode
from tests.conftest import encode
from tests.media.pictures import photo, turned
from tests.media.profiles import GAMMA, P3, SRGB, cmyk_profile, distance, rgb_profile


@pytest.mark.fault("D18")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["no", "keep_ratio", "center_crop", "border"])
def test_every_orientation_is_upright_in_every_mode(orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = photo(96, 64)
    resize = Resize.model_validate({"image_size": 32, "resize_mode": mode, "encode_format": "png"})
    made = transcode(encode(turned(picture, orientation), exif=exif), resize)
    straight = transcode(encode(picture), resize)
    assert (made.original_width, made.original_height) == (96, 64)
    assert (made.width, made.height) == (straight.width, straight.height)
    assert np.abs(decode(made.data).astype(int) - decode(straight.data)).max() <= 3  # filters round by direction


@pytest.mark.fault("D18")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_that_is_decoded_at_half_size_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = photo(192, 128)
    resize = Resize(image_size=48, encode_format="png")
    made = transcode(encode(turned(picture, orientation), "JPEG", exif=exif, quality=95, subsampling=0), resize)
    straight = transcode(encode(picture, "JPEG", quality=95, subsampling=0), resize)
    assert (made.width, made.height) == (straight.width, straight.height) == (48, 32)
    assert np.abs(decode(made.data).astype(int) - decode(straight.data)).mean() < 2


@pytest.mark.fault("D19")
@pytest.mark.parametrize("profile", [None, cmyk_profile()])
@pytest.mark.parametrize("transform", ["cmyk", "ycck"])
def test_cmyk_is_what_a_reference_conversion_makes_of_it(profile: bytes | None, transform: str) -> None:
    inks = Image.fromarray(np.concatenate([photo(200, 120), photo(200, 120, seed=1)[..., :1] // 4], 2), "CMYK")
    if profile is None:
        part = 1 - np.asarray(inks) / 255
        reference = np.rint(part[..., :3] * part[..., 3:] * 255).astype(np.uint8)
    else:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        made = ImageCms.profileToProfile(inks, given, ImageCms.createProfile("sRGB"), outputMode="RGB", renderingIntent=1)
        reference = np.asarray(made)
    buffer = io.BytesIO()
    inks.save(buffer, "JPEG", quality=97, subsampling=0, icc_profile=profile)  # Pillow writes Adobe's inverted CMYK
    data = buffer.getvalue()
    if transform == "ycck":
        data = _as_ycck(inks, profile)
    assert distance(decode(data), reference) <= 3
    small = transcode(data, Resize(image_size=50, encode_format="png"))
    expected = np.asarray(Image.fromarray(reference).resize((50, 30), Image.Resampling.BOX))
    assert distance(decode(small.data), expected) <= 3


def _as_ycck(inks: Image.Image, profile: bytes | None) -> bytes:
    """Write a JPEG of four components: YCbCr of what the inverted inks leave, and inverted black, as Adobe does."""
    given = np.asarray(inks)
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(given[..., :3])).convert("YCbCr"))
    four = np.concatenate([luma, 255 - given[..., 3:]], 2)
    buffer = io.BytesIO()
    Image.fromarray(255 - four, "CMYK").save(buffer, "JPEG", quality=97, subsampling=0, icc_profile=profile)
    data = bytearray(buffer.getvalue())
    data[data.index(b"Adobe\0") + 11] = 2
    return bytes(data)


@pytest.mark.fault("D20")
def test_16_bit_ramps_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 512).astype(np.uint16)
    exact = ramp[None] / 257
    grey = decode(encode(ramp[None].repeat(4, 0)))
    assert np.abs(grey[..., 0] - exact).max() <= 1
    colour = np.stack([ramp, ramp[::-1], ramp // 2], -1)[None].repeat(4, 0)
    assert np.abs(decode(_png_of_16_bits(colour)) - colour / 257).max() <= 1
    alpha = np.concatenate([colour, np.full_like(colour[..., :1], 65535)], -1)
    assert np.abs(decode(_png_of_16_bits(alpha)) - colour / 257).max() <= 1


def _png_of_16_bits(pixels: np.ndarray) -> bytes:
    import cv2

    order = [2, 1, 0, 3][: pixels.shape[2]]
    return bytes(cv2.imencode(".png", pixels[..., order])[1].tobytes())


@pytest.mark.fault("D21")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "16 bits", "one colour"])
def test_transparency_lies_on_white(mode: str) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = (200, 200, 200, 255)
    rgba[8:, :8] = (100, 100, 100, 0)
    rgba[8:, 8:] = (51, 51, 51, 128)
    image = Image.fromarray(rgba)
    options: dict[str, object] = {}
    if mode == "16 bits":
        data = _png_of_16_bits(rgba.astype(np.uint16) * 257)
    else:
        if mode == "P":
            image = Image.fromarray((np.asarray(image)[..., 3] % 255 // 64).astype(np.uint8), "P")
            image.putpalette([200] * 3 + [9] * 3 + [51] * 3)
            options = {"transparency": bytes([255, 255, 128])}
            rgba[8:, :8, :] = rgba[0, 0]
        elif mode == "one colour":
            rgba[8:, 8:] = rgba[8:, :8]
            image, options = Image.fromarray(np.ascontiguousarray(rgba[..., :3])), {"transparency": (100, 100, 100)}
        else:
            image = image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        data = buffer.getvalue()
    part = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * part + 255 * (1 - part))
    assert np.abs(decode(data) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_wide_gamut_is_brought_into_srgb(kind: str) -> None:
    picture = photo(160, 96) // 2 + 60  # inside both gamuts
    linear = (picture / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ P3).T
    part = np.clip(linear, 0, 1)
    srgb = np.where(part > 0.0031308, 1.055 * part ** (1 / 2.4) - 0.055, 12.92 * part)
    expected = np.rint(srgb * 255).astype(np.uint8)
    kinds: dict[str, dict[str, object]] = {"JPEG": {"quality": 97, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}
    data = encode(picture, kind, icc_profile=rgb_profile(), **kinds[kind])
    assert distance(decode(data), expected) <= 2
    assert distance(decode(data), picture) > 3  # it does matter


def test_a_profile_that_is_broken_or_does_not_fit_is_ignored() -> None:
    picture = photo(64, 48)
    for profile in (b"junk", rgb_profile()[:200], cmyk_profile()):
        assert np.array_equal(decode(encode(picture, icc_profile=profile)), picture)


def test_srgb_by_its_profile_is_left_as_it_is() -> None:
    picture = photo(64, 48)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode(encode(picture, icc_profile=profile)), picture)


@pytest.mark.fault("D13")
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "MPO"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ((250, 10, 10), (10, 10, 250), (10, 250, 10))]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    pixels = decode(buffer.getvalue())
    assert pixels.shape == (24, 32, 3)
    assert np.abs(pixels.astype(int) - (250, 10, 10)).max() <= 8
