"""Image tokenizers: what stands for an image in a model, trained on a corpus and frozen."""

from mmdata.trainer.vision.base import ImageTokenizer
from mmdata.trainer.vision.config import TokenizerConfig, load_tokenizer_config
from mmdata.trainer.vision.folder import load_tokenizer, make_tokenizer
from mmdata.trainer.vision.pixels import fit_square
from mmdata.trainer.vision.train import TokenizerResult, train_image_tokenizer

__all__ = [
    "ImageTokenizer", "TokenizerConfig", "TokenizerResult", "fit_square", "load_tokenizer", "load_tokenizer_config",
    "make_tokenizer", "train_image_tokenizer",
]  # fmt: skip
