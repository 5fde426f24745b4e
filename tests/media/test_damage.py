"""What is damaged, oversized or no image ends with its own outcome, and is never filled with grey."""

import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from mmdata.errors import RecordError
from mmdata.media import Jail, Resize, decode, transcode
from tests.conftest import encode
from tests.media.pictures import bomb, photo, png, save

RESIZES = [Resize(image_size=64), Resize(image_size=64, decode="fast"), Resize(image_size=64, disable_all_reencoding=True)]


def outcomes(data: bytes) -> set[str]:
    """The outcomes of a file by every way that decodes it; `ok` where one did."""
    found = set()
    for resize in (None, *RESIZES):
        try:
            decode(data) if resize is None else transcode(data, resize)
            found.add("ok")
        except RecordError as error:
            found.add(error.outcome)
    return found


@pytest.mark.fault("D01")
@pytest.mark.parametrize("data", [b"", b"\xff", b"\0", b"\0" * 4096, b"<html>soft 404</html>", b"GIF89a", b"\xff\xd8\xff"])
def test_nothing_much_is_no_media(data: bytes) -> None:
    assert outcomes(data) <= {"not_media", "decode_error"}
    assert len(data) > 3 or outcomes(data) == {"not_media"}


@pytest.mark.fault("D02")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_cut_jpeg_is_never_filled(options: dict[str, object], mode: str) -> None:
    data = save(Image.fromarray(photo(400, 300)).convert(mode), "JPEG", quality=90, **options)
    assert outcomes(data) == {"ok"}
    for place in [int(len(data) * share) for share in (0.1, 0.5, 0.9, 0.99)] + [len(data) - 2, len(data) - 3, len(data) - 20]:
        assert outcomes(data[:place]) <= {"truncated_media", "decode_error"}, place


@pytest.mark.fault("D02")
def test_a_jpeg_with_damage_in_its_middle_is_refused() -> None:
    data = bytearray(save(Image.fromarray(photo(400, 300)), "JPEG", quality=90, restart_marker_rows=1))
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    assert outcomes(bytes(data)) <= {"truncated_media", "decode_error"}


@pytest.mark.fault("D03")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF"])
def test_a_cut_file_of_another_format_is_refused(kind: str) -> None:
    data = encode(photo(200, 150), kind)
    assert outcomes(data) == {"ok"}
    for share in (0.2, 0.5, 0.9):
        assert outcomes(data[: int(len(data) * share)]) <= {"truncated_media", "decode_error", "not_media"}, share


@pytest.mark.fault("D03")
def test_a_png_with_a_bad_sum_or_without_its_end_is_refused() -> None:
    data = encode(photo(200, 150))
    assert outcomes(data[:-12]) == {"truncated_media"}
    place = data.index(b"IDAT") + 200
    broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert outcomes(broken) <= {"truncated_media", "decode_error"}


@pytest.mark.fault("D05", "D06", "D07")
@pytest.mark.parametrize(("side", "depth", "colour"), [(50_000, 1, 0), (32_000, 8, 0), (20_000, 8, 6)])
def test_a_bomb_is_refused_from_its_header(side: int, depth: int, colour: int) -> None:
    data = bomb(side, depth, colour)
    tracemalloc.start()
    start = time.monotonic()
    found = outcomes(data)
    spent, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"too_many_pixels"}
    assert spent < 2.0  # four ways
    assert peak < 20 << 20


@pytest.mark.fault("D09")
def test_the_larger_of_header_and_frame_counts() -> None:
    assert outcomes(png(60_000, 60_000, 8, 2, b"")) == {"too_many_pixels"}
    frame = bytearray(encode(photo(40, 30), "GIF"))
    place = frame.index(b",\0\0\0\0")
    frame[place + 5 : place + 9] = struct.pack("<HH", 60_000, 60_000)
    assert outcomes(bytes(frame)) <= {"too_many_pixels", "decode_error", "truncated_media"}
    jpeg = bytearray(encode(photo(40, 30), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    assert outcomes(bytes(jpeg)) == {"too_many_pixels"}


@pytest.mark.fault("D09")
def test_a_jpeg_with_two_headers_is_not_believed() -> None:
    small, large = encode(photo(40, 30), "JPEG"), encode(photo(400, 300), "JPEG")
    place = small.index(b"\xff\xc0")
    size = struct.unpack(">H", small[place + 2 : place + 4])[0] + 2
    both = large[:2] + small[place : place + size] + large[2:]
    assert outcomes(both) <= {"decode_error", "truncated_media"}


@pytest.mark.fault("D11")
def test_a_jpeg_of_a_thousand_scans_ends_in_time() -> None:
    data = save(Image.new("RGB", (4000, 4000), (90, 120, 30)), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    many = data[:-2] + data[scan:-2] * 1000 + data[-2:]
    start = time.monotonic()
    with Jail(deadline_s=1.0) as jail, pytest.raises(RecordError) as caught:
        jail.transcode(many, RESIZES[0])
    assert caught.value.outcome in ("decoder_timeout", "decode_error")
    assert time.monotonic() - start < 30


@pytest.mark.fault("D12")
def test_of_a_gif_of_1500_frames_only_the_first_is_decoded() -> None:
    data = encode(np.full((2000, 2000, 3), 77, np.uint8), "GIF")
    frame = data[data.index(b",\0\0\0\0") : -1]
    many = data[:-1] + frame * 1499 + data[-1:]
    start = time.monotonic()
    made = transcode(many, RESIZES[0])
    assert (made.original_width, made.original_height) == (2000, 2000)
    assert time.monotonic() - start < 5


def _tiff_with_a_loop() -> bytes:
    data = bytearray(save(Image.fromarray(photo(20, 10)), "TIFF"))
    first = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[first : first + 2])[0]
    data[first + 2 + 12 * count : first + 6 + 12 * count] = struct.pack("<I", first)
    return bytes(data)


@pytest.mark.fault("D14", "D15", "D16")
@pytest.mark.parametrize(
    "data",
    [
        _tiff_with_a_loop(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file",
        b"%PDF-1.7\n",
        b"8BPS\0\1",
        b"SIMPLE  =                    T",
        b"\xd7\xcd\xc6\x9a\0\0",
        b"icns\0\0\1\0",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        save(Image.fromarray(photo(8, 8)), "BMP"),
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>",
        b"  \n<svg><script>fetch('http://127.0.0.2/')</script></svg>",
    ],
    ids=lambda data: repr(data[:8]),
)
def test_other_formats_are_not_decoded(data: bytes) -> None:
    assert outcomes(data) == {"unsupported_format"}


@pytest.mark.fault("D24")
def test_a_side_of_zero_is_no_image() -> None:
    jpeg = bytearray(encode(photo(40, 30), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 7 : place + 9] = b"\0\0"
    for data in (png(0, 10, 8, 2, b""), png(10, 0, 8, 2, b""), bytes(jpeg)):
        assert outcomes(data) <= {"decode_error", "not_media", "truncated_media"}


def test_a_jpeg_whose_warnings_are_passed_over_elsewhere_is_refused() -> None:
    data = save(Image.fromarray(photo(400, 300)), "JPEG", quality=90)
    scan = data.index(b"\xff\xda") + 14
    place = scan + (len(data) - scan) // 2
    hurt = data[:place] + b"\xff\x00\x00\x00" * 20 + data[place:]
    Image.open(io.BytesIO(hurt)).load()  # Pillow sees no fault
    assert outcomes(hurt) <= {"decode_error", "truncated_media"}
