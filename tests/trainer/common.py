"""Small models of every kind, in float64, for the trainer's tests."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdata.loader import keyed
from mmdata.text import Tokenizer, train_tokenizer
from mmdata.trainer import TrainConfig
from mmdata.trainer.batch import Batch, collate, fill
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Block, Sequencer, Tokens
from mmdata.trainer.model import Transformer
from mmdata.trainer.paths import path_of
from mmdata.trainer.vision import make_tokenizer
from mmdata.trainer.vision.config import KmeansSpec

ROW = 160
# The objectives of the grid, as keys of a config.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ar": {"image": {"objective": "ar", "repr": {"gen": "vq"}}, "mask": "causal"},
    "transfusion": {"image": {"objective": "flow"}, "mask": "span_bidir"},
    "masked": {"text": {"objective": "mdm"}, "image": {"objective": "mdm", "repr": {"gen": "vq"}}, "mask": "full"},
    "dual": {"text": {"objective": "mdm"}, "image": {"objective": "flow"}, "mask": "full"},
}
SHARES: dict[str, dict[str, Any]] = {
    "dense": {}, "moe": {"params": {"share": "moe", "experts": 4}}, "mot": {"params": {"share": "mot"}},
}  # fmt: skip
GRID = [(objective, share) for objective in OBJECTIVES for share in SHARES]


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return dictionaries put over one another, key by key."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = found.get(key)
            found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def config(*parts: dict[str, Any], **changes: object) -> TrainConfig:
    """Return a tiny config with changes."""
    base: dict[str, Any] = {
        "name": "t", "corpus": ".", "image": {"size": 8, "patch": 4}, "model": {"width": 48, "layers": 2, "heads": 2},
        "layout": {"row_tokens": ROW, "max_text_tokens": 12}, "text": {"vocab": 320}, "threads": 1,
    }  # fmt: skip
    return TrainConfig.model_validate(merged(base, *parts, changes))


@cache
def words() -> Tokenizer:
    """Return a tokenizer of a few words."""
    return train_tokenizer(["a red square", "a blue bar"] * 4, 320)


def codebook(folder: Path, codes: int = 16) -> Path:
    """Write an image tokenizer of random patches, once a folder."""
    path = folder / "codebook"
    if not path.exists():
        made = make_tokenizer(KmeansSpec(kind="kmeans", factor=4, codes=codes))
        made.load_state_dict({"codebook_KP": torch.from_numpy(keyed("codes").uniform(-1, 1, (codes, 48)).astype(np.float32))})
        made.save(path)
    return path


@dataclass
class Small:
    """A tiny model and all that feeds it."""

    config: TrainConfig
    encoders: Encoders
    sequencer: Sequencer
    model: Transformer

    def tokens(self, order: str, key: object = 0) -> Tokens:
        """Lay a document out that `order` spells: t = text, i = image."""
        return self.sequencer.lay_out(self.blocks(order), keyed("noise", order, key))

    def blocks(self, order: str) -> list[Block]:
        """Return the blocks of a document."""
        return [words().encode(f"a red {place}") if kind == "t" else picture(place) for place, kind in enumerate(order)]

    def states(self, batch: Batch) -> torch.Tensor:
        """Return hidden states of a batch, (B, L, D)."""
        inputs, _ = fill(batch, self.encoders, path_of(self.config.image).mix, torch.float64)
        found: torch.Tensor = self.model(inputs, batch.sight.mask()).states_BLD
        return found


def picture(key: object, size: int = 8) -> np.ndarray:
    """Return an image that a key decides."""
    return keyed("picture", key).integers(0, 256, (size, size, 3), dtype=np.uint8)


def small(folder: Path, *parts: dict[str, Any], **changes: object) -> Small:
    """Return a tiny model in float64, all of whose weights matter."""
    settings = merged({}, *parts, changes)
    if settings.get("image", {}).get("repr", {}).get("gen") == "vq":
        settings = merged(settings, {"image": {"tokenizer": str(codebook(folder))}})
    made = config(settings)
    encoders = Encoders(made, words().size)
    torch.manual_seed(0)
    model = Transformer(made, encoders.sizes).double()
    for name, value in model.named_parameters():
        if value.dim() > 1 and not float(value.detach().abs().max()):
            torch.nn.init.normal_(model.get_parameter(name), std=0.1)
        with torch.no_grad():
            value.add_(torch.randn(value.shape, dtype=torch.float64), alpha=0.02)  # towers begin alike, and must not here
    return Small(made, encoders, Sequencer(made, words(), encoders.sizes), model)


def batch_of(*rows: list[Tokens], length: int = ROW) -> Batch:
    """Pack rows."""
    return collate(list(rows), length)
