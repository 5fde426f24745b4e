"""The bundled trainer: one transformer over interleaved text and image tokens that understands and generates."""

from mmdata.trainer.config import TrainConfig, load_config
from mmdata.trainer.loop import TrainResult, train
from mmdata.trainer.use import sample_captions, sample_images

__all__ = ["TrainConfig", "TrainResult", "load_config", "sample_captions", "sample_images", "train"]
