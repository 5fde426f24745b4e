"""CLIP, SigLIP and their kin by open_clip; the only file that imports it.

Decided here: one batch shape, the last batch padded with zeros, a fixed number of threads and no autocast, so that the
scores of a partition do not depend on the machine's load or on the executor. Images go through open_clip's own transform up
to where it makes floats, and as bytes from there on: normalising on the device, whole batches at once, gives the same
pixels for a fraction of the time and a quarter of the memory. Embeddings are brought to length 1 in float32.

Scores are cosines for every family: SigLIP's scale and bias are for its loss and change no order.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import open_clip
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from mmdata.errors import ConfigError, ShapeError, did_you_mean, first_line
from mmdata.models.numerics import choose_dtype, device_kind, held_to, is_out_of_memory
from mmdata.models.spec import HUB, OpenClip

_NO_HUB = (
    "where no hub can be reached, copy the model here and give its path: the file as `weights:`, or its folder, with config and "
    "tokenizer, as `model:`"
)
Items = Sequence[np.ndarray] | np.ndarray
_LOADING = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError, AssertionError)


class OpenClipTowers:
    """A loaded model; also a scorer of pairs."""

    def __init__(self, spec: OpenClip, device: str, threads: int) -> None:
        self.spec, self.device, self.threads = spec, device, threads
        self.batch = spec.batch
        name = _name(spec)
        with _loading(spec):
            model, _, transform = open_clip.create_model_and_transforms(name, pretrained=spec.weights)
            self.tokens = tokens_of(name)
        self.dtype = choose_dtype(spec.dtype, device, model)
        self.model = model.to(device=device, dtype=self.dtype).eval()
        self._cut, self._mean, self._std = _byte_transform(transform)
        self._images, self._texts = self.model.encode_image, self.model.encode_text
        if spec.compile:
            self._images = torch.compile(self._images, dynamic=False)
            self._texts = torch.compile(self._texts, dynamic=False)

    @property
    def profile(self) -> dict[str, object]:
        """Device kind, dtype, batch shape, threads, torch: what the last bits of scores depend on."""
        return {
            "device": device_kind(self.device), "dtype": str(self.dtype).removeprefix("torch."), "batch": self.batch,
            "threads": self.threads, "torch": torch.__version__, "compiled": self.spec.compile,
        }  # fmt: skip

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop as open_clip does: (H, W, 3) uint8 to (S, S, 3) uint8."""
        return np.asarray(self._cut(Image.fromarray(image)))

    def embed(self, prepared: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings of images and of texts; each different text goes through its tower once."""
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        with held_to(self.threads):
            # A GPU works on the images while texts are cut into tokens here.
            left = self._embed(self.pixels, self._images, prepared)
            right = self._embed(self._ids, self._texts, self.tokens(distinct))
            images, found = _to_numpy(left), _to_numpy(right)
        return images, found[[place[text] for text in texts]] if texts else found

    @torch.inference_mode()
    def patch_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return what the image tower has seen at each place of an image before pooling, (N, places, features) float32."""
        pixels = self.pixels(np.stack([self.prepare(image) for image in images]))
        found = self.model.visual.forward_intermediates(pixels, indices=1, intermediates_only=True)
        places: torch.Tensor = found["image_intermediates"][-1].flatten(2).transpose(1, 2).float()
        return places

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return the cosine similarity of each pair, (N,) float32 in [-1, 1]."""
        if not len(images):
            return np.zeros(0, dtype=np.float32)
        left, right = self.embed([self.prepare(image) for image in images], texts)
        cosines: np.ndarray = (left * right).sum(-1)
        return cosines

    def _embed(self, load: Any, tower: Any, items: Items) -> list[torch.Tensor]:  # noqa: ANN401 - torch's callables
        return [self._one_batch(load, tower, items[i : i + self.batch]) for i in range(0, len(items), self.batch)]

    @torch.inference_mode()
    def _one_batch(self, load: Any, tower: Any, items: Items) -> torch.Tensor:  # noqa: ANN401 - torch's callables
        try:
            found: torch.Tensor = tower(load(_padded(items, self.batch)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(error)
        return torch.nn.functional.normalize(found[: len(items)].float(), dim=-1)

    def _halve(self, error: Exception) -> NoReturn:
        if self.batch == 1:
            raise MemoryError(f"one image is more than the memory holds: {error}") from error
        asked, self.batch = self.batch, self.batch // 2
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        raise ShapeError(f"memory does not hold a batch of {asked}; the next has {self.batch}") from error

    def pixels(self, bytes_BHWC: np.ndarray) -> torch.Tensor:
        """Return prepared images as the tower takes them: (B, 3, S, S) on its device, normalised."""
        pixels = torch.from_numpy(bytes_BHWC).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self._mean, self._std))
        return pixels.sub_(mean).div_(std).to(self.dtype)

    def _ids(self, ids_BT: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(ids_BT).to(self.device)


class Tokens:
    """A tokenizer that keeps the texts of its last call: models that share it cut each text once.

    Texts beyond the model's context are cut there, as open_clip does it: the last token that is kept ends the text.
    `tokenizer` is open_clip's; `cut` counts the texts that it was given.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - open_clip's
        self.tokenizer = tokenizer
        self._last: dict[str, np.ndarray] = {}
        self.cut = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the token ids of texts, (N, T) int64."""
        new = [text for text in dict.fromkeys(texts) if text not in self._last]
        ids = self.tokenizer(new).numpy().astype(np.int64) if new else ()
        self.cut += len(new)
        known = self._last | dict(zip(new, ids, strict=True))
        self._last = {text: known[text] for text in texts}
        return np.stack([self._last[text] for text in texts]) if texts else np.zeros((0, 1), np.int64)


def tokens_of(name: str) -> Tokens:
    """Return the tokenizer of a model as open_clip names it; models with the same one share it."""
    text = _config(name).get("text_cfg", {})
    own = name if text.get("hf_tokenizer_name") or "siglip" in name.lower() else "clip"
    rest = {key: text.get(key) for key in ("context_length", "tokenizer_kwargs", "tokenizer_mode")}
    return _shared_tokens(own, json.dumps(rest, sort_keys=True), name)


_SHARED: dict[tuple[str, str], Tokens] = {}


def _shared_tokens(own: str, rest: str, name: str) -> Tokens:
    if (own, rest) not in _SHARED:
        _SHARED[own, rest] = Tokens(open_clip.get_tokenizer(name))
    return _SHARED[own, rest]


def check_architecture(model: str) -> None:
    """Raise ConfigError, with near names, unless open_clip has such an architecture."""
    if model not in open_clip.list_models():
        raise ConfigError(f"open_clip knows no model `{model}`", hint=did_you_mean(model, open_clip.list_models()))


def embed_dim(model: str) -> int:
    """Return the length of an architecture's embeddings."""
    if not model.startswith(HUB):
        check_architecture(model)
    with _fetching(model, None):
        return int(_config(model)["embed_dim"])


def fetch_weights(model: str, tag: str | None) -> Path:
    """Return the local file of published weights, fetching it from the hub when it is not in the cache."""
    with _fetching(model, tag):
        if model.startswith(HUB):
            return Path(open_clip.download_pretrained_from_hf(model.removeprefix(HUB)))
        config = open_clip.get_pretrained_cfg(model, tag)
        if not config:
            known = [name for arch, name in open_clip.list_pretrained() if arch == model]
            names = known or open_clip.list_models()
            raise ConfigError(
                f"open_clip knows no `{model}` / `{tag}`", hint=did_you_mean((tag or model) if known else model, names)
            )
        return Path(open_clip.download_pretrained(config))


@contextmanager
def _fetching(model: str, tag: str | None) -> Iterator[None]:
    """Let all that can go wrong with a hub be one error that says what to do without it."""
    try:
        yield
    except _LOADING as error:
        what = " / ".join(f"`{part}`" for part in (model, tag) if part)
        raise ConfigError(f"the weights of {what} cannot be fetched: {first_line(error)}", hint=_NO_HUB) from error


@contextmanager
def _loading(spec: OpenClip) -> Iterator[None]:
    """Let weights that do not fit their model, and tokenizers that are not there, stop the run at once."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"the model {spec.label()} needs a package that is not here: {error}",
            hint="SigLIP and multilingual models take their tokenizers from transformers: `pip install mmdata[transformers]`",
        ) from error
    except _LOADING as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
        raise ConfigError(f"the model {spec.label()} cannot be loaded: {first}"[:600], hint=_NO_HUB) from error


def _name(spec: OpenClip) -> str:
    folder = spec.folder()
    return spec.model if folder is None else f"local-dir:{folder}"


@cache
def _config(name: str) -> dict[str, Any]:
    from open_clip.factory import get_model_config

    found: dict[str, Any] = get_model_config(name) or {}
    return found


def _byte_transform(transform: Any) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:  # noqa: ANN401 - torchvision's
    """Cut open_clip's transform where it turns bytes into floats: return the part before, mean and deviation."""
    *before, to_float, normal = transform.transforms
    if not (isinstance(to_float, ToTensor) and isinstance(normal, Normalize)):
        raise TypeError("open_clip's transform no longer ends in floats that are normalised")
    return Compose(before), tuple(normal.mean), tuple(normal.std)


def _padded(items: Items, num: int) -> np.ndarray:
    stacked = np.stack(list(items))
    return np.concatenate([stacked, np.zeros((num - len(stacked), *stacked.shape[1:]), stacked.dtype)])


def _to_numpy(parts: list[torch.Tensor]) -> np.ndarray:
    if not parts:
        return np.zeros((0, 1), np.float32)
    found: np.ndarray = torch.cat(parts).cpu().numpy()
    return found
