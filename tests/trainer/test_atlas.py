"""The atlas: its cells are legal and cost alike, what papers claim is told from what is seen, and the page tells it."""

import json
from pathlib import Path

import pytest
import torch

from mmdata.cli.atlas import command
from mmdata.config import parse_yaml
from mmdata.demo.shapes import write_shapes
from mmdata.errors import ConfigError
from mmdata.report.atlas import atlas_text, write_atlas
from mmdata.trainer.atlas import AtlasConfig, CellRun, claims_seen, plan_steps, summary
from tests.trainer.common import codebook


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> AtlasConfig:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("atlas")
    base = {
        "name": "tiny", "corpus": write_shapes(folder / "shapes", copies=1), "image": {"size": 12, "patch": 4},
        "text": {"vocab": 300}, "model": {"width": 48, "layers": 1, "heads": 2},
        "layout": {"row_tokens": 64, "max_text_tokens": 8},
        "optim": {"steps": 3, "rows": 2, "micro_rows": 2}, "sampler": {"steps": 2, "text_steps": 2, "max_text_tokens": 4},
        "evaluate": {"samples": 2, "every": 100, "retrieval": 2},
    }  # fmt: skip
    return AtlasConfig.model_validate({"base": base, "codes": str(codebook(folder)), "seeds": 1})


def test_cells_cost_alike(atlas: AtlasConfig) -> None:
    steps = plan_steps(atlas)
    assert len(steps) == 12
    assert steps["transfusion", "dense"] == 3
    assert set(steps.values()) <= {2, 3, 4}


def test_a_cell_changes_its_own_keys_alone(atlas: AtlasConfig) -> None:
    cell = atlas.cell("masked", "moe", seed=2, steps=9)
    assert (cell.text.objective, cell.image.objective, cell.mask, cell.params.share) == ("mdm", "mdm", "full", "moe")
    assert cell.params.expert_ratio * cell.params.top_k == 1
    assert (cell.seed, cell.optim.steps, cell.threads) == (2, 9, 1)
    assert cell.model == atlas.base.model


def runs(images_right: dict[tuple[str, str, int], float]) -> list[CellRun]:
    return [
        CellRun(*cell, 10, {"val/image_nearest": right, "val/caption_exact": 0.5}, 1e12, 100.0, 10.0, 500.0, 1000)
        for cell, right in images_right.items()
    ]


def test_claims_are_told_by_their_interval_over_seeds() -> None:
    better = {("transfusion", "dense", seed): 0.9 + seed / 100 for seed in range(3)}
    worse = {("ar", "dense", seed): 0.5 + seed / 50 for seed in range(3)}
    seen = {found.claim.words: found for found in claims_seen(runs(better | worse))}
    assert seen["images by diffusion beat codes, generating"].verdict == "as claimed"
    assert seen["images by diffusion beat codes, understanding"].verdict == "not to be told"
    assert "towers beat one tower, over codes" not in seen
    other = {("transfusion", "dense", seed): 0.1 for seed in range(3)}
    assert claims_seen(runs(other | worse))[0].verdict == "the other way"
    assert claims_seen(runs({("transfusion", "dense", 0): 1.0, ("ar", "dense", 0): 0.0}))[0].verdict == "not to be told"


def test_the_page_and_the_text_tell_each_cell(tmp_path: Path) -> None:
    path = tmp_path / "atlas.json"
    values = {(objective, "dense", seed): 0.25 * seed for objective in ("ar", "transfusion") for seed in (1, 2)}
    path.write_text(json.dumps({"name": "<b>", **summary(runs(values))}), encoding="utf-8")
    text = atlas_text(path)
    assert "0.375 (0.00 to 1.00)" in text
    assert "arXiv 2408.11039" in text
    write_atlas(tmp_path / "index.html", path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.count("<circle") == 2


def test_the_command_trains_what_is_not_trained_yet(
    atlas: AtlasConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "atlas.yaml"
    asked = json.loads(atlas.model_dump_json(exclude_unset=True)) | {"objectives": ["transfusion"], "shares": ["dense"]}
    config.write_text(json.dumps(asked), encoding="utf-8")
    command(config, tmp_path / "out")
    run = tmp_path / "out" / "runs" / "transfusion-dense-0"
    log = (run / "metrics.jsonl").stat().st_mtime_ns
    assert (tmp_path / "out" / "index.html").exists()
    told = capsys.readouterr()
    assert "transfusion, dense: 3 steps" in told.err
    assert "1 of 1: transfusion, dense, seed 0: val/caption_exact" in told.err
    command(config, tmp_path / "out")
    assert (run / "metrics.jsonl").stat().st_mtime_ns == log


def test_a_wrong_atlas_names_its_line() -> None:
    from mmdata.config import build

    with pytest.raises(ConfigError, match=r"a.yaml:3: `base.mask`"):
        build(AtlasConfig, parse_yaml("codes: x\nbase:\n  mask: ful\n  name: a\n  corpus: b\n", "a.yaml"))
