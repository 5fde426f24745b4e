"""A corpus of everything that a corpus can hold: pairs with, without and with hostile texts, videos, a document, two splits.

It is written by the sink's own steps from rows, without a run: rows of video need no stage that makes them.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa

from mmdata.schema import BASE_FIELDS, PAYLOAD, ROW
from mmdata.shards import open_corpus
from mmdata.shards.manifest import Finish, write_manifest
from mmdata.shards.units import EmitPlace, borders, choose, write_unit
from mmdata.stages.shards import Shards, sample_records
from mmdata.storage import open_store
from tests.conftest import encode
from tests.corpus import draw

HOSTILE = "<img src=x onerror=alert(1)> \u202e \x07 ' \" </style><script>alert(2)</script>"
SPLITS = ["train", "val"]
_SCHEMA = pa.schema([
    *BASE_FIELDS, pa.field("payload", PAYLOAD), pa.field("width", pa.int32()), pa.field("height", pa.int32()),
    pa.field("clip_score", pa.float32()), pa.field("<b>phash", pa.int64()), pa.field(ROW, pa.int64()),
])  # fmt: skip


def video(folder: Path) -> bytes:
    """Return a real MP4 of six frames."""
    path = folder / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 6, (32, 32))
    for shape in ("square", "bar") * 3:
        writer.write(draw("red", shape))
    writer.release()
    return path.read_bytes()


def mixed_corpus(folder: Path, num: int = 36, trusted: bool = True) -> str:
    """Write `num` image pairs, two video pairs and two documents; return the corpus's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [pair_row(folder, number, trusted) for number in range(num)]
    film = video(folder)
    rows += [_row(folder, f"{number:032x}", 0, text="a film", media=film, kind="video") for number in (0xF0, 0xF1)]
    for number in (0xD0, 0xD1):
        rows += _document(folder, f"{number:032x}", trusted)
    return write_rows(folder, rows, trusted)


def write_rows(folder: Path, rows: list[dict[str, Any]], trusted: bool = True) -> str:
    """Write kept rows as a corpus, by the steps of the sink."""
    table = pa.Table.from_pylist([row | {ROW: place} for place, row in enumerate(rows)], schema=_SCHEMA)
    records = sample_records(table, Shards(splits={"val": 0.25}))
    units = borders(records.select(["split", "order", "bytes"]), 16, 1 << 30).to_pylist()
    store = open_store(str(folder))
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, unit in enumerate(units):
            place = EmitPlace(store, "corpus", number, Path(scratch))
            digests |= write_unit(place, f"{SPLITS[unit['split']]}-{number:05d}", unit, choose(records, unit))
    funnel = {"rows_in": len(rows) + 3, "made_by_splits": 0, "kept": len(rows), "dropped": {"http_4xx": 3}, "split": 0}
    licences, columns = {"web": "CC0 & <b>free</b>"}, {"clip_score": "cosine"}
    facts = Finish("mixed", "0" * 64, funnel, licences, columns, digests, trusted, ["download: robots.txt was not asked"])
    write_manifest(store, "corpus", units, SPLITS, facts)
    return str(folder / "corpus")


def expected(url: str) -> dict[str, dict[str, bytes]]:
    """Return the members of every sample as they lie in the tars, by its id."""
    corpus = open_corpus(url)
    return {corpus.sample_id(index): corpus.read(index) for index in range(len(corpus.samples))}


def pair_row(folder: Path, number: int, trusted: bool = True) -> dict[str, Any]:
    """Return the row of an image with its text; its media is put in the folder."""
    texts = {0: HOSTILE, 1: None, 2: "", 3: "/etc/hostname", 4: "kleine Straße 東京"}
    kind = "PNG" if number % 3 else "JPEG"
    image = encode(draw("blue", "bar")[: 12 + number % 20], kind)
    row = _row(folder, f"{number:032x}", 0, text=texts.get(number, f"a blue bar, {number}"), media=image, trusted=trusted)
    height = None if number == 5 else 12 + number % 20
    return row | {
        "width": height and 32,
        "height": height,
        "clip_score": None if number == 6 else 0.1 + number / 100,
        "<b>phash": number,
    }


def _document(folder: Path, sample_id: str, trusted: bool) -> list[dict[str, Any]]:
    image = encode(draw("green", "square"))
    blocks: list[dict[str, Any]] = [{"text": "first"}, {"media": image}, {"text": HOSTILE}, {"media": encode(draw("red", "bar"))}]
    # Position 2 was dropped by a filter.
    places = (0, 1, 3, 4)
    return [
        _row(folder, sample_id, place, document=True, trusted=trusted, **block)
        for place, block in zip(places, blocks, strict=True)
    ]


def _row(
    folder: Path,
    sample_id: str,
    position: int,
    *,
    text: str | None = None,
    media: bytes | None = None,
    kind: str = "image",
    document: bool = False,
    trusted: bool = True,
) -> dict[str, Any]:
    row: dict[str, Any] = {"sample_id": sample_id, "position": position, "document": document, "text": text, "source": "web"}
    if media is None:
        return row
    digest = hashlib.sha256(media).hexdigest()
    (folder / "media").mkdir(exist_ok=True)
    (folder / "media" / digest).write_bytes(media)
    payload = {"set": "media", "tar": digest, "offset": 0, "size": len(media), "sha256": digest, "trusted": trusted}
    return row | {"media": kind, "payload": payload, "url": f"http://web/{sample_id}/{position}", "width": 32, "height": 32}
