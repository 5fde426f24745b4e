"""The student: an open_clip model described by open_clip's own configuration file.

EfficientNet-Lite0 at 128 pixels looks, a text transformer of width 64 reads. The default tokenizer's 49,408 rows are
most of the text tower, so its width is what fits a checkpoint of 15 MB in half precision.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import open_clip
import torch
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from recipes.tiny_clip.teachers import DIMENSIONS, IMAGE_MODEL

Transform = Callable[[Image.Image], Tensor]

CONTEXT_TOKENS = 32
TEXT_WIDTH = 64
IMAGE_SIDE = 128

CONFIG = {
    "model_cfg": {
        "embed_dim": DIMENSIONS,
        "vision_cfg": {
            "timm_model_name": IMAGE_MODEL,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": IMAGE_SIDE,
        },
        "text_cfg": {
            "context_length": CONTEXT_TOKENS,
            "vocab_size": 49408,
            "width": TEXT_WIDTH,
            "heads": 4,
            "layers": 4,
        },
    },
    # The means are those of the teacher's weights. "longest" pads instead of cropping: flags and tools are long.
    "preprocess_cfg": {
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
        "resize_mode": "longest",
        "fill_color": 255,
    },
}


def create(folder: Path) -> tuple[CLIP, Transform]:
    """Write the configuration into `folder` and return an untrained model with its transform."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    return model, cast("Transform", transform)


def load(folder: Path) -> tuple[CLIP, Transform]:
    """Return the trained model and its transform the way any user of open_clip would."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), cast("Transform", transform)


def save(model: CLIP, folder: Path) -> None:
    """Write the weights in half precision; open_clip reads them back into float32."""
    halves = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(
        {name: value.contiguous() for name, value in halves.items()},
        folder / "open_clip_model.safetensors",
        metadata={"format": "pt"},
    )


@torch.inference_mode()
def embed_images(model: CLIP, pixels_NCHW: Tensor) -> Tensor:
    """Return (N, D) unit vectors."""
    return torch.cat([model.encode_image(batch, normalize=True) for batch in torch.split(pixels_NCHW, 64)])


@torch.inference_mode()
def embed_texts(model: CLIP, texts: Sequence[str]) -> Tensor:
    """Return (N, D) unit vectors."""
    tokens_NT = open_clip.tokenize(list(texts), context_length=CONTEXT_TOKENS)
    return torch.cat([model.encode_text(batch, normalize=True) for batch in torch.split(tokens_NT, 256)])
