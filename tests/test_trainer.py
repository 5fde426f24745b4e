"""Training through its public names: resume, checkpoints, and that models learn."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdata.errors import ConfigError
from mmdata.trainer import TrainConfig, train
from mmdata.trainer.checkpoint import latest, open_checkpoint
from mmdata.trainer.log import TIMED
from mmdata.trainer.objectives import is_low
from mmdata.trainer.use import Generator
from tests.corpus import draw, make_corpus
from tests.trainer.common import config


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("shapes"), num=48, val=0.2)


def small(corpus: str, steps: int, **changes: object) -> TrainConfig:
    optim = {"steps": steps, "rows": 2, "micro_rows": 1, "warmup": 5, "lr": 3e-3}
    return config(layout={"row_tokens": 96}, corpus=corpus, optim=optim, checkpoint_every=5, eval_every=5, **changes)


def losses(out: Path) -> list[str]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [repr({key: value for key, value in record.items() if key not in TIMED}) for record in records]


def test_a_finished_training_is_left_alone(shapes: str, tmp_path: Path) -> None:
    first = train(small(shapes, 5), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert train(small(shapes, 5), tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_damaged_checkpoint_is_passed_over(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(small(shapes, 10), tmp_path)
    weights = result.checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 5
    assert "model.safetensors: missing or damaged; using the one before" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="missing or damaged"):
        open_checkpoint(result.checkpoint)


def test_another_config_is_refused(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 5), tmp_path)
    with pytest.raises(ConfigError, match="was trained with another config"):
        train(small(shapes, 5, seed=1), tmp_path)


def test_the_model_learns_both_ways(shapes: str, tmp_path: Path) -> None:
    settings = config(
        corpus=shapes, image={"size": 16, "patch": 4}, model={"width": 64, "layers": 2, "heads": 2}, layout={"row_tokens": 256},
        optim={"steps": 250, "rows": 2, "micro_rows": 2, "warmup": 20, "lr": 3e-3}, checkpoint_every=250, eval_every=250,
    )  # fmt: skip
    result = train(settings, tmp_path)
    records = [json.loads(line) for line in result.metrics.read_text(encoding="utf-8").splitlines()]
    start, end = records[0], records[-1]
    assert start["loss/text"] > math.log(150)
    assert end["val/text"] < 0.8  # "a red square": the colour and the shape are to be read from the image
    assert end["val/latents"] < 0.4
    generator = Generator.load(open_checkpoint(result.checkpoint))
    pairs = [(color, shape) for color in ("red", "green", "blue", "black") for shape in ("square", "bar")]
    captions = [f"a {color} {shape}" for color, shape in pairs]
    templates = np.stack([generator.sequencer.fit(draw(*pair)) for pair in pairs]).astype(np.float32)
    made = generator.captions(list(templates.astype(np.uint8)))
    assert sum(text == caption for text, caption in zip(made, captions, strict=True)) >= 7
    images = generator.images(captions)
    right = [int(np.square(templates - image).mean((1, 2, 3)).argmin()) == place for place, image in enumerate(images)]
    assert sum(right) >= 6


def test_automatic_precision_is_float32_where_bfloat16_is_emulated() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split() if Path("/proc/cpuinfo").exists() else []
    native = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    assert is_low("auto", "cpu") == native
    assert (is_low("bfloat16", "cpu"), is_low("float32", "cpu")) == (True, False)
