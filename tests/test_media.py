"""Pixels are upright RGB, and bad bytes cost only themselves."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmdata.errors import RecordError
from mmdata.media import Jail, Resize, decode, transcode
from mmdata.media.image import FORMATS
from tests.conftest import encode


def outcome(data: bytes) -> str:
    with pytest.raises(RecordError) as caught:
        decode(data)
    return caught.value.outcome


def bomb(side: int) -> bytes:
    """A PNG that says it is side x side, in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(gradient: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: gradient, 2: gradient[:, ::-1], 3: gradient[::-1, ::-1], 4: gradient[::-1], 5: gradient.transpose(1, 0, 2),
        6: np.rot90(gradient, 1), 7: gradient[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(gradient, -1),
    }[orientation]  # fmt: skip
    assert np.array_equal(decode(encode(np.ascontiguousarray(turned), exif=exif)), gradient)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    pixels = decode(encode(ramp))
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_alpha_lies_on_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (255, 0, 0, 255)
    rgba[4:] = (0, 0, 0, 128)
    pixels = decode(encode(rgba))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert np.abs(pixels[7, 7].astype(int) - 127).max() <= 1


def test_a_palette_with_transparency_lies_on_white() -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30] * 256)
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0)
    assert decode(buffer.getvalue())[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_media"),
        (b"\0" * 4096, "not_media"),
        (b"<html><body>soft 404</body></html>", "not_media"),
        (b"%PDF-1.4 ...", "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (bomb(20_000), "too_many_pixels"),
    ],
)  # fmt: skip
def test_what_is_no_image(data: bytes, expected: str) -> None:
    assert outcome(data) == expected


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_never_filled(gradient: np.ndarray, share: float) -> None:
    data = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "JPEG")
    assert outcome(data[: int(len(data) * share)]) in ("truncated_media", "not_media", "decode_error")


def test_the_first_frame_of_an_animation() -> None:
    import io

    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (255, 0)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode(buffer.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "size", "options"),
    [
        ("no", (90, 60), {}),
        ("keep_ratio", (48, 32), {}),
        ("keep_ratio_largest", (32, 21), {}),
        ("center_crop", (32, 32), {}),
        ("border", (32, 32), {}),
        ("keep_ratio", (90, 60), {"image_size": 200}),  # only if bigger
        ("keep_ratio", (300, 200), {"image_size": 200, "resize_only_if_bigger": False}),
        ("border", (90, 60), {"image_size": 200}),  # not padded when smaller
        ("center_crop", (90, 60), {"image_size": 200}),
    ],
)
def test_resize_modes(gradient: np.ndarray, mode: str, size: tuple[int, int], options: dict[str, object]) -> None:
    resize = Resize.model_validate({"image_size": 32, "resize_mode": mode, **options})
    made = transcode(encode(gradient), resize)
    assert (made.width, made.height) == size
    assert (made.original_width, made.original_height, made.format) == (90, 60, "png")
    assert decode(made.data).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_jail_gives_what_decoding_gives(gradient: np.ndarray, kind: str) -> None:
    data = encode(gradient, kind)
    resize = Resize(image_size=32)
    with Jail() as jail:
        assert np.array_equal(jail.decode(data), decode(data))
        assert jail.transcode(data, resize) == transcode(data, resize)


def test_one_bad_image_costs_only_itself(gradient: np.ndarray) -> None:
    good = encode(gradient)
    with Jail() as jail:
        for bad, expected in ((b"junk", "not_media"), (bomb(20_000), "too_many_pixels")):
            with pytest.raises(RecordError) as caught:
                jail.decode(bad)
            assert caught.value.outcome == expected
        assert jail.decode(good).shape == (60, 90, 3)


def test_the_jail_ends_a_decode_that_needs_too_much_memory() -> None:
    big = encode(np.zeros((6000, 8000, 3), np.uint8), compress_level=1)  # 144 MB of pixels
    with Jail(memory_mib=64) as jail:
        with pytest.raises(RecordError) as caught:
            jail.decode(big)
        assert caught.value.outcome in ("decoder_oom", "decoder_crashed", "decode_error")
        assert jail.decode(encode(np.zeros((4, 4, 3), np.uint8))).shape == (4, 4, 3)


def test_the_jail_ends_a_decode_that_takes_too_long(gradient: np.ndarray) -> None:
    slow = encode(np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype=np.uint8), compress_level=1)
    with Jail(deadline_s=0.01) as jail, pytest.raises(RecordError, match="not decoded within") as caught:
        jail.decode(slow)
    assert caught.value.outcome == "decoder_timeout"
