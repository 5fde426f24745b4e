"""Small folders of real images, small plans over them, and small models in open_clip's own layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mmdata.engine import Runner, RunResult, RunStore
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.report.fates import fates
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Stage
from tests.conftest import encode
from tests.corpus import COLORS, SHAPES, draw

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def write_images(folder: Path, num: int = 12, captions: dict[int, str | None] | None = None) -> Path:
    """Write `num` pictures with captions beside them; `captions` gives some rows others, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        color, shape = list(COLORS)[number % 4], SHAPES[number % 2]
        picture = np.kron(draw(color, shape), np.ones((1 + number % 3, 2, 1), np.uint8))
        (folder / f"{number:04d}.png").write_bytes(encode(picture))
        text = (captions or {}).get(number, f"a {color} {shape}")
        if text is not None:
            (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder


def plan_of(images: Path, *stages: Stage, sink: bool = True) -> Plan:
    """Return a plan over a folder of images."""
    return Plan(name="scores", source=(Folder(path=str(images)),), stages=stages, sink=Shards(samples=100) if sink else None)


def run(plan: Plan, folder: Path) -> RunResult:
    """Run it here."""
    return Runner(plan, str(folder)).execute(InlineExecutor(), quiet=True)


def rows(folder: Path, *columns: str) -> list[dict[str, Any]]:
    """Return columns of every row of a run, and its fate."""
    found: list[dict[str, Any]] = fates(RunStore(str(folder)), columns).to_pylist()
    return found


def write_model(folder: Path, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **more: Any) -> Path:  # noqa: ANN401 - of open_clip's config
    """Write a model with random weights in open_clip's layout: its config and its weights."""
    import open_clip

    preprocess = more.pop("preprocess_cfg", {})
    config = {"embed_dim": 16, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}), encoding="utf-8"
    )
    torch.manual_seed(len(folder.name))
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    save_file(
        {name: value.clone().contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder
