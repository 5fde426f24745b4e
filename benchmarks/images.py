"""The images that the download benchmark serves: thousands of varied ones, cut from a few hundred that Debian packages hold.

    python -m benchmarks.images FOLDER [--num 4000]

Decided here: two of three are cut from photographs and wallpapers, so that the content has texture; the shares of formats,
qualities, subsamplings and progressive files are the web's, roughly. The same number and seed give the same files. `large`
has 512 to 1600 px on its longest side, `small` is the same content at exactly 256 px. A set is one file of bytes and one
parquet of where they lie, so that a server can map it.
"""

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PACKAGES = ("plasma-workspace-wallpapers", "gcompris-qt-data", "tuxpaint-stamps-default", "openclipart-png")
# The share of the images that is cut from each package's pictures.
SHARES = (0.40, 0.25, 0.15, 0.20)
ASPECTS = (4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3)
LARGE = (512, 1600)
SMALL = 256
MIN_SOURCE_PX = 300
MAX_SOURCE_PIXELS = 40_000_000
Image.MAX_IMAGE_PIXELS = None  # the check of sources by their header is stricter, and does not warn
SEED = 3
_QT_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF")


@dataclass(frozen=True)
class Recipe:
    """How one image is made: the shape and encoding, and where in its source it is cut (shares of what is free)."""

    number: int
    longest_px: int
    aspect: float
    zoom: float
    left: float
    top: float
    kind: str
    quality: int
    subsampling: int
    progressive: bool

    @property
    def shape(self) -> tuple[float, float]:
        """Width and height, the longer of them 1."""
        return (1.0, 1 / self.aspect) if self.aspect >= 1 else (self.aspect, 1.0)


def fetch_packages(folder: Path, names: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Return the unpacked packages by name; fetch what is not in `folder` yet, from the machine's own Debian sources."""
    homes = {name: folder / name for name in names}
    for name, home in homes.items():
        if home.is_dir():
            continue
        debs = folder / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        if not list(debs.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", name], cwd=debs, check=True, stdout=sys.stderr)
        temp = folder / f".{name}"
        subprocess.run(["dpkg-deb", "-x", str(next(debs.glob(f"{name}_*.deb"))), str(temp)], check=True)
        temp.rename(home)
    return homes


@dataclass(frozen=True)
class Picture:
    """A picture to cut from: where its bytes lie, and its size."""

    path: Path
    offset: int
    size: int
    width: int
    height: int

    def read(self) -> bytes:
        """Return the file's bytes."""
        return _read(self.path, self.offset, self.size)

    def fits(self, recipe: "Recipe") -> bool:
        """Say whether a recipe's window is there at full size."""
        return self.longest(recipe) >= recipe.longest_px

    def longest(self, recipe: "Recipe") -> float:
        """Return the longest side of the largest window of the recipe's aspect."""
        width, height = recipe.shape
        return min(self.width / width, self.height / height)


def sources(homes: dict[str, Path]) -> list[list[Picture]]:
    """Return, by package, the pictures that are large enough to cut from."""
    found: list[list[Picture]] = []
    for name, home in homes.items():
        if name == "gcompris-qt-data":
            spans = [span for path in sorted(home.rglob("*.rcc")) for span in _inside_qt(path)]
        else:
            files = sorted(path for path in home.rglob("*") if path.suffix in (".png", ".jpg") and path.is_file())
            spans = [(path, 0, path.stat().st_size) for path in files]
        pictures = [picture for span in spans if (picture := _picture(*span)) is not None]
        found.append([picture for picture in pictures if min(picture.width, picture.height) >= MIN_SOURCE_PX])
    return found


def _inside_qt(path: Path) -> Iterator[tuple[Path, int, int]]:
    """Find the pictures in a Qt resource file: each is preceded by its length, four bytes, big endian."""
    data = path.read_bytes()
    for signature in _QT_SIGNATURES:
        at = data.find(signature)
        while at >= 4:
            size = int.from_bytes(data[at - 4 : at], "big")
            if 10_000 < size <= len(data) - at:
                yield path, at, size
                at += size
            at = data.find(signature, at + 1)


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _picture(path: Path, offset: int, size: int) -> Picture | None:
    try:
        with Image.open(io.BytesIO(_read(path, offset, size))) as image:
            picture = Picture(path, offset, size, *image.size)
    except (OSError, ValueError, SyntaxError):
        return None
    return picture if picture.width * picture.height <= MAX_SOURCE_PIXELS else None


def recipes(num: int) -> list[tuple[int, Recipe]]:
    """Return for each image its package's number and its recipe."""
    rng = np.random.default_rng(SEED)
    found = []
    for number in range(num):
        kind = str(rng.choice(("jpeg", "png", "webp"), p=(0.85, 0.07, 0.08)))
        longest = round(np.exp(rng.uniform(*np.log(LARGE))))
        recipe = Recipe(
            number, min(longest, 1024) if kind == "png" else longest, float(rng.choice(ASPECTS)), float(rng.uniform(1.0, 2.2)),
            float(rng.random()), float(rng.random()), kind, int(rng.integers(75, 96)), int(rng.choice((2, 0), p=(0.75, 0.25))),
            bool(rng.random() < 0.3),
        )  # fmt: skip
        found.append((int(rng.choice(len(PACKAGES), p=SHARES)), recipe))
    return found


def cut(source: Image.Image, fit: float, recipe: Recipe) -> Image.Image:
    """Cut a window of the recipe's aspect, at most `fit` px long, and scale it to the recipe's longest side."""
    width, height = recipe.shape
    side = min(fit, recipe.longest_px * recipe.zoom)
    box_w, box_h = width * side, height * side
    left, top = recipe.left * (source.width - box_w), recipe.top * (source.height - box_h)
    size = (max(1, round(width * recipe.longest_px)), max(1, round(height * recipe.longest_px)))
    return source.resize(size, Image.Resampling.LANCZOS, (left, top, left + box_w, top + box_h))


def encode(image: Image.Image, recipe: Recipe) -> bytes:
    """Return the file that a server has."""
    buffer = io.BytesIO()
    if recipe.kind == "jpeg":
        options = {"quality": recipe.quality, "subsampling": recipe.subsampling, "progressive": recipe.progressive}
        image.save(buffer, "JPEG", optimize=recipe.progressive, **options)
    elif recipe.kind == "png":
        image.save(buffer, "PNG", compress_level=6)
    else:
        image.save(buffer, "WEBP", quality=recipe.quality, method=2)
    return buffer.getvalue()


def _make(picture: Picture, wanted: list[Recipe]) -> list[tuple[Recipe, bytes, bytes, str]]:
    source = Image.open(io.BytesIO(picture.read()))
    if source.has_transparency_data:
        rgba = source.convert("RGBA")
        source = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    source = source.convert("RGB")
    made = []
    for recipe in wanted:
        large = cut(source, picture.longest(recipe), recipe)
        scale = SMALL / max(large.size)
        small = large.resize((max(1, round(large.width * scale)), max(1, round(large.height * scale))), Image.Resampling.LANCZOS)
        made.append((recipe, encode(large, recipe), encode(small, recipe), f"{picture.path.name}@{picture.offset}"))
    return made


def _choose(pictures: list[list[Picture]], num: int) -> dict[Picture, list[Recipe]]:
    """Give each recipe a picture: of its package if one there is large enough, else a wallpaper, so that none is enlarged."""
    rng = np.random.default_rng(SEED + 1)
    chosen: dict[Picture, list[Recipe]] = {}
    for package, recipe in recipes(num):
        fitting = [picture for picture in pictures[package] if picture.fits(recipe)] or pictures[0]
        chosen.setdefault(fitting[int(rng.integers(len(fitting)))], []).append(recipe)
    return chosen


def make_sets(folder: Path, num: int) -> Path:
    """Make the sets `large` and `small` of `num` images under `folder/num`, unless they are there; return that folder."""
    home = folder / f"images-{num}"
    if (home / "small.parquet").exists():
        return home
    home.mkdir(parents=True, exist_ok=True)
    jobs = _choose(sources(fetch_packages(folder)), num)
    made: list[tuple[Recipe, bytes, bytes, str]] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for batch in pool.map(_make, jobs.keys(), jobs.values()):
            made += batch
    made.sort(key=lambda item: item[0].number)
    _pack(home / "large", [(recipe, large, source) for recipe, large, _, source in made])
    _pack(home / "small", [(recipe, small, source) for recipe, _, small, source in made])
    return home


def _pack(path: Path, items: list[tuple[Recipe, bytes, str]]) -> None:
    rows: list[dict[str, Any]] = []
    offset = 0
    with path.with_suffix(".bin").open("wb") as file:
        for recipe, data, source in items:
            file.write(data)
            facts = {"kind": recipe.kind, "quality": recipe.quality, "subsampling": recipe.subsampling}
            rows.append({"offset": offset, "size": len(data), **facts, "progressive": recipe.progressive, "source": source})
            offset += len(data)
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where packages and sets are kept")
    parser.add_argument("--num", type=int, default=4000, help="how many images")
    options = parser.parse_args()
    home = make_sets(options.folder, options.num)
    for name in ("large", "small"):
        table = pq.read_table(home / f"{name}.parquet")
        kinds = table.column("kind").value_counts().to_pylist()
        mib = sum(table.column("size").to_pylist()) / 2**20
        print(f"{name}: {table.num_rows} images, {mib:.0f} MiB, {[tuple(kind.values()) for kind in kinds]}")


if __name__ == "__main__":
    main()
