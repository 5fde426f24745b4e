"""A tokenizer's folder: `weights.safetensors` and `tokenizer.json`, which holds the spec and the SHA-256 of all other files.

Decided here: a folder is there whole or not at all: it is written under another name, synced and renamed. Nothing is ever
unpickled, and what does not match its own digests is refused by the file's name.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from mmdata.errors import ConfigError, RunError, first_line
from mmdata.failpoint import step
from mmdata.storage import TEMP_PREFIX, abandoned, digest_bytes, sync, temp_name
from mmdata.trainer.vision.autoencoders import FsqTokenizer, KlTokenizer, VqTokenizer
from mmdata.trainer.vision.base import ImageTokenizer
from mmdata.trainer.vision.config import FsqSpec, KlSpec, KmeansSpec, PatchesSpec, Spec
from mmdata.trainer.vision.patches import KmeansTokenizer, PatchTokenizer

FORMAT = 1
WEIGHTS, FACTS = "weights.safetensors", "tokenizer.json"
_AGAIN = "restore it from a copy, or train it anew: `mmdata tokenizer train CONFIG --out FOLDER`"
_SPEC: TypeAdapter[Spec] = TypeAdapter(Spec)


def make_tokenizer(spec: Spec) -> ImageTokenizer:
    """Return a tokenizer of a kind, with weights that were not trained."""
    if isinstance(spec, PatchesSpec):
        return PatchTokenizer(spec)
    if isinstance(spec, KmeansSpec):
        return KmeansTokenizer(spec)
    if isinstance(spec, FsqSpec):
        return FsqTokenizer(spec)
    return KlTokenizer(spec) if isinstance(spec, KlSpec) else VqTokenizer(spec)


def check_vacant(folder: Path) -> None:
    """Raise ConfigError when a folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something else already", hint="name a folder that does not exist yet")


def clear_left(folder: Path) -> None:
    """Remove what writers that were killed left in a folder."""
    for left in folder.glob(f"{TEMP_PREFIX}*"):
        if not abandoned(left.name):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_tokenizer(tokenizer: ImageTokenizer, folder: Path, others: Mapping[str, bytes] | None = None) -> None:
    """Write a tokenizer, and other files beside it, to a new folder: whole or not at all.

    Raises ConfigError when the folder holds something, RunError when it cannot be written.
    """
    check_vacant(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    files = {WEIGHTS: save(tensors), **(others or {})}
    facts = {
        "format": FORMAT, "spec": tokenizer.spec.model_dump(mode="json"), "digest": tokenizer.digest,
        "files": {name: digest_bytes(data) for name, data in files.items()},
    }  # fmt: skip
    files[FACTS] = json.dumps(facts, indent=1).encode()
    clear_left(folder.parent)
    temp = folder.parent / temp_name()
    try:
        temp.mkdir(parents=True)
        for name, data in files.items():
            with step("weights"):
                (temp / name).write_bytes(data)
            with step("settle"):
                sync(temp / name)
        with step("rename"):
            temp.rename(folder)
            sync(folder.parent)
    except OSError as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise RunError(
            f"{folder}: the tokenizer cannot be written: {error}", hint="make room on the disk and give the same command again"
        ) from error


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """Return the tokenizer of a folder, ready for use, on the CPU.

    Raises ConfigError for what is missing, damaged or not a tokenizer's, by the file's name.
    """
    facts = _facts(folder)
    data = _checked(folder, WEIGHTS, facts)
    try:
        tokenizer = make_tokenizer(_SPEC.validate_python(facts["spec"]))
        tokenizer.load_state_dict(load(data))
    except (ValidationError, SafetensorError, RuntimeError, LookupError) as error:
        raise ConfigError(f"{folder / FACTS}: does not fit {WEIGHTS}: {first_line(error)}", hint=_AGAIN) from error
    if tokenizer.digest != facts.get("digest"):
        raise ConfigError(f"{folder / FACTS}: its digest is not that of the spec and the weights", hint=_AGAIN)
    return tokenizer.eval().requires_grad_(False)


def read_beside(folder: Path, name: str) -> bytes:
    """Return a file that was written beside a tokenizer, after checking its digest; ConfigError names what is wrong."""
    return _checked(folder, name, _facts(folder))


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{folder / FACTS}: {error.strerror or error}: not the folder of an image tokenizer",
            hint="give the --out of `mmdata tokenizer train`",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{folder / FACTS}: damaged: {first_line(error)}", hint=_AGAIN) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise ConfigError(
            f"{folder / FACTS}: not the facts of an image tokenizer", hint="give the --out of `mmdata tokenizer train`"
        )
    if facts.get("format") != FORMAT:
        raise ConfigError(
            f"{folder / FACTS}: format {facts.get('format')!r}, not {FORMAT}",
            hint="use the mmdata that wrote it, or train it anew",
        )
    return facts


def _checked(folder: Path, name: str, facts: dict[str, Any]) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{folder / name}: {error.strerror or error}", hint=_AGAIN) from error
    if digest_bytes(data) != facts["files"].get(name):
        raise ConfigError(f"{folder / name}: damaged: its SHA-256 is not the one in {FACTS}", hint=_AGAIN)
    return data
