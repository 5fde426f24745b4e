"""Thousands of damaged files: the parent lives, nothing hangs, and every file ends with an outcome from the list."""

import os
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mmdata.errors import RecordError
from mmdata.media import Jail, Resize, decode
from tests.media.pictures import photo, save

NUM_MUTATIONS = 20_000 if os.environ.get("MMDATA_GAUNTLET") else 600
ENDS = {
    "ok", "not_media", "unsupported_format", "truncated_media", "too_many_pixels", "decode_error", "decoder_timeout",
    "decoder_oom", "decoder_crashed",
}  # fmt: skip


def seeds() -> list[bytes]:
    """Twelve small files, of every format and of the kinds that web images have."""
    picture = Image.fromarray(photo(96, 72))
    alpha = picture.copy()
    alpha.putalpha(Image.fromarray(photo(96, 72, 1)[..., 0]))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    grey = Image.fromarray(photo(96, 72)[..., 0].astype(np.uint16) * 257)
    return [
        save(picture, "JPEG", quality=85), save(picture, "JPEG", progressive=True, exif=exif), save(picture.convert("L"), "JPEG"),
        save(picture.convert("CMYK"), "JPEG"), save(picture, "PNG"), save(picture.quantize(32), "PNG", transparency=3),
        save(grey, "PNG"), save(alpha, "PNG"), save(picture, "WEBP"), save(alpha, "WEBP", lossless=True), save(picture, "GIF"),
        save(picture, "AVIF"),
    ]  # fmt: skip


def mutated(rng: random.Random, files: list[bytes]) -> bytes:
    """One of the files with bits flipped, cut, or spliced with another."""
    data = bytearray(rng.choice(files))
    how = rng.randrange(4)
    if how == 0:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del data[rng.randrange(len(data)) :]
    elif how == 2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 200)]
    else:
        other = rng.choice(files)
        data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]
    return bytes(data)


@pytest.mark.fault("D30")
def test_mutated_files_cost_only_themselves(record_property: Callable[[str, object], None]) -> None:
    rng, files, found = random.Random(30), seeds(), Counter[str]()
    resize = Resize(image_size=48)
    with Jail(deadline_s=5.0, memory_mib=512) as jail:
        for start in range(0, NUM_MUTATIONS, 200):
            bodies = [mutated(rng, files) for _ in range(min(200, NUM_MUTATIONS - start))]
            for made in jail.transcode_all(bodies, resize):
                found[made.outcome if isinstance(made, RecordError) else "ok"] += 1
                if not isinstance(made, RecordError):
                    assert (made.width, made.height) == Image.fromarray(decode(made.data)).size
    record_property("figure", f"{NUM_MUTATIONS} mutations: {dict(found.most_common())}")
    assert found.total() == NUM_MUTATIONS
    assert set(found) <= ENDS
    assert found["decode_error"] + found["truncated_media"] > NUM_MUTATIONS // 10
