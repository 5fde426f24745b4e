"""Use a checkpoint: images from captions, captions from images."""

from pathlib import Path

import numpy as np
from PIL import Image

from mmdata.errors import ConfigError, RecordError
from mmdata.loader import keyed
from mmdata.media import Jail
from mmdata.trainer.checkpoint import Checkpoint, open_checkpoint
from mmdata.trainer.sampler import write_image, write_text
from mmdata.trainer.sequence import Sequencer, from_patches, to_patches


class Generator:
    """A loaded checkpoint that generates both ways."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer
        self.model = checkpoint.model()
        self.sequencer = Sequencer(self.config, self.tokenizer)

    def image(self, caption: str, seed: int = 0) -> np.ndarray:
        """Return an image for a caption, (size, size, 3) uint8; the same caption and seed give the same image."""
        ids = self.sequencer.encode_text(caption)
        return from_patches(write_image(self.model, ids, keyed(seed, caption, "image")), self.config)

    def caption(self, image: np.ndarray, seed: int = 0) -> str:
        """Return a caption for an image, (H, W, 3) uint8."""
        ids = write_text(self.model, to_patches(image, self.config), keyed(seed, "caption"))
        return self.tokenizer.decode(ids)


def sample_images(checkpoint: Path, captions: list[str], out: Path, seed: int = 0) -> list[Path]:
    """Generate an image for each caption into a folder; return the files."""
    if not captions:
        return []
    generator = Generator(open_checkpoint(checkpoint))
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{number:03d}.png" for number in range(len(captions))]
    for path, caption in zip(paths, captions, strict=True):
        Image.fromarray(generator.image(caption, seed)).save(path)
    return paths


def sample_captions(checkpoint: Path, images: list[Path]) -> list[str]:
    """Generate a caption for each image file. The files are not ours, so they are decoded in the jail."""
    if not images:
        return []
    generator = Generator(open_checkpoint(checkpoint))
    with Jail() as jail:
        return [generator.caption(_decode(jail, path)) for path in images]


def _decode(jail: Jail, path: Path) -> np.ndarray:
    try:
        return jail.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except RecordError as error:
        raise ConfigError(f"{path}: {error.message} ({error.outcome})", hint="give a JPEG, PNG, WebP, GIF or AVIF") from error
