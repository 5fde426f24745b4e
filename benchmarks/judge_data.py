"""A pool of DataComp's schema, made up partition by partition: a source that `judge.py` registers as another package would."""

import os
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.schema import BASE_FIELDS, BOXES, OUTCOME
from mmdata.stages.verbs import Source, SourceSlice

CARRIED = (
    pa.field("original_width", pa.int32()), pa.field("original_height", pa.int32()),
    pa.field("clip_b32_similarity_score", pa.float32()), pa.field("clip_l14_similarity_score", pa.float32()),
    pa.field("face_bboxes", BOXES), pa.field("sha256", pa.string()),
)  # fmt: skip
_HEX = np.asarray([f"{byte:02x}".encode() for byte in range(256)], "S2")
_WORDS = ("a", "the", "red", "old", "small", "picture", "house", "of", "with", "dog", "in", "green", "photo", "für", "стол", "猫")


class Pool(Source):
    """`rows` rows as a pool of DataComp has them, which ids, urls, captions, sizes and scores follow from the seed alone."""

    name: ClassVar[str] = "judge_pool"

    rows: int
    partition_rows: int
    seed: int = 0

    def label(self) -> str:
        return "judge_pool"

    def located(self, home: Path) -> "Pool":
        return self

    def licences(self) -> dict[str, str]:
        return {"judge_pool": "made up"}

    def identity(self) -> dict[str, object]:
        return {"seed": self.seed}

    def fields(self) -> tuple[pa.Field, ...]:
        return (*BASE_FIELDS, *CARRIED)

    def scan(self) -> list[SourceSlice]:
        starts = range(0, self.rows, self.partition_rows)
        return [SourceSlice("pool", "", start, min(start + self.partition_rows, self.rows)) for start in starts]

    def read(self, part: SourceSlice) -> pa.Table:
        num, dice = part.stop - part.start, np.random.default_rng([self.seed, part.start])
        ids, names = hex_texts(dice, num, 16), pa.array([f"https://images.host-{n}.example/" for n in range(5000)])
        short = dice.lognormal(6.1, 0.6, num).clip(30, 8000)
        sides = short, short * dice.lognormal(0.25, 0.45, num).clip(1, 8)
        turned = dice.random(num) < 0.5
        score = dice.normal(0.21, 0.06, num).astype(np.float32)
        columns = {
            "sample_id": ids, "position": np.zeros(num, np.int32), "document": np.zeros(num, bool),
            "url": pc.binary_join_element_wise(names.take(pa.array(dice.integers(0, 5000, num))), ids, pa.scalar(".jpg"), ""),
            "text": captions(dice, num), "media": pa.array(["image"]).take(pa.array(np.zeros(num, np.int64))),
            "source": pa.array(["pool"]).take(pa.array(np.zeros(num, np.int64))), "captions": pa.nulls(num),
            "original_width": np.where(turned, *sides).astype(np.int32),
            "original_height": np.where(turned, *sides[::-1]).astype(np.int32),
            "clip_b32_similarity_score": score + dice.normal(0, 0.02, num).astype(np.float32),
            "clip_l14_similarity_score": score, "face_bboxes": pa.nulls(num), "sha256": hex_texts(dice, num, 32),
            OUTCOME: pa.nulls(num),
        }  # fmt: skip
        schema = pa.schema([*self.fields(), pa.field(OUTCOME, pa.string())])
        arrays = [pa.array(value) if isinstance(value, np.ndarray) else value for value in columns.values()]
        return pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)


def hex_texts(dice: np.random.Generator, num: int, num_bytes: int) -> pa.Array:
    """Return random bytes as hex."""
    data = _HEX[dice.integers(0, 256, num * num_bytes, dtype=np.uint8)].tobytes()
    offsets = np.arange(num + 1, dtype=np.int32) * np.int32(2 * num_bytes)
    return pa.StringArray.from_buffers(num, pa.py_buffer(offsets), pa.py_buffer(data))


def captions(dice: np.random.Generator, num: int) -> pa.Array:
    """Return captions of 1 to 16 words, mostly ASCII."""
    halves = pa.array([" ".join(dice.choice(_WORDS, dice.integers(1, 9)).tolist()) for _ in range(4000)])
    first, second = (halves.take(pa.array(dice.integers(0, len(halves), num))) for _ in range(2))
    single = pc.if_else(pa.array(dice.random(num) < 0.15), pa.scalar(""), second)
    return pc.utf8_rtrim_whitespace(pc.binary_join_element_wise(first, single, " "))


def register(folder: Path) -> None:
    """Let this process and its workers find the source, as those of an installed package."""
    info = folder / "mmdata_judge-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmdata-judge\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[mmdata.stages]\njudge_pool = benchmarks.judge_data:Pool\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
