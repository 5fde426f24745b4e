"""The data of the loader's benchmark: one set of pairs, as our corpus and as each peer wants it.

Decided here: every image was encoded by our own `transcode` at quality 95, so that the corpus may call itself trusted; the
tars are written by the library and read as they are by ours, webdataset and Energon, and the other peers' formats are made
from the same bytes. Each image comes under several keys. `jail` is the same corpus with `trusted: false`: hard links, and a
manifest that says that strangers encoded it.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.images import make_sets
from mmdata.media import Resize, transcode
from mmdata.shards import Corpus, open_corpus
from mmdata.shards.corpus import ID_DTYPE, SAMPLE_DTYPE
from mmdata.shards.manifest import Finish, write_manifest
from mmdata.shards.sealed import MANIFEST, seal
from mmdata.shards.tar import BLOCK, tar_bytes
from mmdata.shards.units import RECORD_FIELDS, EmitPlace, borders, record_bytes, write_unit
from mmdata.storage import LocalStore, digest_bytes, digest_file, digest_json

CACHE = Path.home() / ".cache/mmdata-bench"
DEMO = Path(__file__).parents[1] / "mmdata/demo/data/pairs.jsonl"
QUALITY = 95
IMAGES = 3000
SHARD_SAMPLES = 1000


@dataclass(frozen=True)
class Pair:
    """A pair before it has a key: JPEG bytes, size in px, caption."""

    data: bytes
    width: int
    height: int
    caption: str


def pairs(cache: Path, images: int) -> list[Pair]:
    """Return the small set's images (256 px) as JPEG, each with a caption of the demo set."""
    home = make_sets(cache, images)
    rows = pq.read_table(home / "small.parquet", columns=["offset", "size"]).to_pylist()
    whole = memoryview((home / "small.bin").read_bytes())
    datas = [bytes(whole[row["offset"] : row["offset"] + row["size"]]) for row in rows]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(_jpeg, datas, chunksize=64))
    captions = [json.loads(line)["text"] for line in DEMO.read_text(encoding="utf-8").splitlines()]
    return [Pair(*one, captions[number % len(captions)]) for number, one in enumerate(made)]


def _jpeg(data: bytes) -> tuple[bytes, int, int]:
    made = transcode(data, Resize(image_size=256, resize_mode="no", encode_quality=QUALITY))
    return made.data, made.width, made.height


def make_corpus(folder: Path, given: Sequence[Pair], num: int, per_shard: int = SHARD_SAMPLES) -> str:
    """Write `num` samples as a corpus of the library's own under `folder/corpus`; return its folder, the images in disorder."""
    store = LocalStore(str(folder))
    payloads = [_stored(store, pair) for pair in given]
    order = np.random.default_rng(0).permutation(num)
    records = [
        _record(rank, given[int(number) % len(given)], payloads[int(number) % len(given)]) for rank, number in enumerate(order)
    ]
    table = pa.Table.from_pylist(records, schema=pa.schema(RECORD_FIELDS))
    units = borders(table.select(["split", "order", "bytes"]), per_shard, 1 << 30).to_pylist()
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        first = 0
        for number, unit in enumerate(units):
            place = EmitPlace(store, "corpus", number, Path(scratch))
            digests |= write_unit(place, f"train-{number:05d}", unit, table.slice(first, unit["samples"]))
            first += unit["samples"]
    write_manifest(store, "corpus", units, ["train"], Finish("bench", digest_json([num]), {}, {}, {}, digests, True, []))
    return str(folder / "corpus")


def _stored(store: LocalStore, pair: Pair) -> dict[str, Any]:
    name = f"images/{digest_bytes(pair.data)[:24]}.jpg"
    store.create_same(name, pair.data)
    home, _, file = name.partition("/")
    return {"set": home, "tar": file, "offset": 0, "size": len(pair.data), "sha256": digest_bytes(pair.data)}


def _record(rank: int, pair: Pair, payload: dict[str, Any]) -> dict[str, Any]:
    sample_id = digest_json(["bench", rank])[:32]
    facts = {"sample_id": sample_id, "source": "bench", "url": f"https://example.org/{rank}.jpg", "caption": pair.caption,
             "width": pair.width, "height": pair.height}  # fmt: skip
    block = {"kind": "image", "text": pair.caption, "payload": payload, "position": 0, "width": pair.width, "height": pair.height}
    record = {"order": rank, "sample_id": sample_id, "split": 0, "document": False, "json": json.dumps(facts), "blocks": [block]}
    return {**record, "bytes": record_bytes(record)}


def linked(corpus: str, folder: Path, *, trusted: bool) -> str:
    """Make a second folder of the same tars, with a manifest that says who encoded the images."""
    shutil.copytree(corpus, folder, copy_function=os.link, dirs_exist_ok=True)
    path = folder / MANIFEST
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    path.write_text(json.dumps(seal({**facts, "trusted": trusted})), encoding="utf-8")
    return str(folder)


def ranges(corpus: Corpus, index_N: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield shard, offset and size of samples, in order."""
    records = corpus.samples[index_N]
    starts, sizes = (records[name].astype(np.int64) * BLOCK for name in ("start", "length"))
    yield from zip(records["shard"].tolist(), starts.tolist(), sizes.tolist(), strict=True)


def media(corpus: str) -> list[bytes]:
    """Return the JPEG bytes of all samples, in the order of the tars."""
    opened = open_corpus(corpus)
    found = []
    for number, shard in enumerate(opened.shards):
        data = (Path(corpus) / shard).read_bytes()
        first, last = opened.first_samples[number], opened.first_samples[number + 1]
        for index in range(first, last):
            start = int(opened.samples[index]["start"]) * BLOCK
            block = opened.blocks_of(index)[0]
            found.append(data[start + int(block["offset"]) :][: int(block["size"])])
    return found


def make_large(folder: Path, corpus: str, num: int, shards: int) -> str:
    """Write an index of `num` samples in `shards` tars, each a copy of the corpus's first one.

    The tars are empty files of full size; `fill` writes the samples that will be read.
    """
    source = open_corpus(corpus)
    (folder / "index").mkdir(parents=True)
    each, length = num // shards, int(source.samples[0]["length"])
    records = np.zeros(each * shards, SAMPLE_DTYPE)
    records["shard"] = np.repeat(np.arange(shards), each)
    records["num_blocks"], records["first_block"] = 2, np.arange(len(records), dtype=np.uint64) * 2
    records["length"], records["start"] = length, np.tile(np.arange(each, dtype=np.uint32) * length, shards)
    records["xxh3"] = source.samples[0]["xxh3"]
    numbers = np.arange(len(records), dtype=np.uint64)
    ids = np.zeros(len(records), ID_DTYPE)
    ids["f0"], ids["f1"] = numbers, numbers
    arrays = {"samples": records, "blocks": np.tile(np.asarray(source.blocks_of(0)), len(records)), "sample_ids": ids}
    for name, array in arrays.items():
        np.save(folder / f"index/{name}.npy", array)
    index = {f"index/{name}.npy": digest_file(folder / f"index/{name}.npy") for name in arrays}
    size = tar_bytes(each * length * BLOCK)
    names = [f"train-{number:05d}.tar" for number in range(shards)]
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(size)
    facts = {
        **source.facts, "samples": len(records), "blocks": 2 * len(records), "index": index,
        "shards": [{"name": name, "split": "train", "samples": each, "bytes": size, "sha256": "0" * 64} for name in names],
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(seal(facts)), encoding="utf-8")
    return str(folder)


def fill(large: Corpus, index_N: np.ndarray, data: bytes) -> None:
    """Write the bytes of some samples of a large index where they belong."""
    folder = Path(large.store.url.removeprefix("file://"))
    for shard, start, _ in ranges(large, index_N):
        with (folder / large.shards[shard]).open("r+b") as file:
            file.seek(start)
            file.write(data)
