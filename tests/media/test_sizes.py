"""Sizes, frames and messages are img2dataset's; filters are what they are called."""

import io
import json
import random
import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdata.errors import RecordError
from mmdata.media import Resize, decode, transcode
from mmdata.media.scale import resample, target
from tests.conftest import encode
from tests.media.pictures import photo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from img2dataset.resizer import Resizer

MODES = ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]


def theirs(data: bytes, **options: object) -> tuple[Any, ...]:
    """What img2dataset makes: bytes, width, height, original width, original height, error."""
    given = {"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": True, **options}
    return tuple(Resizer(**given)(io.BytesIO(data)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only_if_bigger", [True, False])
def test_every_size_is_img2datasets(mode: str, only_if_bigger: bool) -> None:
    rng = random.Random(0)
    sizes = [(rng.randint(8, 120), rng.randint(8, 120)) for _ in range(60)]
    for width, height in [*sizes, (64, 64), (64, 33), (33, 64), (65, 63), (1, 100), (100, 1), (77, 64), (8, 8)]:
        data = encode(np.full((height, width, 3), 90, np.uint8))
        resize = {"image_size": 64, "resize_mode": mode, "resize_only_if_bigger": only_if_bigger}
        made = transcode(data, Resize.model_validate(resize))
        assert tuple(made[1:5]) == theirs(data, **resize)[1:5], (width, height)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("upscale", ["nearest", "linear", "bicubic", "area", "lanczos4"])
def test_enlarged_pixels_are_img2datasets(mode: str, upscale: str) -> None:
    data = encode(photo(40, 30))
    resize = {"image_size": 64, "resize_mode": mode, "resize_only_if_bigger": False, "upscale_interpolation": upscale}
    resize |= {"encode_format": "png", "encode_quality": 1}
    made = transcode(data, Resize.model_validate(resize))
    assert np.array_equal(decode(made.data), decode(theirs(data, **resize)[0]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("downscale", "apart"), [("nearest", 0.0), ("area", 1.0)])
def test_pixels_made_smaller_are_img2datasets(mode: str, downscale: str, apart: float) -> None:
    data = encode(photo(301, 203))
    resize = {"image_size": 64, "resize_mode": mode, "downscale_interpolation": downscale, "encode_format": "png"}
    made = transcode(data, Resize.model_validate(resize | {"encode_quality": 1}))
    other = decode(theirs(data, **resize, encode_quality=1)[0])
    assert np.abs(decode(made.data).astype(int) - other).mean() <= apart


@pytest.mark.parametrize("name", ["area", "linear", "cubic", "lanczos"])
@pytest.mark.parametrize("ratio", [1.3, 2.6, 5.5])
def test_a_filter_is_the_one_it_is_called(name: str, ratio: float) -> None:
    picture, size = photo(480, 360), (round(480 / ratio), round(360 / ratio))
    pillow = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    references = {other: np.asarray(Image.fromarray(picture).resize(size, how)) for other, how in pillow.items()}
    references["area"] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    made = resample(picture, size, name).astype(int)
    apart = {other: np.abs(made - reference).mean() for other, reference in references.items()}
    assert apart[name] < 1.0
    if ratio == 2.6:  # nearer to 1 all filters meet, and beyond 4 an area average comes first
        assert min(apart, key=lambda other: apart[other]) == name


@pytest.mark.parametrize("name", ["linear", "cubic", "lanczos"])
def test_fine_stripes_become_grey_and_not_other_stripes(name: str) -> None:
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    made = resample(stripes, (96, 96), name)[8:-8, 8:-8]
    assert made.std() < 20


@pytest.mark.parametrize(
    ("options", "size", "message", "outcome"),
    [
        ({"min_image_size": 31}, (90, 30), "image too small", "image_too_small"),
        ({"max_image_area": 2699}, (90, 30), "image area too large", "image_area_too_large"),
        ({"max_aspect_ratio": 2.9}, (30, 90), "aspect ratio too large", "aspect_ratio_too_large"),
    ],
)
def test_an_original_that_is_not_wanted_has_img2datasets_message(
    options: dict[str, float], size: tuple[int, int], message: str, outcome: str
) -> None:
    data = encode(photo(*size))
    assert theirs(data, **options)[-1] == message
    with pytest.raises(RecordError, match=message) as caught:
        transcode(data, Resize.model_validate({"image_size": 64, **options}))
    assert caught.value.outcome == outcome


@pytest.mark.fault("D24")
@pytest.mark.parametrize("size", [(1, 16_384), (16_384, 1), (10_000, 1), (3, 16_000)])
@pytest.mark.parametrize("mode", MODES)
def test_an_extreme_shape_has_no_side_of_zero(size: tuple[int, int], mode: str) -> None:
    data = encode(np.full((size[1], size[0], 3), 200, np.uint8))
    made = transcode(data, Resize.model_validate({"image_size": 64, "resize_mode": mode}))
    assert min(made.width, made.height) >= 1
    assert decode(made.data).shape == (made.height, made.width, 3)


@pytest.mark.fault("D24")
def test_an_enlargement_that_would_be_a_bomb_is_refused() -> None:
    resize = Resize(image_size=8192, resize_mode="keep_ratio", resize_only_if_bigger=False)
    with pytest.raises(RecordError, match="pixels made are too many") as caught:
        target((1, 16_384), resize)
    assert caught.value.outcome == "too_many_pixels"


def test_quality_means_what_it_means_in_img2dataset() -> None:
    data = encode(photo(256, 192))
    sizes = [len(transcode(data, Resize(image_size=128, encode_quality=quality)).data) for quality in (30, 75, 95)]
    assert sizes == sorted(sizes)
    assert len(transcode(data, Resize(image_size=128)).data) == sizes[-1]
    ours, other = (
        transcode(data, Resize(image_size=128, encode_quality=70)).data,
        theirs(data, image_size=128, encode_quality=70)[0],
    )
    tables = [Image.open(io.BytesIO(made)).quantization for made in (ours, other)]
    assert tables[0] == tables[1]
    with pytest.raises(ValueError, match="between 0 and 9, got 95"):
        Resize(image_size=128, encode_format="png", encode_quality=95)
    assert transcode(data, Resize(image_size=128, encode_format="png")).data.startswith(b"\x89PNG")
    assert transcode(data, Resize(image_size=128, encode_format="webp")).data[8:12] == b"WEBP"


def test_bytes_are_kept_where_nothing_is_to_be_changed() -> None:
    resize = Resize(image_size=128, skip_reencode=True)
    small = encode(photo(96, 64), "JPEG", quality=60)
    made = transcode(small, resize)
    assert (made.data, made.ours, made.width, made.height) == (small, False, 96, 64)
    assert transcode(small, Resize(image_size=128)).data != small
    changed = [encode(photo(256, 64), "JPEG"), encode(photo(96, 64), "PNG"), encode(np.zeros((8, 8, 4), np.uint8), "WEBP")]
    for other in changed:
        assert transcode(other, resize).ours


@pytest.mark.fault("D25")
def test_a_place_and_a_name_do_not_survive_unseen() -> None:
    exif = Image.Exif()
    exif[0x013B] = "Ann Author"
    exif.get_ifd(0x8825)[1] = "N"
    carriers = [
        encode(photo(96, 64), "JPEG", exif=exif), encode(photo(96, 64), "JPEG", comment=b"Ann Author"),
        encode(photo(96, 64), "JPEG", xmp=b"<x>Ann Author</x>"),
    ]  # fmt: skip
    for data in carriers:
        made = transcode(data, Resize(image_size=128, skip_reencode=True))
        assert made.ours
        assert b"Ann Author" in data
        assert b"Ann Author" not in made.data
    assert transcode(carriers[0], Resize(image_size=128, disable_all_reencoding=True)).data == carriers[0]


def test_with_reencoding_off_every_file_is_kept_but_a_damaged_one() -> None:
    resize = Resize(image_size=32, disable_all_reencoding=True)
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encode(photo(96, 64), kind)
        made = transcode(data, resize)
        assert (made.data, made.ours, made.original_width) == (data, False, 96)
    with pytest.raises(RecordError):
        transcode(encode(photo(96, 64), "JPEG")[:-200], resize)


def test_exif_is_written_as_img2dataset_writes_it() -> None:
    import exifread

    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    data = encode(photo(96, 64), "JPEG", exif=exif)
    tags = exifread.process_file(io.BytesIO(data), details=False)
    assert json.loads(transcode(data, Resize(image_size=32)).exif) == {name: str(value).strip() for name, value in tags.items()}
    assert transcode(encode(photo(96, 64)), Resize(image_size=32)).exif == "{}"


def test_fast_is_never_far_from_exact() -> None:
    data = encode(photo(900, 700), "JPEG", quality=92)
    reference = np.asarray(Image.fromarray(decode(data)).resize((256, 199), Image.Resampling.LANCZOS)).astype(float)

    def psnr(how: str) -> float:
        made = transcode(data, Resize.model_validate({"image_size": 256, "decode": how}))
        return float(10 * np.log10(255**2 / np.mean((decode(made.data) - reference) ** 2)))

    assert psnr("exact") > 38
    assert psnr("fast") > 34
