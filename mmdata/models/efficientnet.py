"""EfficientNet-Lite0 with its ImageNet weights, out of a package: features that evaluation compares images by.

It is no judge of pictures and texts, and filters nothing. It did teach the small CLIP that ships: where that was the filter,
features of a network of other origin say more.

Decided here: one batch shape, the last batch padded with zeros, and a fixed number of threads, so that an image's numbers do not
depend on its neighbours. Input as in its training: short side 256 by bicubic, the middle 224, (x - 127) / 128.
Axes: N images, D features, K classes, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdata.models.numerics import held_to
from mmdata.models.packages import image_weights, wanted

FEATURES, CLASSES = 1280, 1000
SHORT, SIDE, BATCH = 256, 224, 8


class EfficientNet:
    """The network, loaded; `device` is `cpu` or `cuda`. Raises ConfigError when the extra `evaluate` is not installed."""

    def __init__(self, device: str = "cpu", threads: int = 1) -> None:
        self.device, self.threads = device, threads
        self.model = _trunk().to(device)

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the last layer sees of each image, (H, W, 3) uint8 of any size: (N, 1280) float32, no unit."""
        body, head = self.model.forward_features, self.model.forward_head
        return self._batches(images, lambda x: head(body(x), pre_logits=True), FEATURES)

    def classes(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probability of each class of ImageNet, (N, 1000) float32."""
        return self._batches(images, lambda x: self.model(x).softmax(-1), CLASSES)

    @torch.inference_mode()
    def _batches(self, images: Sequence[np.ndarray], run: Callable[[torch.Tensor], torch.Tensor], width: int) -> np.ndarray:
        found = np.zeros((len(images), width), np.float32)
        with held_to(self.threads):
            for start in range(0, len(images), BATCH):
                chunk = images[start : start + BATCH]
                pixels_NCHW = torch.zeros(BATCH, 3, SIDE, SIDE)
                pixels_NCHW[: len(chunk)] = torch.from_numpy(np.stack([_prepared(image) for image in chunk]))
                found[start : start + BATCH] = run(pixels_NCHW.to(self.device))[: len(chunk)].float().cpu().numpy()
        return found


def _prepared(image: np.ndarray) -> np.ndarray:
    """Return an image as the network takes it, (3, 224, 224) float32; what is smaller than 256 is enlarged."""
    picture = Image.fromarray(image)
    scale = SHORT / min(picture.size)
    width, height = (max(SHORT, round(side * scale)) for side in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    cut = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    pixels: np.ndarray = (np.asarray(cut, np.float32).transpose(2, 0, 1) - 127) / 128
    return pixels


def _trunk() -> Any:  # noqa: ANN401 - timm has no types
    with wanted():
        import timm

        path = image_weights()
    model = timm.create_model("tf_efficientnet_lite0")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    # Both list the same layers in the same order under different names; a mismatch would show in a shape.
    model.load_state_dict(dict(zip(model.state_dict(), saved.values(), strict=True)))
    return model.eval()
