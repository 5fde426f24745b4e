"""Checkpoints: a folder that is there whole or not at all.

`step-000200/` holds `model.safetensors`, `ema.safetensors`, `optim.safetensors`, `tokenizer.json` and `state.json`, which
carries the SHA-256 of the others. It is written under another name, synced and renamed; one that does not match its own
digests is passed over, with a word, for the one before. Tensors are whole, however many ranks shared them: any number of ranks
can go on from them. Nothing is ever unpickled, and no state of a random generator is in it, as none is used.
"""

import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdata.errors import ConfigError, RunError, first_line
from mmdata.failpoint import step
from mmdata.storage import TEMP_PREFIX, abandoned, digest_file, sync, temp_name
from mmdata.text import Tokenizer
from mmdata.trainer.config import KeepConfig, TrainConfig
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.model import Transformer
from mmdata.trainer.sizes import Sizes
from mmdata.trainer.vision import ImageTokenizer

FILES = ("model.safetensors", "ema.safetensors", "optim.safetensors", "tokenizer.json")
IMAGE_TOKENIZER = "image_tokenizer"  # the folder of the one that was trained with, where one was
FORMAT = 2
SHOWN = 4


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
        try:
            return TrainConfig.model_validate(self.state["config"])
        except ValidationError as error:
            hint = "use the mmdata that wrote it, or another --out"
            raise ConfigError(f"{self.path}: its config is none of this mmdata: {first_line(error)}", hint=hint) from error

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return Tokenizer((self.path / "tokenizer.json").read_text(encoding="utf-8"))

    def encoders(self, device: str = "cpu") -> Encoders:
        """Return the image encoders that it was trained with."""
        folder = self.path / IMAGE_TOKENIZER
        return Encoders(self.config, self.tokenizer.size, device, folder if folder.exists() else None)

    def model(self, *, ema: bool = True) -> Transformer:
        """Return the model, with averaged weights unless told otherwise."""
        model = Transformer(self.config, Sizes(**self.state["sizes"]))
        model.load_state_dict(self.tensors("ema" if ema else "model"))
        return model.eval()

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of `model`, `ema` or `optim`, by name."""
        return dict(load_file(self.path / f"{part}.safetensors"))


def save(
    folder: Path,
    state: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    tokenizer: Tokenizer,
    images: ImageTokenizer | None,
    keep: KeepConfig,
) -> Path:
    """Write a checkpoint of `state["step"]` and return its folder; remove those that `keep` lets go.

    tensors  `model`, `ema` and `optim`, each by name, in full
    images   the image tokenizer that was trained, if any: it is kept within

    Raises RunError when it cannot be written: those before stay.
    """
    final = folder / name_of(state["step"])
    temp = folder / temp_name()
    for left in folder.glob(f"{TEMP_PREFIX}*"):
        if abandoned(left.name):
            shutil.rmtree(left, ignore_errors=True)
    try:
        temp.mkdir(parents=True)
        _write(temp, state, tensors, tokenizer, images)
        with step("aside"):
            if final.exists():  # an earlier attempt that was found damaged
                shutil.rmtree(final)
        with step("rename"):
            temp.rename(final)
            sync(folder)
        _drop(folder, state["step"], keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise RunError(
            f"{final}: the checkpoint cannot be written: {error}",
            hint="make room on the disk and give the same command: it goes on from the checkpoint before",
        ) from error
    return final


def name_of(number: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{number:06d}"


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=_number)


def _write(
    temp: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]], tokenizer: Tokenizer, images: ImageTokenizer | None
) -> None:
    for name, values in tensors.items():
        with step("weights"):
            save_file(values, temp / f"{name}.safetensors")
    with step("facts"):
        if images is not None:
            images.save(temp / IMAGE_TOKENIZER)
        (temp / "tokenizer.json").write_text(tokenizer.data, encoding="utf-8")
        digests = {name: digest_file(temp / name) for name in FILES}
        facts = {"format": FORMAT, **state, "files": digests}
        (temp / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    with step("settle"):
        for path in temp.iterdir():
            sync(path)


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; ConfigError when it is of another version of mmdata."""
    for path in reversed(_all(folder)):
        try:
            found = _opened(path)
        except ConfigError as error:
            sys.stderr.write(f"{error.message}; using the one before\n")
        else:
            return _of_this_version(found)
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, or refuse it by the file that is wrong."""
    return _of_this_version(_opened(path))


def _of_this_version(found: Checkpoint) -> Checkpoint:
    if found.state.get("format") != FORMAT:
        raise ConfigError(f"{found.path} is of another version of mmdata", hint="use that version, or another --out")
    return found


def _opened(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a checkpoint: {error}", hint="give a folder `step-...` of a training run") from error
    for name in FILES:
        if not (path / name).is_file() or digest_file(path / name) != state["files"][name]:
            raise ConfigError(f"{path / name}: missing or damaged", hint="use an earlier checkpoint")
    return Checkpoint(path, state)


def check_same(found: Checkpoint, config: TrainConfig, identity: Mapping[str, str]) -> None:
    """Refuse a checkpoint of another config, or of other data, by what differs.

    identity  digests of what training reads, by name
    """
    hint = "use another --out, or the same config"
    theirs, ours = _flat(found.config.stream), _flat(config.stream)
    differ = [f"`{key}` {theirs.get(key)}, now {ours.get(key)}" for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if differ:
        raise ConfigError(f"{found.path} was trained with another config: {_some(differ)}", hint=hint)
    known = found.state["identity"]
    others = [
        f"{name} {known.get(name, 'none')[:12]}, now {identity.get(name, 'none')[:12]}"
        for name in {**known, **identity}
        if known.get(name) != identity.get(name)
    ]
    if others:
        raise ConfigError(f"{found.path} was trained with another {_some(others)}", hint="use another --out, or the same data")


def _drop(folder: Path, number: int, keep: KeepConfig) -> None:
    """Remove checkpoints up to a step that are neither among the last nor among the best.

    Those of later steps are damaged, or this would not be the newest: they count for nothing.
    """
    paths = [path for path in _all(folder) if _number(path) <= number]
    scored = [(value, path) for path in paths if (value := _score(path, keep)) is not None]
    best = [path for _, path in sorted(scored, reverse=keep.highest)[: keep.best]]
    for path in paths[: -keep.last]:
        if path not in best:
            with step("drop"):
                away = path.rename(folder / temp_name())  # never half of one under its name
                shutil.rmtree(away)


def _score(path: Path, keep: KeepConfig) -> float | None:
    try:
        value = json.loads((path / "state.json").read_text(encoding="utf-8"))["metrics"].get(keep.metric)
    except (OSError, ValueError, LookupError):
        return None
    return None if value is None or not math.isfinite(value) else float(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _some(differ: list[str]) -> str:
    return "; ".join(differ[:SHOWN]) + (f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else "")
