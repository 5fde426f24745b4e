"""The fixed batch of `benchmarks/trainer.py`: what a row holds, and how many pairs its mask allows.

A row is text of 24 tokens and an image of 64 patches in turn, then as much text as fills transfusion-pytorch's row: it puts five
tokens around an image, ours two, so that ours ends in some padding. Rows are one document, as the peer has it.

Axes: R rows, T text tokens of a row, N images of a row, C patches of an image, P numbers of a patch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

TEXT, SIZE, PATCH = 24, 32, 4  # tokens; pixels of an image's side, and of a patch's
PATCHES, CHANNELS = (SIZE // PATCH) ** 2, 3 * PATCH**2
AROUND = 5  # the peer's tokens around an image: meta, the two digits of its size, start, end
LOWEST = 6  # ours has six special ids; the peer's lie above the text's
OWN_IDS = 134  # ids of the vocabulary that the peer keeps for itself


@dataclass(frozen=True)
class Shape:
    """A model and a batch. `hidden` is of the gated FFN."""

    width: int
    depth: int
    heads: int
    rows: int
    length: int = 512
    vocab: int = 1024

    @property
    def hidden(self) -> int:
        """The hidden size of the FFN: about 8/3 of the width, a multiple of 64 where the width is one of 256."""
        return self.width * 11 // 4

    @property
    def images(self) -> int:
        """Images of a row."""
        return (self.length - 1) // (TEXT + PATCHES + AROUND)

    @property
    def tail(self) -> int:
        """Text tokens behind the last image: the peer adds a start and an end, and drops the last token as an input."""
        return self.length - 1 - self.images * (TEXT + PATCHES + AROUND)

    def pairs(self, mask: str) -> int:
        """Return how many pairs of tokens a mask allows in the batch: causal, and both ways inside an image."""
        row = self.length * (self.length + 1) // 2
        inside = 0 if mask == "causal" else self.images * PATCHES * (PATCHES - 1) // 2
        return self.rows * (row + inside)

    def attention(self, mask: str) -> int:
        """Return the operations of the attention's products in a step: two products, and twice that to go back."""
        return 12 * self.depth * self.width * self.pairs(mask)

    def options(self, home: Path) -> dict[str, Any]:
        """Return what a side is told; the batch is written where it is not there."""
        batch = home / f"batch-{self.rows}-{self.length}-{self.vocab}.npz"
        if not batch.exists():
            ids_RT, images_RNHWC = make_batch(self)
            np.savez(batch, ids=ids_RT, images=images_RNHWC, patches=cut(images_RNHWC))
        facts = {"hidden": self.hidden, "text": TEXT, "patches": PATCHES, "channels": CHANNELS, "batch": str(batch)}
        return asdict(self) | facts


def make_batch(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return text ids, (R, T) int64, and images, (R, N, H, W, 3) uint8, both random."""
    dice = np.random.default_rng(0)
    ids_RT = dice.integers(LOWEST, shape.vocab - OWN_IDS, size=(shape.rows, shape.images * TEXT + shape.tail))
    return ids_RT, dice.integers(256, size=(shape.rows, shape.images, SIZE, SIZE, 3), dtype=np.uint8)


def cut(images_RNHWC: np.ndarray) -> np.ndarray:
    """Return the images' patches in raster order, (R, N, C, P) float32 in [-1, 1], as the trainer cuts them."""
    rows, num, side = *images_RNHWC.shape[:2], SIZE // PATCH
    parts = images_RNHWC.reshape(rows, num, side, PATCH, side, PATCH, 3).swapaxes(3, 4)
    return (parts.reshape(rows, num, PATCHES, CHANNELS) / 127.5 - 1).astype(np.float32)
