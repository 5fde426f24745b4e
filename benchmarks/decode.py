"""Which way from a JPEG to a small JPEG is the fastest that is as faithful as img2dataset's, and what the jail costs.

    python -m benchmarks.decode SET [--num 200] [--runs 5] [--quick]

SET is a set of images that `benchmarks.images` made, without its suffix: SET.bin and SET.parquet. Each way makes every JPEG
256 px on its longest side at quality 95, in turn with all others, in one thread. Times are CPU seconds, children included;
fidelity is PSNR to a full decode and a Lanczos resize.
"""

import argparse
import importlib
import io
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from benchmarks.harness import HERE
from mmdata.errors import RecordError
from mmdata.media import Jail, Resize, transcode
from mmdata.media.scale import resample

SIDE = 256
QUALITY = 95
BATCH = 16
Way = Callable[[list[bytes]], list[bytes]]


class Figure(NamedTuple):
    """What one way came to: images a second of one core, the range of the runs, PSNR in dB, and the size of a file."""

    name: str
    rate: float
    low: float
    high: float
    mean_db: float
    p10_db: float
    mean_kib: float


def size_of(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def each(way: Callable[[bytes], bytes]) -> Way:
    return lambda images: [way(data) for data in images]


def img2dataset() -> Way:
    """The peer's own class, as its downloader calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from img2dataset.resizer import Resizer
    resizer = Resizer(SIDE, "keep_ratio_largest", True)
    return each(lambda data: resizer(io.BytesIO(data))[0])


def pillow(filter_name: str, gap: float | None, *, full_colour: bool) -> Way:
    def way(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data))
        size = size_of(*image.size)
        if gap is not None:
            image.draft("RGB", (int(size[0] * gap), int(size[1] * gap)))
        made = image.convert("RGB").resize(size, Image.Resampling[filter_name], reducing_gap=gap)
        buffer = io.BytesIO()
        made.save(buffer, "JPEG", quality=QUALITY, subsampling=0 if full_colour else 2)
        return buffer.getvalue()

    return each(way)


def turbo(resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray], spare: float | None) -> Way:
    """Turbojpeg with a scaled decode that leaves `spare` times the size, or a full one; 4:4:4."""

    def way(data: bytes) -> bytes:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        size = size_of(width, height)
        room = 1.0 if spare is None else min(width / size[0], height / size[1]) / spare
        factor = max(step for step in (1, 2, 4, 8) if step <= max(1.0, room))
        least = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
        pixels = resize(simplejpeg.decode_jpeg(data, "RGB", **least), size)
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "444"))

    return each(way)


def opencv_reduced(data: bytes) -> bytes:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    size = size_of(width, height)
    room = min(width / size[0], height / size[1]) / 1.5
    flags = [cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_COLOR_8]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags[sum(room >= step for step in (2, 4, 8))])
    assert pixels is not None
    made = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", made, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())


def libvips() -> Way | None:
    os.environ["VIPS_CONCURRENCY"] = "1"
    try:
        vips: Any = importlib.import_module("pyvips")
    except (ImportError, OSError):
        return None
    vips.cache_set_max(0)

    def way(data: bytes) -> bytes:
        image = vips.Image.thumbnail_buffer(data, SIDE, height=SIDE, size="down", no_rotate=True)
        return bytes(image.jpegsave_buffer(Q=QUALITY, subsample_mode="off", strip=True))

    return each(way)


def ours(how: str, jail: Jail | None) -> Way:
    resize = Resize.model_validate({"image_size": SIDE, "decode": how})

    def way(images: list[bytes]) -> list[bytes]:
        if jail is None:
            return [transcode(data, resize).data for data in images]
        made: list[bytes] = []
        for start in range(0, len(images), BATCH):
            for one in jail.transcode_all(images[start : start + BATCH], resize):
                if isinstance(one, RecordError):
                    raise one
                made.append(one.data)
        return made

    return way


def entropy_only(data: bytes) -> bytes:
    """What no way can do without: reading the whole file's codes, and writing a small one."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    least = {"min_height": -(-height // 8), "min_width": -(-width // 8), "min_factor": 8}
    pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
    return bytes(simplejpeg.encode_jpeg(cv2.resize(pixels, size_of(width, height)), QUALITY, "RGB", "444"))


def ways(jail: Jail) -> dict[str, Way]:
    """All ways, by name; the first is the peer's."""

    def pillow_resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    def area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)

    found: dict[str, Way | None] = {
        "img2dataset: OpenCV, area, 4:2:0": img2dataset(),
        "OpenCV reduced 1.5, area, 4:2:0": each(opencv_reduced),
        "Pillow full, Lanczos, 4:2:0": pillow("LANCZOS", None, full_colour=False),
        "Pillow full, Lanczos, 4:4:4": pillow("LANCZOS", None, full_colour=True),
        "Pillow full, box, 4:4:4": pillow("BOX", None, full_colour=True),
        "Pillow draft 2.0, bicubic, 4:4:4": pillow("BICUBIC", 2.0, full_colour=True),
        "libvips thumbnail, 4:4:4": libvips(),
        "turbojpeg full, OpenCV area": turbo(area, None),
        "turbojpeg 1.5, OpenCV area": turbo(area, 1.5),
        "turbojpeg 1.5, Pillow bicubic": turbo(pillow_resize, 1.5),
        "turbojpeg 1.0, Pillow bicubic": turbo(pillow_resize, 1.0),
    }
    for spare in (None, 2.0, 1.5, 1.25, 1.0):
        found[f"turbojpeg {spare or 'full'}, our area"] = turbo(lambda p, s: resample(p, s, "area"), spare)
    found["turbojpeg 1.5, our lanczos"] = turbo(lambda p, s: resample(p, s, "lanczos"), 1.5)
    found |= {f"ours {how}": ours(how, None) for how in ("exact", "fast")}
    found |= {f"ours {how}, in the jail": ours(how, jail) for how in ("exact", "fast")}
    found["limit: entropy coding alone"] = each(entropy_only)
    return {name: way for name, way in found.items() if way is not None}


def cpu_s(jail: Jail) -> float:
    """CPU seconds of this process and of the jail's child, where /proc tells them."""
    child = jail._child
    if child is None or not sys.platform.startswith("linux"):
        return time.process_time()
    fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def psnr(data: bytes, original: bytes) -> float:
    made = Image.open(io.BytesIO(data)).convert("RGB")
    reference = Image.open(io.BytesIO(original)).convert("RGB").resize(made.size, Image.Resampling.LANCZOS)
    error = np.mean((np.asarray(made, float) - np.asarray(reference, float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 0.065)))


def measure(images: list[bytes], runs: int) -> list[Figure]:
    with Jail() as jail:
        jail.transcode(images[0], Resize(image_size=SIDE))
        by_name = ways(jail)
        rates: dict[str, list[float]] = {name: [] for name in by_name}
        for _ in range(runs):
            for name, way in by_name.items():
                start = cpu_s(jail)
                way(images)
                rates[name].append(len(images) / (cpu_s(jail) - start))
        figures = []
        for name, way in by_name.items():
            made = way(images)
            decibels = [psnr(*pair) for pair in zip(made, images, strict=True)]
            figures.append(
                Figure(
                    name, statistics.median(rates[name]), min(rates[name]), max(rates[name]), float(np.mean(decibels)),
                    float(np.percentile(decibels, 10)), sum(map(len, made)) / len(made) / 1024,
                )
            )  # fmt: skip
    return figures


def table(figures: list[Figure]) -> str:
    head = "| way | images/s a core | range | to img2dataset | PSNR mean | PSNR p10 | KiB |\n" + "|---" * 7 + "|"
    rows = [
        f"| {f.name} | {f.rate:.0f} | {f.low:.0f} to {f.high:.0f} | {f.rate / figures[0].rate:.2f}x | {f.mean_db:.2f} "
        f"| {f.p10_db:.2f} | {f.mean_kib:.1f} |"
        for f in figures
    ]
    return "\n".join([head, *rows])


def jpegs(prefix: Path, num: int) -> list[bytes]:
    """The first `num` JPEGs of a set, spread over it."""
    places = pq.read_table(prefix.with_suffix(".parquet"), columns=["offset", "size"]).to_pydict()
    data = prefix.with_suffix(".bin").read_bytes()
    bodies = [data[start : start + size] for start, size in zip(places["offset"], places["size"], strict=True)]
    found = [body for body in bodies if body.startswith(b"\xff\xd8")]
    return found[:: max(1, len(found) // num)][:num]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a set of images, without its suffix")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="write no page")
    options = parser.parse_args()
    images = jpegs(options.set, options.num)
    text = table(measure(images, options.runs))
    print(text)
    if not options.quick:
        command = f"python -m benchmarks.decode {options.set.name} --num {options.num} --runs {options.runs}"
        machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, 2 shared cores"
        how = f"{len(images)} JPEGs, CPU seconds of one thread, medians of {options.runs} alternating runs"
        stamp = f"Made by `{command}` on {datetime.now(UTC):%Y-%m-%d}, {machine}: {how}."
        page = HERE / "results" / f"decode-{options.set.name}.md"
        page.write_text(f"# decode: {options.set.name}\n\n{stamp}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
