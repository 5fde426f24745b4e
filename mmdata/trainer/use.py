"""Use a checkpoint: images from captions, captions from images, documents that go on."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmdata.errors import ConfigError, RecordError
from mmdata.loader import keyed
from mmdata.media import Jail
from mmdata.storage import digest_bytes
from mmdata.trainer.checkpoint import Checkpoint, open_checkpoint
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Sequencer
from mmdata.trainer.model import Transformer
from mmdata.trainer.write import Writer

BATCH = 64


class Generator:
    """A model that generates both ways. What it makes depends on the prompt and the seed, never on what is made beside it."""

    def __init__(self, model: Transformer, encoders: Encoders, sequencer: Sequencer) -> None:
        self.config, self.tokenizer, self.sequencer = model.config, sequencer.tokenizer, sequencer
        self.samples = Writer(model, encoders, sequencer)

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "Generator":
        """Load a checkpoint's averaged weights."""
        encoders = checkpoint.encoders()
        return cls(checkpoint.model(), encoders, Sequencer(checkpoint.config, checkpoint.tokenizer, encoders.sizes))

    def images(self, captions: Sequence[str], seed: int = 0) -> list[np.ndarray]:
        """Return an image for each caption, (size, size, 3) uint8."""
        found: dict[int, np.ndarray] = {}
        ids = [self.sequencer.encode_text(caption) for caption in captions]
        for group in _alike([len(one) for one in ids]):
            randoms = [keyed(seed, captions[number], "image") for number in group]
            made = self.samples.images([ids[number] for number in group], randoms)
            found |= dict(zip(group, made, strict=True))
        return [found[number] for number in range(len(captions))]

    def captions(self, images: Sequence[np.ndarray], seed: int = 0) -> list[str]:
        """Return a caption for each image, (H, W, 3) uint8."""
        found: list[str] = []
        for start in range(0, len(images), BATCH):
            group = np.stack([self.sequencer.fit(image) for image in images[start : start + BATCH]])
            randoms = [keyed(seed, "caption", digest_bytes(image.tobytes())) for image in group]
            found += [self.tokenizer.decode(ids) for ids in self.samples.captions(group, randoms)]
        return found

    def document(self, blocks: Sequence[str | np.ndarray], seed: int = 0, more: int = 4) -> list[str | np.ndarray]:
        """Go on with a document of texts and images; return the new blocks."""
        given = [self.sequencer.encode_text(block) if isinstance(block, str) else block for block in blocks]
        made = self.samples.document(given, keyed(seed, "document"), more)
        return [block if isinstance(block, np.ndarray) else self.tokenizer.decode(block) for block in made]


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Return groups of places with one length, at most `BATCH` each."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, length in enumerate(lengths):
        by_length[length].append(place)
    return [group[start : start + BATCH] for group in by_length.values() for start in range(0, len(group), BATCH)]


def sample_images(checkpoint: Path, captions: list[str], out: Path, seed: int = 0) -> list[Path]:
    """Generate an image for each caption into a folder; return the files."""
    if not captions:
        return []
    generator = Generator.load(open_checkpoint(checkpoint))
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{number:03d}.png" for number in range(len(captions))]
    for path, image in zip(paths, generator.images(captions, seed), strict=True):
        Image.fromarray(image).save(path)
    return paths


def sample_captions(checkpoint: Path, images: list[Path]) -> list[str]:
    """Generate a caption for each image file. The files are not ours, so they are decoded in the jail."""
    if not images:
        return []
    generator = Generator.load(open_checkpoint(checkpoint))
    with Jail() as jail:
        return generator.captions([_decode(jail, path) for path in images])


def _decode(jail: Jail, path: Path) -> np.ndarray:
    try:
        return jail.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except RecordError as error:
        raise ConfigError(f"{path}: {error.message} ({error.outcome})", hint="give a JPEG, PNG, WebP, GIF or AVIF") from error
