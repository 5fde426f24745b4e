"""How close stored images are to the best that their size allows: PSNR to a full decode and a Lanczos resize.

Decided here: the reference has the size of the stored image, upright, with alpha on white, in 8 bits; PSNR is over all
pixels and channels of one image, in dB; identical images count as 60 dB.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

CEILING_DB = 60.0


class Quality(NamedTuple):
    """Mean and 10th percentile of the PSNR, in dB, and the mean size of a stored file, in KiB."""

    mean_db: float
    p10_db: float
    mean_kib: float


def fidelity(folder: Path, images: Path, most: int) -> Quality:
    """Judge at most `most` images of the tars under a folder."""
    table = pq.read_table(images.with_suffix(".parquet")).to_pydict()
    found: list[tuple[float, int]] = []
    with images.with_suffix(".bin").open("rb") as file:
        for number, data in islice(stored(folder), most):
            file.seek(table["offset"][number])
            found.append((psnr(data, file.read(table["size"][number])), len(data)))
    decibels, sizes = np.array(found).T
    return Quality(float(decibels.mean()), float(np.percentile(decibels, 10)), float(sizes.mean()) / 1024)


def stored(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Return number and bytes of every image in the tars of a folder; the number is the url's last part."""
    for url, image in members(folder):
        yield int(url.rpartition("/")[2].partition(".")[0]), image


def members(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return url and bytes of every image in the tars of a folder; the tar of a run that was stopped ends anywhere."""
    for path in sorted(folder.rglob("*.tar")):
        with suppress(tarfile.ReadError), tarfile.open(path) as tar:
            image = b""
            for member in tar:
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".json"):
                    yield json.loads(data)["url"], image
                elif not member.name.endswith(".txt"):
                    image = data


def psnr(made: bytes, original: bytes) -> float:
    """Return the PSNR of a stored image to the reference made from the original, in dB."""
    image = _rgb(Image.open(io.BytesIO(made)))
    reference = _rgb(Image.open(io.BytesIO(original)))
    if reference.size != image.size:
        reference = reference.resize(image.size, Image.Resampling.LANCZOS)
    error = np.mean((np.asarray(image, np.float64) - np.asarray(reference, np.float64)) ** 2)
    return CEILING_DB if error == 0 else min(CEILING_DB, float(10 * np.log10(255**2 / error)))


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
