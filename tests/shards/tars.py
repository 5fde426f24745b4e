"""Tars as other programs write them, and what webdataset's reader sees in them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import webdataset

Members = list[tuple[str, bytes]]
PICTURE = Path(__file__).parents[2] / "mmdata/demo/data/images"


def pictures(num: int) -> list[bytes]:
    """Return the bytes of real JPEG files."""
    paths = sorted(PICTURE.glob("*.jpg"))
    return [paths[number % len(paths)].read_bytes() for number in range(num)]


def pairs(num: int, first: int = 0) -> Members:
    """Return members in img2dataset's order: picture, json, text."""
    members: Members = []
    for number, data in enumerate(pictures(num), first):
        members += [
            (f"{number:09d}.jpg", data),
            (f"{number:09d}.json", b'{"uid": "%032x", "caption": "picture %d"}' % (number, number)),
            (f"{number:09d}.txt", b"picture %d" % number),
        ]
    return members


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, **pax: str) -> Path:
    """Write a tar with Python's tarfile."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), dict(pax)
            tar.addfile(info, io.BytesIO(data))
    return path


def seen_by_webdataset(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Return key and members of each sample of a tar, as webdataset reads it."""
    samples = webdataset.tariterators.tarfile_samples([{"url": str(path)}])
    return [(s["__key__"], {name: data for name, data in s.items() if not name.startswith("__")}) for s in samples]
