"""Cells of the grid through the whole loop: resumed as if never stopped, and shared by ranks as if by one process."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdata.trainer import TrainConfig, train
from mmdata.trainer.checkpoint import latest, open_checkpoint
from mmdata.trainer.use import Generator
from tests.corpus import draw, make_corpus
from tests.trainer.common import GRID, OBJECTIVES, SHARES, codebook, config, merged
from tests.trainer.ranks import apart, ranks, records


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return make_corpus(tmp_path_factory.mktemp("shapes"), num=24, val=0.2)


def cell(corpus: str, folder: Path, objective: str, share: str, **changes: Any) -> TrainConfig:  # noqa: ANN401
    vq = {"image": {"tokenizer": str(codebook(folder))}} if "vq" in str(OBJECTIVES[objective]) else {}
    base = {
        "corpus": corpus, "layout": {"row_tokens": 64}, "eval_every": 100, "checkpoint_every": 2,
        "optim": {"steps": 4, "rows": 4, "micro_rows": 2, "warmup": 1}, "sampler": {"steps": 2, "text_steps": 2},
    }  # fmt: skip
    return config(base, OBJECTIVES[objective], vq, SHARES[share], changes)


@pytest.mark.parametrize(("objective", "share"), GRID)
def test_a_cell_goes_on_as_if_it_had_not_stopped(shapes: str, tmp_path: Path, objective: str, share: str) -> None:
    settings = cell(shapes, tmp_path, objective, share)
    train(settings, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "step-000004")
    result = train(settings, tmp_path / "broken")
    ours, theirs = latest(tmp_path / "broken"), latest(tmp_path / "whole")
    assert ours is not None
    assert theirs is not None
    assert ours.state["files"] == theirs.state["files"]
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    generator = Generator.load(open_checkpoint(result.checkpoint))
    assert generator.images(["a red bar"])[0].shape == (8, 8, 3)
    assert isinstance(generator.captions([draw("red", "bar")])[0], str)


@pytest.mark.parametrize(
    ("objective", "share", "parallel", "balance"),
    [("ar", "moe", "ddp", "switch"), ("dual", "mot", "fsdp", "bias"), ("masked", "moe", "fsdp", "bias")],
)
def test_ranks_train_a_cell_as_one_process(
    shapes: str, tmp_path: Path, objective: str, share: str, parallel: str, balance: str
) -> None:
    extra = {"params": {"balance": balance}, "precision": "float64", "optim": {"steps": 6}, "checkpoint_every": 6}
    alone = cell(shapes, tmp_path, objective, share, **extra)
    together = cell(shapes, tmp_path, objective, share, **merged(extra, {"parallel": parallel, "optim": {"micro_rows": 1}}))
    train(alone, tmp_path / "alone")
    ended = ranks(2, tmp_path, partial(train, together, tmp_path / "together"))
    assert ended.codes == [0, 0], ended.said
    assert apart(records(tmp_path / "alone"), records(tmp_path / "together")) < 1e-12
    loads = [{key: value for key, value in record.items() if key.startswith("load/")} for record in records(tmp_path / "alone")]
    assert loads == [
        {key: value for key, value in record.items() if key.startswith("load/")} for record in records(tmp_path / "together")
    ]
