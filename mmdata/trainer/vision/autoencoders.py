"""Tokenizers with a net: `vq`, `fsq` and `kl` differ in what happens between the encoder and the decoder, and in that alone.

Axes: B images, H W pixels or tokens, C channels, N tokens in raster order, D numbers in a token.
"""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from mmdata.trainer.vision.base import ImageTokenizer
from mmdata.trainer.vision.config import FsqSpec, KlSpec, VqSpec
from mmdata.trainer.vision.net import Decoder, Encoder
from mmdata.trainer.vision.pixels import Grid
from mmdata.trainer.vision.quantize import Codebook, Fsq, straight_through

_LOGVAR = (-30.0, 20.0)  # so that no exponential overflows; the bounds of latent diffusion's autoencoder


class Autoencoder(ImageTokenizer):
    """A tokenizer of an encoder and a decoder that are trained together.

    outputs  numbers that the encoder gives for a token
    """

    def __init__(self, spec: VqSpec | FsqSpec | KlSpec, *, codes: int = 0, channels: int, outputs: int) -> None:
        super().__init__(spec, codes=codes, channels=channels)
        self.encoder, self.decoder = Encoder(spec, outputs), Decoder(spec, channels)

    def reconstruct(self, images_BHWC: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return what becomes of images in training, (B, H, W, 3), and the loss of the middle: a scalar, weighted.

        All chance comes from `random`.
        """
        z_BND = self._features(images_BHWC)
        tokens_BND, penalty = self._middle(z_BND, random)
        return self._pixels(tokens_BND, (images_BHWC.shape[1] // self.factor, images_BHWC.shape[2] // self.factor)), penalty

    @abstractmethod
    def _middle(self, z_BND: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return what the decoder gets, and a loss."""

    def _features(self, images_BHWC: Tensor) -> Tensor:
        z_BDHW: Tensor = self.encoder(images_BHWC.permute(0, 3, 1, 2))
        return z_BDHW.flatten(2).transpose(1, 2)

    def _pixels(self, tokens_BND: Tensor, grid: Grid) -> Tensor:
        images_BCHW: Tensor = self.decoder(tokens_BND.transpose(1, 2).reshape(len(tokens_BND), -1, *grid))
        return images_BCHW.permute(0, 2, 3, 1)


class VqTokenizer(Autoencoder):
    """Codes of a learnt codebook."""

    def __init__(self, spec: VqSpec) -> None:
        super().__init__(spec, codes=spec.codes, channels=spec.dim, outputs=spec.dim)
        self.commit = spec.commit
        self.codebook = Codebook(spec.codes, spec.dim, decay=spec.decay, restart_below=spec.restart_below)

    def _middle(self, z_BND: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        quantized_BND = self.codebook(z_BND.flatten(0, 1), random).view_as(z_BND)
        return straight_through(z_BND, quantized_BND), self.commit * (z_BND - quantized_BND).square().mean()

    def _encode(self, images_BHWC: Tensor) -> Tensor:
        z_BND = self._features(images_BHWC)
        return self.codebook.codes(z_BND.flatten(0, 1)).view(z_BND.shape[:2])

    def _decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self._pixels(self.codebook.vectors_KD[tokens], grid)


class FsqTokenizer(Autoencoder):
    """Codes of rounded numbers."""

    def __init__(self, spec: FsqSpec) -> None:
        quantizer = Fsq(spec.levels)
        super().__init__(spec, codes=quantizer.num, channels=len(spec.levels), outputs=len(spec.levels))
        self.quantizer = quantizer

    def _middle(self, z_BND: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self.quantizer(z_BND), z_BND.new_zeros(())

    def _encode(self, images_BHWC: Tensor) -> Tensor:
        return self.quantizer.codes(self.quantizer(self._features(images_BHWC)))

    def _decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self._pixels(self.quantizer.vectors(tokens), grid)


class KlTokenizer(Autoencoder):
    """Continuous tokens: the posterior's mean, scaled by channel to zero mean and unit variance over the training split."""

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, spec: KlSpec) -> None:
        super().__init__(spec, channels=spec.channels, outputs=2 * spec.channels)
        self.kl_weight = spec.kl_weight
        self.register_buffer("mean_C", torch.zeros(spec.channels))
        self.register_buffer("std_C", torch.ones(spec.channels))

    def _middle(self, z_BND: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        mean_BNC, logvar_BNC = z_BND.chunk(2, -1)
        logvar_BNC = logvar_BNC.clamp(*_LOGVAR)
        noise_BNC = torch.from_numpy(random.standard_normal(tuple(mean_BNC.shape), np.float32)).to(mean_BNC.device)
        # KL(N(mean, var) || N(0, 1)) in nats a token.
        kl = (mean_BNC.square() + logvar_BNC.exp() - 1 - logvar_BNC).sum(-1).mean() / 2
        return mean_BNC + noise_BNC * (logvar_BNC / 2).exp(), self.kl_weight * kl

    def scale_to(self, tokens_MC: Tensor) -> None:
        """Make tokens like these, as `encode` gives them now, have zero mean and unit variance, channel by channel."""
        std_C, mean_C = torch.std_mean(tokens_MC.double(), 0, correction=0)
        self.mean_C.add_(mean_C * self.std_C)
        self.std_C.mul_(std_C.clamp(min=1e-6))

    def _encode(self, images_BHWC: Tensor) -> Tensor:
        mean_BNC, _ = self._features(images_BHWC).chunk(2, -1)
        return (mean_BNC - self.mean_C) / self.std_C

    def _decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self._pixels(tokens * self.std_C + self.mean_C, grid)
