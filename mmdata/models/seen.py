"""What `Conse` opens to: the labels that a classifier sees in an image, compared with a text by a sentence encoder.

Decided here: fixed batch shapes, one for images, two for texts by their own length, so that a score does not depend on its
neighbours; a text is cut at 64 tokens. Axes: N images or texts, T tokens, D embedding, K labels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from mmdata.models.efficientnet import CLASSES, EfficientNet
from mmdata.models.numerics import held_to
from mmdata.models.packages import text_folder, wanted

TOP, BATCH, WIDTH = 10, 32, 384
SHORT_TOKENS, TOKENS = 16, 64


class Sentences:
    """all-MiniLM-L6-v2 with mean pooling, as its card asks."""

    def __init__(self, device: str, threads: int) -> None:
        with wanted():
            from transformers import AutoModel, AutoTokenizer

            path = str(text_folder())
        self.device, self.threads = device, threads
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModel.from_pretrained(path).to(device).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (N, 384) float32 of length 1."""
        found = np.zeros((len(texts), WIDTH), np.float32)
        lengths = np.array([len(ids) for ids in self.tokenizer(list(texts))["input_ids"]] if texts else [], np.int64)
        for tokens, fits in ((SHORT_TOKENS, lengths <= SHORT_TOKENS), (TOKENS, lengths > SHORT_TOKENS)):
            places = np.flatnonzero(fits)
            for start in range(0, len(places), BATCH):
                chunk = places[start : start + BATCH]
                found[chunk] = self._batch([texts[place] for place in chunk], tokens)
        return found

    def _batch(self, texts: list[str], num_tokens: int) -> np.ndarray:
        full = texts + [""] * (BATCH - len(texts))
        tokens = self.tokenizer(full, padding="max_length", truncation=True, max_length=num_tokens, return_tensors="pt")
        tokens = tokens.to(self.device)
        with held_to(self.threads):
            states_NTD = self.model(**tokens).last_hidden_state
        mask_NT1 = tokens["attention_mask"].unsqueeze(-1)
        mean_ND = (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1)
        return np.asarray(normalize(mean_ND, dim=-1)[: len(texts)].float().cpu().numpy())


class LabelsSeen:
    """Scores pairs by the labels seen in the image."""

    def __init__(self, device: str, threads: int) -> None:
        self.classifier, self.sentences = EfficientNet(device, threads), Sentences(device, threads)
        self.labels_KD = self.sentences.embed([f"a photo of a {name}" for name in labels()])

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each image's labels and its text, (N,) float32 in [-1, 1]."""
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        texts_ND = self.sentences.embed(distinct)[[place[text] for text in texts]] if texts else np.zeros((0, WIDTH), np.float32)
        cosines: np.ndarray = (self.vectors(images) * texts_ND).sum(1)
        return cosines

    def vectors(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return what is seen in images, (N, 384) float32 of length 1."""
        chances_NK = self.classifier.classes(images)
        likeliest = np.argsort(-chances_NK, axis=1, kind="stable")[:, :TOP]
        weights = np.take_along_axis(chances_NK, likeliest, 1)
        sums_ND = np.einsum("nk,nkd->nd", weights, self.labels_KD[likeliest])
        return np.asarray(sums_ND / np.maximum(np.linalg.norm(sums_ND, axis=1, keepdims=True), 1e-12), np.float32)


def labels() -> list[str]:
    """Return the first name of each class, in the classifier's order."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [str(info.index_to_description(number)).split(",")[0] for number in range(CLASSES)]
