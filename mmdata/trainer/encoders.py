"""What turns pictures into what the model reads and back: frozen, and run for a whole batch on the model's device.

gen   numbers or codes of an image that is generated: patches of pixels, or an image tokenizer
und   numbers of an image that is understood, where those differ: patches of pixels, or features of a CLIP
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdata.errors import ConfigError
from mmdata.storage import digest_json
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.sizes import Sizes
from mmdata.trainer.vision import ImageTokenizer, load_tokenizer, make_tokenizer
from mmdata.trainer.vision.config import PatchesSpec


class Encoders:
    """The encoders of a config, on one device. Errors: a tokenizer that is not there or does not fit, as ConfigError."""

    def __init__(self, config: TrainConfig, vocab: int, device: str = "cpu", tokenizer: Path | None = None) -> None:
        image = config.image
        self.config, self.device = config, device
        self.gen: ImageTokenizer = _generated(config, tokenizer).to(device).eval()
        self.und: Callable[[Tensor], Tensor] | None = None
        if image.repr.und == "pixel_patch" and image.repr.gen != "pixel_patch":
            self.und = make_tokenizer(PatchesSpec(kind="patches", factor=image.patch)).encode
        elif image.repr.und == "clip":
            self.und = ClipFeatures(config, device)
        self.sizes = self._sizes(vocab)

    def _sizes(self, vocab: int) -> Sizes:
        size = self.config.image.size
        one = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=self.device)
        side = size // self.gen.factor
        und = self.und(one).shape[1:] if self.und is not None else (0, 0)
        digest = digest_json(
            [self.gen.digest, *(self.config.image.clip.digests() if self.config.image.repr.und == "clip" else ())]
        )
        codes = self.gen.codes
        return Sizes(vocab, side * side, 0 if codes else self.gen.channels, codes, int(und[0]), int(und[1]), digest)

    @property
    def trained(self) -> ImageTokenizer | None:
        """The image tokenizer that was trained, if one is used."""
        return None if self.config.image.repr.gen == "pixel_patch" else self.gen

    @torch.inference_mode()
    def encode(self, pixels_IHWC: Tensor) -> Tensor:
        """Return codes, (I, N) int64, or numbers, (I, N, P) float32, of images as uint8."""
        return self.gen.encode(pixels_IHWC)

    @torch.inference_mode()
    def decode(self, values: Tensor) -> np.ndarray:
        """Return images, (I, size, size, 3) uint8, of codes or numbers."""
        side = self.config.image.size // self.gen.factor
        pixels: np.ndarray = self.gen.decode(values.to(self.device), (side, side)).cpu().numpy()
        return pixels

    @torch.inference_mode()
    def understand(self, pixels_IHWC: Tensor) -> Tensor:
        """Return the features of images to be understood, (I, N, F) float32."""
        if self.und is None:
            raise AssertionError("images to be understood are the same as generated ones here")
        return self.und(pixels_IHWC)


class ClipFeatures:
    """What a frozen CLIP sees at each place of an image; features are brought to length sqrt(F), for norms vary by model."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self._open = ExitStack()
        self.towers = self._open.enter_context(config.image.clip.open(device, config.threads or torch.get_num_threads()))

    def __call__(self, pixels_IHWC: Tensor) -> Tensor:
        """Return features, (I, N, F) float32."""
        found = self.towers.patch_features(list(pixels_IHWC.cpu().numpy()))
        scaled: Tensor = torch.nn.functional.normalize(found, dim=-1) * math.sqrt(found.shape[-1])
        return scaled


def _generated(config: TrainConfig, folder: Path | None) -> ImageTokenizer:
    image = config.image
    if image.repr.gen == "pixel_patch":
        return make_tokenizer(PatchesSpec(kind="patches", factor=image.patch))
    found = load_tokenizer(folder or Path(image.tokenizer or ""))
    if bool(found.codes) != (image.repr.gen == "vq"):
        kind = "codes" if found.codes else "numbers"
        raise ConfigError(
            f"image.tokenizer {image.tokenizer}: makes {kind}, and `image.repr.gen: {image.repr.gen}` needs the other",
            hint="codes are for `vq` (kinds kmeans, vq, fsq), numbers for `vae` (kind kl)",
        )
    if image.size % found.factor:
        raise ConfigError(
            f"image.tokenizer {image.tokenizer}: a token is {found.factor} pixels wide; `image.size` {image.size} is no multiple",
            hint=f"set `image.size` to a multiple of {found.factor}",
        )
    return found
