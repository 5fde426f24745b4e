"""Training the net of a tokenizer: one loop, and a file from which it goes on.

The unfinished file holds weights, their averages, the optimizer and the loader's state; it is replaced as a whole. All chance
(initial weights, the order, posteriors, restarts of codes) is keyed by the seed and the step, so a training that was stopped
and goes on gives the same bytes as one that was not.

Axes: B images, H W pixels, C colours.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmdata.errors import ConfigError, RunError, first_line
from mmdata.loader import Loader, keyed
from mmdata.storage import sync, temp_name
from mmdata.trainer.vision.autoencoders import Autoencoder
from mmdata.trainer.vision.config import FitConfig, LossConfig
from mmdata.trainer.vision.images import next_images
from mmdata.trainer.vision.pixels import to_unit
from mmdata.trainer.vision.progress import Progress

BETAS = (0.9, 0.99)


def reconstruction_loss(made_BHWC: Tensor, images_BHWC: Tensor, loss: LossConfig) -> Tensor:
    """Return the mean distance of pixels in [-1, 1], plus `edges` times that of the differences of neighbours."""
    off_BHWC = made_BHWC - images_BHWC
    pixels = off_BHWC.abs().mean() if loss.pixels == "l1" else off_BHWC.square().mean()
    # The difference of differences is the difference of the error.
    edges = off_BHWC.diff(dim=1).abs().mean() + off_BHWC.diff(dim=2).abs().mean()
    return pixels + loss.edges * edges


def learning_rate(fit: FitConfig, step: int) -> float:
    """Return the rate of a step: a linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / (fit.warmup + 1))
    return fit.lr * warm * (1 + math.cos(math.pi * step / fit.steps)) / 2


class Fit:
    """Everything that changes while a tokenizer is trained.

    made_of  names config and corpus: an unfinished file of others is refused
    """

    def __init__(
        self, tokenizer: Autoencoder, fit: FitConfig, loader: Loader[list[np.ndarray]], seed: int, unfinished: Path, made_of: str
    ) -> None:
        self.tokenizer, self.fit, self.loader, self.seed = tokenizer, fit, loader, seed
        self.unfinished, self.made_of = unfinished, made_of
        self.optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=fit.lr, betas=BETAS, weight_decay=0.0, fused=True)
        self.average = {name: value.detach().clone() for name, value in tokenizer.named_parameters()}
        self.device = next(tokenizer.parameters()).device
        self.step = self.images = 0
        if unfinished.exists():
            self._resume()

    def run(self) -> None:
        """Train to the last step; the tokenizer then has the averaged weights."""
        progress = Progress(self.fit.steps, first=self.step)
        self.tokenizer.train()
        while self.step < self.fit.steps:
            loss = self._update(next_images(self.loader).to(self.device))
            progress.tell(self.step, f"loss {loss:.4f}", images=self.images)
            if self.step % self.fit.save_every == 0 and self.step < self.fit.steps:
                self._save()
        with torch.no_grad():
            for name, value in self.tokenizer.named_parameters():
                value.copy_(self.average[name])
        self.tokenizer.eval()

    def _update(self, pixels_BHWC: Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.fit, self.step)
        images_BHWC = to_unit(pixels_BHWC)
        made_BHWC, penalty = self.tokenizer.reconstruct(images_BHWC, keyed(self.seed, self.step, "tokenizer"))
        loss = reconstruction_loss(made_BHWC, images_BHWC, self.fit.loss) + penalty
        self.optimizer.zero_grad(set_to_none=True)
        reached = float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.tokenizer.parameters(), self.fit.clip)
        if not math.isfinite(reached) or not math.isfinite(float(norm)):
            raise RunError(
                f"step {self.step}: the loss or its gradient is not finite",
                hint="lower `fit.lr` or raise `fit.warmup`; remove the unfinished file to start anew",
            )
        self.optimizer.step()
        self.step, self.images = self.step + 1, self.images + len(pixels_BHWC)
        # A young average follows closely, so that it does not remember the initial weights.
        decay = min(self.fit.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.tokenizer.parameters()), 1 - decay)
        return reached

    def _save(self) -> None:
        moments = {
            f"optim/{name}/{key}": value
            for name, parameter in self.tokenizer.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        tensors = {f"model/{name}": value for name, value in self.tokenizer.state_dict().items()}
        tensors |= moments | {f"average/{name}": value for name, value in self.average.items()}
        metadata = {"made_of": self.made_of, "step": str(self.step), "loader": json.dumps(self.loader.state_dict())}
        temp = self.unfinished.parent / temp_name()
        try:
            self.unfinished.parent.mkdir(parents=True, exist_ok=True)
            temp.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata))
            sync(temp)
            temp.replace(self.unfinished)
        except OSError as error:
            temp.unlink(missing_ok=True)
            raise RunError(
                f"{self.unfinished}: cannot be written: {error}",
                hint="make room on the disk and give the same command: it goes on from what was saved before",
            ) from error

    def _resume(self) -> None:
        try:
            with safe_open(self.unfinished, "pt", device=str(self.device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{self.unfinished}: damaged: {first_line(error)}", hint="remove it: the training starts anew"
            ) from error
        if metadata.get("made_of") != self.made_of:
            raise ConfigError(
                f"{self.unfinished}: the unfinished training of another config or corpus",
                hint="remove it to start anew, or use another --out",
            )
        self.tokenizer.load_state_dict(_below("model/", tensors))
        self.average = {name: tensors[f"average/{name}"] for name in self.average}  # a file has another order
        for name, parameter in self.tokenizer.named_parameters():
            self.optimizer.state[parameter] = _below(f"optim/{name}/", tensors)
        self.step = int(metadata["step"])
        self.loader.restore(metadata["loader"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
