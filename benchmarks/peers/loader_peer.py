"""What the peers of `benchmarks/loader.py` share: how they are called, what they are given, what the clock counts.

    python loader_NAME.py prepare TARS FOLDER      make the peer's own format of the tars' samples
    python loader_NAME.py CASE FOLDER WORKERS HOW  print {seconds, cpu, samples, bytes, version} as JSON

Decided here: one epoch runs before the clock starts (modules, files, worker processes), then a whole one is counted, from
asking for its first batch to having its last. HOW is `own/list`, `own/flat`, `same/list` or `same/flat`: the peer's own decoder
or simplejpeg; batches of arrays, or all pixels of a batch in one flat array that the consumer cuts, which costs fewer messages.
"""

import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
FlatOrList = tuple[Any, list[tuple[int, ...]] | None, list[str]]  # pixels, their shapes where they are flat, captions


def pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def simplejpeg(data: bytes) -> np.ndarray:
    from simplejpeg import decode_jpeg

    found: np.ndarray = decode_jpeg(data, "RGB")
    return found


def members(tars: str) -> Iterator[dict[str, bytes]]:
    """Yield the samples of a folder of tars: `jpg`, `txt`, `json`."""
    for path in sorted(Path(tars).glob("*.tar")):
        sample: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                sample[info.name.partition(".")[2]] = file.read()
                if len(sample) == 3:
                    yield sample
                    sample = {}


class Collate:
    """Makes a batch of (pixels, caption) pairs, in a worker."""

    def __init__(self, how: str) -> None:
        self.flat = how.endswith("flat")

    def __call__(self, items: list[tuple[np.ndarray, str]]) -> FlatOrList:
        import torch

        texts = [text for _, text in items]
        if not self.flat:
            return [torch.as_tensor(pixels) for pixels, _ in items], None, texts
        shapes = [tuple(pixels.shape) for pixels, _ in items]
        whole = torch.empty(sum(int(np.prod(shape)) for shape in shapes), dtype=torch.uint8)
        if torch.utils.data.get_worker_info() is not None:
            whole = whole.share_memory_()  # type: ignore[no-untyped-call]  # written once, where the consumer reads it
        at, target = 0, whole.numpy()
        for (pixels, _), shape in zip(items, shapes, strict=True):
            size = int(np.prod(shape))
            target[at : at + size] = np.asarray(pixels).reshape(-1)
            at += size
        return whole, shapes, texts


def pixels_of(batch: FlatOrList) -> list[np.ndarray]:
    """Return the arrays of a batch, (H, W, 3) uint8 each."""
    held, shapes, _ = batch
    if shapes is None:
        return [np.asarray(pixels) for pixels in held]
    found, at, whole = [], 0, held.numpy()
    for shape in shapes:
        size = int(np.prod(shape))
        found.append(whole[at : at + size].reshape(shape))
        at += size
    return found


def count_pixels(batches: Iterable[FlatOrList]) -> tuple[int, int]:
    """Go through decoded batches; return samples and bytes."""
    samples = size = 0
    for batch in batches:
        arrays = pixels_of(batch)
        samples += len(arrays)
        size += sum(array.nbytes for array in arrays)
    return samples, size


def timed(epoch: Callable[[], tuple[int, int]], version: str) -> None:
    """Run an epoch that does not count and one that does; print what it took."""
    epoch()
    started, used = time.perf_counter(), time.process_time()
    samples, size = epoch()
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu": cpu, "samples": samples, "bytes": size, "version": version}))


def run(prepare: Callable[[str, str], None], cases: dict[str, Callable[[str, int, str], None]]) -> None:
    """Do what the command line says."""
    case, first, second, *rest = sys.argv[1:]
    if case == "prepare":
        prepare(first, second)
    else:
        cases[case](first, int(second), rest[0] if rest else "own/list")
