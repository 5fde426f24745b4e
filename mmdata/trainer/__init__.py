"""The bundled trainer: one transformer over interleaved text and image tokens that understands and generates."""

from mmdata.trainer.config import TrainConfig, load_config
from mmdata.trainer.dist import check_shares
from mmdata.trainer.export import export_model
from mmdata.trainer.loop import TrainResult, train
from mmdata.trainer.use import sample_captions, sample_images

__all__ = [
    "TrainConfig", "TrainResult", "check_shares", "export_model", "load_config", "sample_captions", "sample_images", "train",
]  # fmt: skip
