"""What every image tokenizer is: images in, a grid of tokens out, and back; and a digest that names it.

Decided here: bytes in, bytes out, so that nobody outside knows the range of pixels; a tokenizer is frozen once it is trained,
and what it gives depends on its spec and tensors alone, which `digest` covers.

Axes: B images, H W pixels, N tokens in raster order, C numbers in a token.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmdata.errors import ConfigError
from mmdata.storage import digest_bytes, digest_json
from mmdata.trainer.vision.pixels import Grid, to_pixels, to_unit

if TYPE_CHECKING:
    from mmdata.trainer.vision.config import FsqSpec, KlSpec, KmeansSpec, PatchesSpec, VqSpec


class ImageTokenizer(nn.Module, ABC):
    """Turns images of any size that is a multiple of `factor` into tokens, and tokens into images.

    factor    pixels of a token's side
    codes     size of the codebook; 0 where tokens are continuous
    channels  numbers in a token: of a continuous one, or of the vector that stands for a code
    """

    def __init__(self, spec: "PatchesSpec | KmeansSpec | VqSpec | FsqSpec | KlSpec", *, codes: int = 0, channels: int) -> None:
        super().__init__()
        self.spec, self.factor, self.codes, self.channels = spec, spec.factor, codes, channels

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """Return the tokens of images.

        pixels_BHWC  (B, H, W, 3) uint8, on the tokenizer's device
        returns      codes (B, N) int64, or numbers (B, N, C) float32; N = (H / factor) * (W / factor)

        Raises ConfigError for sizes that are no multiple of `factor`, and for what is not RGB bytes.
        """
        height, width, colours = pixels_BHWC.shape[1:]
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"an image of {width} x {height} pixels cannot be cut into tokens of {self.factor} x {self.factor}",
                hint=f"give sizes that are multiples of {self.factor}, or a tokenizer with another `factor`",
            )
        if pixels_BHWC.dtype != torch.uint8 or colours != 3:
            raise ConfigError(
                f"a tokenizer takes RGB bytes, not {colours} channels of {pixels_BHWC.dtype}",
                hint="give (B, H, W, 3) uint8",
            )
        return self._encode(to_unit(pixels_BHWC))

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Return the images of tokens.

        tokens   as `encode` gives them
        grid     rows and columns of tokens in an image
        returns  (B, H, W, 3) uint8
        """
        return to_pixels(self._decode(tokens, grid))

    @abstractmethod
    def _encode(self, images_BHWC: Tensor) -> Tensor:
        """Return the tokens of images in [-1, 1]."""

    @abstractmethod
    def _decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Return images, about in [-1, 1]."""

    @property
    def digest(self) -> str:
        """SHA-256 of the spec and all tensors; worked out at every call."""
        tensors = {
            name: [list(value.shape), digest_bytes(value.detach().cpu().contiguous().numpy().tobytes())]
            for name, value in self.state_dict().items()
        }
        return digest_json([self.spec.model_dump(mode="json"), tensors])

    def save(self, folder: Path) -> None:
        """Write the tokenizer to a new folder, whole or not at all; ConfigError when something else is there."""
        from mmdata.trainer.vision.folder import write_tokenizer

        write_tokenizer(self, folder)
