"""Checkpoints: a folder that is there whole or not at all.

`step-000200/` holds `model.safetensors`, `ema.safetensors`, `optim.safetensors`, `tokenizer.json` and `state.json`, which
carries the SHA-256 of the others. It is written under another name, synced and renamed; one that does not match its own
digests is passed over, with a word, for the one before. Nothing is ever unpickled.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from mmdata.errors import ConfigError, RunError
from mmdata.failpoint import step
from mmdata.storage import TEMP_PREFIX, abandoned, digest_file, sync, temp_name
from mmdata.text import Tokenizer
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.model import Transformer

FILES = ("model.safetensors", "ema.safetensors", "optim.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that matches its digests."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    @property
    def config(self) -> TrainConfig:
        """The config that it was trained with."""
        return TrainConfig.model_validate(self.state["config"])

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return Tokenizer((self.path / "tokenizer.json").read_text(encoding="utf-8"))

    def encoders(self, device: str = "cpu") -> Encoders:
        """Return the image encoders that it was trained with."""
        return Encoders(self.config, self.tokenizer.size, device)

    def model(self, *, ema: bool = True) -> Transformer:
        """Return the model, with averaged weights unless told otherwise."""
        model = Transformer(self.config, self.encoders().sizes)
        model.load_state_dict(load_file(self.path / ("ema.safetensors" if ema else "model.safetensors")))
        return model.eval()


def save(
    folder: Path,
    state: dict[str, Any],
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: optim.Optimizer,
    tokenizer: Tokenizer,
) -> Path:
    """Write a checkpoint of `state["step"]` and return its folder; RunError when it cannot be written: those before stay."""
    final = folder / f"step-{state['step']:06d}"
    temp = folder / temp_name()
    tensors = {"model": model.state_dict(), "ema": ema, "optim": _flat(optimizer, model)}
    for left in folder.glob(f"{TEMP_PREFIX}*"):
        if abandoned(left.name):
            shutil.rmtree(left, ignore_errors=True)
    try:
        temp.mkdir(parents=True)
        _write(temp, state, tensors, tokenizer)
        with step("aside"):
            if final.exists():  # an earlier attempt that was found damaged
                shutil.rmtree(final)
        with step("rename"):
            temp.rename(final)
            sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise RunError(
            f"{final}: the checkpoint cannot be written: {error}",
            hint="make room on the disk and give the same command: it goes on from the checkpoint before",
        ) from error
    return final


def _write(temp: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]], tokenizer: Tokenizer) -> None:
    for name, values in tensors.items():
        with step("weights"):
            save_file(values, temp / f"{name}.safetensors")
    with step("facts"):
        (temp / "tokenizer.json").write_text(tokenizer.data, encoding="utf-8")
        digests = {name: digest_file(temp / name) for name in FILES}
        (temp / "state.json").write_text(json.dumps({**state, "files": digests}, indent=1), encoding="utf-8")
    with step("settle"):
        for path in temp.iterdir():
            sync(path)


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(path)
        except ConfigError as error:
            sys.stderr.write(f"{error.message}; using the one before\n")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, or refuse it by the file that is wrong."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a checkpoint: {error}", hint="give a folder `step-...` of a training run") from error
    for name in FILES:
        if not (path / name).is_file() or digest_file(path / name) != state["files"][name]:
            raise ConfigError(f"{path / name}: missing or damaged", hint="use an earlier checkpoint")
    return Checkpoint(path, state)


def load_optimizer(checkpoint: Checkpoint, optimizer: optim.Optimizer, model: nn.Module) -> None:
    """Put the optimizer's state back."""
    flat = load_file(checkpoint.path / "optim.safetensors")
    for name, parameter in model.named_parameters():
        keys = [key for key in flat if key.rpartition("/")[0] == name]
        optimizer.state[parameter] = {key.rpartition("/")[2]: flat[key].clone() for key in keys}


def _flat(optimizer: optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
