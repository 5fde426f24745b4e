"""A corpus of drawn shapes whose truth is known: what a model can learn of it in minutes, and what it has to put together.

A picture is black with one shape in one quadrant at one level of grey: 4 x 4 x 4 = 64 combinations, each with a caption of
three words. Eight are held out as split `val`, two of each shape, quadrant and level, so that each pair of words is still seen in
training, but not these three together. A generated picture is judged by the template it is nearest to.

Decided here: no number is drawn at random, so the same arguments give the same bytes. Axes: N pictures, H height, W width.
"""

import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mmdata.errors import ConfigError
from mmdata.shards import TarFile
from mmdata.shards.manifest import Finish, write_manifest
from mmdata.shards.units import RECORD_FIELDS, EmitPlace, block_members, borders, choose, record_bytes, write_unit
from mmdata.stages.shards import order_of
from mmdata.storage import digest_bytes, digest_json, open_store
from mmdata.trainer.metrics import nearest

SHAPES = ("square", "frame", "cross", "wedge")
QUADRANTS = ("left-top", "right-top", "left-bottom", "right-bottom")
LEVELS = {"dark": 63, "dim": 127, "light": 191, "bright": 255}
NUM = len(SHAPES) * len(QUADRANTS) * len(LEVELS)
SPLITS = ["train", "val"]
_HELD_OUT = ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (0, 1, 2), (1, 2, 3), (2, 3, 0), (3, 0, 1))
SAMPLES, MAX_BYTES = 10_000, 1 << 30  # of a shard, as the sink of a plan
_CORPUS, _IMAGES, _TAR = "corpus", "images", "00000.tar"


def templates(size: int = 12) -> tuple[np.ndarray, list[str]]:
    """Return all pictures, (64, size, size, 3) uint8, and their captions; `size` is a multiple of 4, at least 12."""
    if size < 12 or size % 4:
        raise ConfigError(f"shapes of {size} px cannot be drawn alike in each quadrant", hint="give a multiple of 4, at least 12")
    found = np.zeros((NUM, size, size, 3), np.uint8)
    half, captions = size // 2, []
    for image, (shape, place, level) in zip(found, itertools.product(SHAPES, enumerate(QUADRANTS), LEVELS), strict=True):
        down, across = divmod(place[0], 2)
        quadrant = image[down * half : (down + 1) * half, across * half : (across + 1) * half]
        quadrant[1:-1, 1:-1][_inside(shape, half - 2)] = LEVELS[level]
        captions.append(f"{shape} {place[1]} {level}")
    return found, captions


def _inside(shape: str, side: int) -> np.ndarray:
    """Return which pixels of a square box belong to a shape, (side, side) bool."""
    down, across = np.meshgrid(*[(np.arange(side) + 0.5) / side - 0.5] * 2, indexing="ij")
    far, near = np.maximum(abs(down), abs(across)), np.minimum(abs(down), abs(across))
    masks = {"square": far < 1, "frame": far > 0.3, "cross": near < 0.2, "wedge": down >= across}
    mask: np.ndarray = masks[shape]
    return mask


def held_out() -> list[int]:
    """Return which of the 64 combinations are not in training."""
    return sorted(len(LEVELS) * (len(QUADRANTS) * shape + quadrant) + level for shape, quadrant, level in _HELD_OUT)


def nearest_template(images_NHWC: np.ndarray) -> np.ndarray:
    """Return the combination whose picture is nearest in squared error to each generated one, (N,) int64."""
    return nearest(images_NHWC, templates(images_NHWC.shape[1])[0])


def write_shapes(out: Path, *, size: int = 12, copies: int = 16) -> str:
    """Write the corpus into a folder and return the corpus's own; what is there already is met again.

    size    pixels a side, a multiple of 4, at least 12
    copies  samples of each training combination, so that an epoch is long enough; held-out ones come once

    Raises ConfigError for a size that cannot be drawn, RunError when a corpus of other arguments is there.
    """
    images, captions = templates(size)
    out.mkdir(parents=True, exist_ok=True)
    store = open_store(str(out))
    with tempfile.TemporaryDirectory(prefix="mmdata-") as folder:
        scratch, digests = Path(folder), dict[str, str]()
        payloads = _payloads(images, scratch / _TAR)
        store.create_from(f"{_IMAGES}/{_TAR}", scratch / _TAR)
        records = _records(captions, payloads, size, copies)
        units = borders(records.select(["split", "order", "bytes"]), SAMPLES, MAX_BYTES).to_pylist()
        for number, unit in enumerate(units):
            place = EmitPlace(store, _CORPUS, number, scratch)
            digests |= write_unit(place, f"{SPLITS[unit['split']]}-{number:05d}", unit, choose(records, unit))
    write_manifest(store, _CORPUS, units, SPLITS, _facts(records.num_rows, digests, {"size": size, "copies": copies}))
    return str(out / _CORPUS)


def _payloads(images_NHWC: np.ndarray, path: Path) -> list[dict[str, Any]]:
    """Write each picture once, as PNG, and return the reference to it."""
    found = []
    with TarFile(path) as tar:
        for number, image in enumerate(images_NHWC):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            (member,) = tar.write(f"{number:05d}", {"png": buffer.getvalue()})
            found.append({
                "set": _IMAGES, "tar": _TAR, "offset": member.offset, "size": member.size,
                "sha256": digest_bytes(buffer.getvalue()), "trusted": True,
            })  # fmt: skip
    return found


def _records(captions: list[str], payloads: list[dict[str, Any]], size: int, copies: int) -> pa.Table:
    """Return a record a sample, as the sink of a plan makes them."""
    found = []
    for number, (caption, payload) in enumerate(zip(captions, payloads, strict=True)):
        held = number in held_out()
        block = {"media": "image", "text": caption, "payload": payload, "position": 0, "width": size, "height": size}
        for copy in range(1 if held else copies):
            ident = digest_bytes(f"shapes {caption} {copy}".encode())[:32]
            facts = {"sample_id": ident, "source": "shapes", "url": None, "caption": caption, "combination": number}
            record = {
                "order": order_of(0, ident), "sample_id": ident, "split": int(held), "document": False,
                "json": json.dumps(facts, separators=(",", ":")), "blocks": [block_members(block)],
            }  # fmt: skip
            found.append(record | {"bytes": record_bytes(record)})
    return pa.Table.from_pylist(found, schema=pa.schema(RECORD_FIELDS))


def _facts(num: int, digests: dict[str, str], asked: dict[str, int]) -> Finish:
    funnel: dict[str, object] = {"rows_in": num, "made_by_splits": 0, "kept": num, "dropped": {}, "split": 0}
    return Finish(
        plan_name="shapes",
        plan_digest=digest_json({"shapes": 1, **asked}),
        funnel=funnel,
        licences={"shapes": "CC0-1.0"},
        columns={"combination": "which of the 64 it is"},
        digests=digests,
        trusted=True,
        cautions=[],
    )
