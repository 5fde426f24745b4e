"""From a sample to tokens: segments in order, and the arrays that a packed row is made of.

A segment has a mode: CAUSAL text, FULL image (clean), NOISE image (at time t). The boi and eoi of a noisy image that a clean
copy follows are EDGE: causal, and seen by their own image alone, since sampling has them once. Positions: a text token
advances by one, an image span (boi, patches, eoi) shares one position and a 2-D table tells its patches apart; the noisy copy
does not advance, so sampling, where the clean image takes its place, sees the same positions. Sources: BAGEL, Transfusion.

Axes: T tokens, P numbers in a patch.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mmdata.loader import Sample, TokenCounts
from mmdata.shards import KINDS
from mmdata.storage import digest_json
from mmdata.text.tokenizer import BOI, BOS, EOI, EOS, NULL, Tokenizer
from mmdata.trainer.config import TrainConfig

CAUSAL, FULL, NOISE, EDGE = 0, 1, 2, 3
NO_TARGET = -1
PADDING_DOC = -1


@dataclass(frozen=True)
class Tokens:
    """The tokens of one sample.

    ids_T      text ids; 0 for a patch            mode_T    CAUSAL, FULL, NOISE or EDGE
    split_T    number of the segment              pos_T     position id
    grid_T     place in the image, -1 for text    target_T  id to be predicted here, or -1
    time_T     noise time of a patch, 0 = clean   patches_TP  input patch (noised where NOISE), 0 for text
    flow_TP    velocity to be predicted where NOISE
    """

    ids_T: np.ndarray
    mode_T: np.ndarray
    split_T: np.ndarray
    pos_T: np.ndarray
    grid_T: np.ndarray
    target_T: np.ndarray
    time_T: np.ndarray
    patches_TP: np.ndarray
    flow_TP: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_T)


class Sequencer:
    """Lays samples out as a config says: the trainer's transform. All chance comes from the sample's own generator."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.version = digest_json([config.digest, tokenizer.digest])

    def counts(self) -> TokenCounts:
        """Return the lengths of samples as this layout lays them out, counted once a corpus."""
        layout = self.config.layout
        facts = [self.tokenizer.digest, layout.max_text_tokens, layout.clean_copy, self.config.image.grid]
        return TokenCounts(digest_json(facts), self._count)

    def _count(self, sample: Sample) -> int:
        images = int((sample.corpus.blocks_of(sample.index)["kind"] == KINDS.index("image")).sum())
        return self.length([len(self.tokenizer.encode(text)) for text in sample.texts], images)

    def length(self, text_tokens: list[int], num_images: int) -> int:
        """Return the most tokens that a sample takes: a function of its blocks alone, whatever is drawn for it."""
        image = self.config.image.grid**2 + 2
        texts = sum(min(num, self.config.layout.max_text_tokens) for num in text_tokens)
        pair = len(text_tokens) <= 1 and num_images <= 1
        return 2 + texts + image * num_images * (2 if self.config.layout.clean_copy and not pair else 1)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Tokens:
        """Return the tokens of a sample."""
        blocks = [self._block(block.text, block.image) for block in sample.blocks]
        if len(blocks) == 2 and random.random() < self.config.layout.p_caption_first:
            blocks = sorted(blocks, key=lambda block: isinstance(block, np.ndarray))  # caption, then image
        drop = random.random() < self.config.layout.p_drop_text
        return self.lay_out(blocks, drop_text=drop, noise=random)

    def lay_out(self, blocks: list[list[int] | np.ndarray], *, drop_text: bool, noise: np.random.Generator | None) -> Tokens:
        """Lay blocks out: ids for a text, (N, P) patches for an image.

        An image is generated (noised, with loss) where text stands before it, and given clean where it comes first. With
        `clean_copy` a generated image that is not last is followed by its clean copy. `noise=None` keeps all clean.
        """
        builder = _Builder(self.config)
        builder.text([BOS])
        told = False
        for place, block in enumerate(blocks):
            if isinstance(block, np.ndarray):
                copied = self.config.layout.clean_copy and place < len(blocks) - 1
                if told and noise is not None:
                    builder.image(block, noise, copied=copied)
                    if copied:
                        builder.image(block, None, again=True)
                else:
                    builder.image(block, None)
            else:
                dropped = drop_text and place == 0 and len(blocks) == 2
                builder.text([NULL] * len(block) if dropped else block, loss=not dropped)
                told = True
        builder.text([EOS])
        return builder.finish()

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text, cut at the longest that the layout takes."""
        return self.tokenizer.encode(text)[: self.config.layout.max_text_tokens]

    def _block(self, text: str | None, image: np.ndarray | None) -> list[int] | np.ndarray:
        return to_patches(image, self.config) if image is not None else self.encode_text(text or "")


class _Builder:
    """Appends segments; `finish` makes the arrays."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.rows: list[tuple[int, int, int, int, int, bool, float]] = []  # id, mode, split, pos, grid, loss, time
        self.patches: list[np.ndarray] = []
        self.flows: list[np.ndarray] = []
        self.pos = self.split = 0

    def text(self, ids: list[int], *, loss: bool = True) -> None:
        for index in ids:
            self._token(index, self.pos, loss)
            self.pos += 1
        self.split += 1

    def image(
        self, clean_NP: np.ndarray, noise: np.random.Generator | None, *, copied: bool = False, again: bool = False
    ) -> None:
        """Append an image span: `copied` if its clean copy follows, `again` if it is that copy."""
        noisy = noise is not None
        time = draw_time(noise, self.config) if noise is not None else 0.0
        eps_NP = noise.standard_normal(clean_NP.shape, dtype=np.float32) if noise is not None else np.zeros_like(clean_NP)
        edge = EDGE if copied else CAUSAL
        self._token(BOI, self.pos, not again, edge)  # the copy's boi follows the noisy eoi, which predicts nothing
        mode = NOISE if noisy else FULL
        self.rows += [(0, mode, self.split, self.pos, place, False, time) for place in range(len(clean_NP))]
        self.patches.append((1 - time) * clean_NP + time * eps_NP)
        self.flows.append(eps_NP - clean_NP)
        self._token(EOI, self.pos, True, edge)
        self.pos += 0 if copied else 1  # the clean copy takes the noisy one's position
        self.split += 1

    def _token(self, index: int, pos: int, loss: bool, mode: int = CAUSAL) -> None:
        self.rows.append((index, mode, self.split, pos, -1, loss, 0.0))
        self.patches.append(np.zeros((1, self.config.image.patch_dim), np.float32))
        self.flows.append(np.zeros((1, self.config.image.patch_dim), np.float32))

    def finish(self) -> Tokens:
        ids, mode, split, pos, grid, loss, time = (np.asarray(column) for column in zip(*self.rows, strict=True))
        text = grid < 0
        target = np.full(len(ids), NO_TARGET)
        # A token predicts the next one where both are text and the next one is to be learnt; boi is never after boi's patches.
        target[:-1] = np.where(text[:-1] & text[1:] & loss[1:], ids[1:], NO_TARGET)
        patches, flow = np.concatenate(self.patches), np.concatenate(self.flows)
        return Tokens(
            ids,
            mode,
            split,
            pos,
            grid,
            target,
            time.astype(np.float32),
            patches.astype(np.float32),
            flow.astype(np.float32),
        )


def draw_time(random: np.random.Generator, config: TrainConfig) -> float:
    """Draw the noise time of an image, in (0, 1): logit-normal or uniform, then shifted (SD3, BAGEL)."""
    u = 1 / (1 + np.exp(-random.standard_normal())) if config.time.draw == "logit_normal" else random.random()
    shift = config.time.shift
    return float(shift * u / (1 + (shift - 1) * u))


def to_patches(image: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Fit an image into the square with white borders and cut it into patches.

    image    (H, W, 3) uint8
    returns  (N, P) float32 in [-1, 1], N = grid**2 in raster order, P = patch * patch * 3
    """
    size, patch, grid = config.image.size, config.image.patch, config.image.grid
    square = ImageOps.pad(Image.fromarray(image), (size, size), Image.Resampling.BOX, color=(255, 255, 255))
    pixels = np.asarray(square, dtype=np.float32) / 127.5 - 1
    cut = pixels.reshape(grid, patch, grid, patch, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(cut.reshape(grid * grid, -1))


def from_patches(patches_NP: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Return the image of patches, (size, size, 3) uint8: the way back from `to_patches`."""
    size, patch, grid = config.image.size, config.image.patch, config.image.grid
    pixels = patches_NP.reshape(grid, grid, patch, patch, 3).transpose(0, 2, 1, 3, 4).reshape(size, size, 3)
    return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)
