"""ConSE by name: a score of image and text by two networks that saw no pair, an ImageNet classifier and a sentence encoder.

It evaluates what a CLIP has filtered. Both networks taught the small CLIP that ships, so after that one it is another witness,
but not one of other origin.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from mmdata.models.packages import image_weights, text_folder
from mmdata.models.scorer import Scorer, ScorerModel
from mmdata.storage import digest_file


class Conse(ScorerModel):
    """The cosine of a text and of what a classifier sees in an image: of use for photographs of things.

    It knows no attributes, and drawings badly: on the pairs of the bundled clip art its AUC is 0.62, on photographs with
    paragraphs 0.84. Where there are pairs to fit to, `mmdata.trainer.metrics.fit_head` on the same two networks tells more.
    An image's vector is the mean of those of "a photo of a LABEL", weighted by the probabilities of its ten likeliest labels
    (Norouzi et al., arXiv:1312.5650). EfficientNet-Lite0 and all-MiniLM-L6-v2, both out of packages (extra `evaluate`).
    """

    name: ClassVar[str] = "conse"
    unit: ClassVar[str] = "cosine"

    def label(self) -> str:
        """Return both networks' names."""
        return "ConSE of EfficientNet-Lite0 and all-MiniLM-L6-v2"

    def meaning(self) -> str:
        """Say what the score is."""
        return "cosine of the caption and of the labels that a classifier sees in the image, in [-1, 1]"

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of both networks' weights."""
        return digest_file(image_weights()), digest_file(text_folder() / "model.safetensors")

    @contextmanager
    def open(self, device: str, threads: int) -> Iterator[Scorer]:
        """Load both networks, and the vectors of all labels: some seconds."""
        from mmdata.models.seen import LabelsSeen

        yield LabelsSeen(device, threads)
