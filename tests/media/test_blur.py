"""Faces are blurred to the pixel as img2dataset does it."""

import warnings

import numpy as np
import pytest

from mmdata.media import Jail, Resize, blur, decode, transcode
from tests.conftest import encode
from tests.media.pictures import photo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from img2dataset.blurrer import BoundingBoxBlurrer

BOXES = [
    [], [[0.1, 0.2, 0.4, 0.6]], [[0.0, 0.0, 1.0, 1.0]], [[0.1, 0.1, 0.2, 0.2], [0.7, 0.5, 0.95, 0.9]], [[0.98, 0.98, 1.2, 1.1]],
    [[0.5, 0.5, 0.5, 0.5]],
]  # fmt: skip


@pytest.mark.parametrize("boxes", BOXES)
@pytest.mark.parametrize("size", [(200, 120), (33, 47)])
def test_the_pixels_are_img2datasets(boxes: list[list[float]], size: tuple[int, int]) -> None:
    picture = photo(*size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = BoundingBoxBlurrer()(img=picture, bbox_list=boxes)
    assert np.array_equal(blur(picture, boxes), theirs)


def test_a_stored_image_is_blurred_after_it_is_made_small_and_in_the_jail_too() -> None:
    data, boxes = encode(photo(400, 300)), [[0.2, 0.2, 0.6, 0.7]]
    resize = Resize(image_size=200, encode_format="png")
    sharp, soft = (decode(transcode(data, resize, given).data) for given in ([], boxes))
    assert np.array_equal(soft, blur(sharp, boxes))
    with Jail() as jail:
        made = jail.transcode_all([data, data], resize, [boxes, []])
    assert [decode(one.data).tolist() for one in made] == [soft.tolist(), sharp.tolist()]  # type: ignore[union-attr]
