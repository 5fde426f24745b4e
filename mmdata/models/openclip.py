"""CLIP scores by open_clip; the only file that imports it.

Decided here: one batch shape, the last batch padded with zeros, a fixed number of threads and no autocast, so that the
scores of a partition do not depend on the machine's load or on the executor. Preprocessing is open_clip's own transform.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from mmdata.errors import ConfigError, did_you_mean
from mmdata.models.spec import OpenClip


class OpenClipScorer:
    """A loaded model; `score` gives the cosine similarity of each pair."""

    def __init__(self, spec: OpenClip, device: str, threads: int) -> None:
        self.spec, self.device, self.threads = spec, device, threads
        name, pretrained = _names(spec)
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return the cosine similarity of each pair, (N,) float32 in [-1, 1]."""
        step = self.spec.batch
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            parts = [self._batch(images[i : i + step], texts[i : i + step]) for i in range(0, len(images), step)]
        finally:
            torch.set_num_threads(before)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    @torch.inference_mode()
    def _batch(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
        tokens = self.tokenizer(list(texts))
        padded = self.spec.batch - len(images)
        pixels = torch.nn.functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, padded)).to(self.device)
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, padded)).to(self.device)
        left = self.model.encode_image(pixels, normalize=True).float()
        right = self.model.encode_text(tokens, normalize=True).float()
        scores: np.ndarray = (left * right).sum(-1)[: len(images)].cpu().numpy()
        return scores


def fetch_weights(model: str, tag: str | None) -> Path:
    """Return the local file of published weights, fetching it from the hub when it is not in the cache."""
    try:
        if model.startswith("hf-hub:"):
            return Path(open_clip.download_pretrained_from_hf(model.removeprefix("hf-hub:")))
        config = open_clip.get_pretrained_cfg(model, tag)
        if not config:
            known = [name for arch, name in open_clip.list_pretrained() if arch == model]
            names = known or open_clip.list_models()
            raise ConfigError(
                f"open_clip knows no `{model}` / `{tag}`", hint=did_you_mean((tag or model) if known else model, names)
            )
        return Path(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the weights of `{model}` / `{tag}` cannot be fetched: {error}",
            hint="where no hub can be reached, copy the file here and give its path as `weights:`",
        ) from error


def _names(spec: OpenClip) -> tuple[str, str | None]:
    folder = spec.folder()
    return (f"local-dir:{folder}", None) if folder is not None else (spec.model, spec.weights)
