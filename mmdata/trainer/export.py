"""A checkpoint as a folder for other programs: `model.safetensors`, `tokenizer.json`, `image_tokenizer/` where one was trained,
and `config.json` that tells of them.
"""

import json
import shutil
from pathlib import Path

from mmdata.errors import ConfigError
from mmdata.storage import sync, temp_name
from mmdata.trainer.checkpoint import IMAGE_TOKENIZER, latest, open_checkpoint

FORMAT = 1


def export_model(path: Path, out: Path) -> Path:
    """Write the averaged weights of a checkpoint to a new folder, and return it.

    path  a checkpoint, or the folder of a training run: then its newest

    Raises ConfigError where there is no checkpoint, or `out` is there already.
    """
    checkpoint = open_checkpoint(path) if (path / "state.json").exists() else latest(path)
    if checkpoint is None:
        raise ConfigError(f"{path}: no checkpoint is in it", hint="give the --out of a training run, or a folder `step-...`")
    if out.exists():
        raise ConfigError(f"{out} is there already", hint="give the name of a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = out.parent / temp_name()
    temp.mkdir()
    shutil.copyfile(checkpoint.path / "ema.safetensors", temp / "model.safetensors")
    shutil.copyfile(checkpoint.path / "tokenizer.json", temp / "tokenizer.json")
    if (checkpoint.path / IMAGE_TOKENIZER).exists():
        shutil.copytree(checkpoint.path / IMAGE_TOKENIZER, temp / IMAGE_TOKENIZER)
    facts = {
        "format": FORMAT, "model_type": "mmdata", "step": checkpoint.step, "tokens": checkpoint.state["counters"]["tokens"],
        "sizes": checkpoint.state["sizes"], "trained_on": checkpoint.state["identity"], "config": checkpoint.state["config"],
    }  # fmt: skip
    (temp / "config.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for file in temp.iterdir():
        sync(file)
    temp.rename(out)
    sync(out.parent)
    return out
