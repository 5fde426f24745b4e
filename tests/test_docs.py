"""What the documents show is what is there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmdata.config import parse_yaml
from mmdata.engine import Runner
from mmdata.executors import InlineExecutor
from mmdata.plan import parse_plan
from mmdata.schema import ROW
from mmdata.stages.verbs import Batch, Map, WorkerContext
from mmdata.storage import open_store
from tests.corpus import make_corpus
from tests.pools import Row, write_assets, write_pool

ROOT = Path(__file__).parent.parent


def blocks(name: str, kind: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_shows_the_demos_plan() -> None:
    assert blocks("README.md", "yaml")[0] == (ROOT / "pipelines/demo.yaml").read_text(encoding="utf-8")


def test_the_example_stage_works() -> None:
    space: dict[str, object] = {"__name__": "example"}
    exec(blocks("docs/adding-a-stage.md", "python")[0], space)
    stage = space["Brightness"]()  # type: ignore[operator]
    assert isinstance(stage, Map)
    batch = Batch(pa.table({ROW: [0]}), [np.full((2, 2, 3), 7, np.uint8)])
    assert stage.open(WorkerContext(open_store(".")))(batch).to_pylist() == [{"brightness": 7.0}]


def test_the_readmes_own_list_is_a_plan() -> None:
    text = (ROOT / "pipelines/demo.yaml").read_text(encoding="utf-8")
    text = text.replace(
        "file: mmdata/demo/data/catalog.yaml, entry: pairs, partition_rows: 128", "file: catalogs/web.yaml, entry: own"
    )
    text = re.sub(r".*entry: documents.*\n", "", text).replace("name: demo", "name: own")
    plan = parse_plan(parse_yaml(text, "own.yaml"), ROOT)
    assert plan.name == "own"
    assert [source.label() for source in plan.source] == ["catalog:own"]


def test_the_readmes_judgements_stand_in_a_plan() -> None:
    demo = (ROOT / "pipelines/demo.yaml").read_text(encoding="utf-8")
    stages = blocks("README.md", "yaml")[1]
    text = re.sub(r"  - clip_score .*\n  - keep.*\n", lambda _: stages, demo)
    plan = parse_plan(parse_yaml(text, "demo.yaml"), ROOT)
    assert [stage.name for stage in plan.stages][4:] == ["language", "clip_score", "keep", "top", "dedupe"]


def test_the_plans_for_datacomp_work(tmp_path: Path) -> None:
    """The page's first plan runs, over a small pool and with stand-ins for its files; the second is one."""
    pool = write_pool(tmp_path / "metadata", [[Row("there is a dog on the grass", l14=0.1 * n, near=n % 3) for n in range(1, 8)]])
    assets = write_assets(tmp_path / "assets")
    first, second = (text.replace("small/metadata", str(pool)) for text in blocks("docs/datacomp.md", "yaml"))
    text = first.replace("assets/lid.176.bin", assets["language_model"])
    text = text.replace("assets/small_centroids_l14.pt", assets["centroids"])
    text = re.sub(r"assets/in1k_clip_vit_l14_([0-4])\.pt", lambda hit: assets["targets"][int(hit[1]) % 2], text)
    result = Runner(parse_plan(parse_yaml(text, "first.yaml")), str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    found = np.load(tmp_path / "run/corpus/subset.npy")
    # int(7 * 0.3) = 2: rows 7, 6 and 5 by score, of which 7 is near no target.
    assert result.funnel["kept"] == len(found) == 2
    plan = parse_plan(parse_yaml(second.replace("assets/lid.176.bin", assets["language_model"]), "second.yaml"))
    plan.check()
    assert [stage.name for stage in plan.stages] == ["datacomp_text", "language", "datacomp_language", "download", "measure"]


def test_the_loaders_examples_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("web", "docs"):
        (tmp_path / name).mkdir()
    corpora = [make_corpus(tmp_path / name, num=40) for name in ("web", "docs")]
    space: dict[str, Any] = {"CORPUS": corpora[0], "OTHER": corpora[1]}
    examples = blocks("docs/loader.md", "python")
    assert len(examples) == 4
    for example in examples:
        exec(example, space)
    assert "40 samples" in capsys.readouterr().out
    assert space["pixels"].shape == (8, 24, 24, 3)
    assert space["batch"].step == 0
    assert space["saved"]["first_row"] == 0


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/run-folder.md",
        "docs/adding-a-score.md",
        "docs/adding-a-stage.md",
        "docs/loader.md",
        "docs/foreign-tars.md",
        "docs/exports.md",
        "docs/datacomp.md",
        "docs/tokenizers.md",
        "docs/trainer.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert "://" in target or ((ROOT / name).parent / target).exists(), f"{name}: {target}"
