"""Pictures for training and judging the tiny CLIP: reading a split, padding, augmenting, drawing batches.

Axes: N pictures, C channels, H height, W width, D embedding.
"""

import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from recipes.tiny_clip.openclipart import Clip, caption, load_rgb, read_table, rows
from recipes.tiny_clip.student import IMAGE_SIDE, Transform

CANVAS_SIDE = 160
"""Training pictures are kept at this size and sampled down to `IMAGE_SIDE` by the augmentation."""

PER_FAMILY = 3
"""Pictures of one family an epoch may use: sixty arrows must not outweigh sixty animals."""


class Pairs(NamedTuple):
    """The training pictures with their captions' sources."""

    clips: list[Clip]
    families: list[str]
    canvas_NCHW: Tensor  # uint8, padded with white
    seen_ND: Tensor  # what the image teacher sees in each


class Held(NamedTuple):
    """Pictures to judge by: one of each family of a split."""

    clips: list[Clip]
    pixels_NCHW: Tensor
    captions: list[str]


def read_split(root: Path, families: Path, split: str) -> tuple[list[Clip], list[str]]:
    """Return the distinct pictures of a split in the order of their paths, and the family of each."""
    listed = pl.read_csv(families, separator="\t").filter(pl.col("split") == split)
    table = read_table(root)[0].join(listed, on="path").sort("path").unique("sha256", keep="first", maintain_order=True)
    return rows(table.drop("family", "split")), table["family"].to_list()


def read_canvas(root: Path, clips: list[Clip]) -> Tensor:
    """Return (N, C, H, W) uint8 pictures, each centred on a white square."""
    sides = (CANVAS_SIDE, CANVAS_SIDE)
    pictures = (load_rgb(root / "png" / clip["path"], CANVAS_SIDE) for clip in clips)
    padded = [np.asarray(ImageOps.pad(picture, sides, color="white")) for picture in pictures]
    return torch.from_numpy(np.stack(padded)).permute(0, 3, 1, 2).contiguous()


def read_held(root: Path, families: Path, split: str, transform: Transform) -> Held:
    """Return the first picture of each family, prepared as open_clip will prepare it."""
    clips, names = read_split(root, families, split)
    first_rows = {name: row for row, name in reversed(list(enumerate(names)))}
    firsts = [clips[row] for row in sorted(first_rows.values())]
    pixels = torch.stack([transform(load_rgb(root / "png" / clip["path"], 256)) for clip in firsts])
    return Held(firsts, pixels, [caption(clip) for clip in firsts])


def to_pixels(canvas_NCHW: Tensor, augment: bool) -> Tensor:
    """Sample (N, C, IMAGE_SIDE, IMAGE_SIDE) float32 from canvases: zoomed, turned, moved and flipped if `augment`."""
    num = len(canvas_NCHW)
    theta = torch.eye(2, 3).repeat(num, 1, 1)
    if augment:
        zoom, turn = torch.empty(num).uniform_(0.75, 1.25), torch.empty(num).uniform_(-0.2, 0.2)
        flip = torch.where(torch.rand(num) < 0.5, -1.0, 1.0)
        theta[:, 0, 0], theta[:, 0, 1] = zoom * turn.cos() * flip, -zoom * turn.sin()
        theta[:, 1, 0], theta[:, 1, 1] = zoom * turn.sin() * flip, zoom * turn.cos()
        theta[:, :, 2] = torch.empty(num, 2).uniform_(-0.15, 0.15)
    grid = affine_grid(theta, [num, 3, IMAGE_SIDE, IMAGE_SIDE], align_corners=False)
    # The sampler pads with zero, so zero has to mean white while it works.
    darkness = grid_sample(255.0 - canvas_NCHW.float(), grid, align_corners=False)
    if augment:
        darkness *= torch.empty(num, 1, 1, 1).uniform_(0.7, 1.1)
    return ((255.0 - darkness.clamp(0, 255)) - 127) / 128


def draw_epoch(pairs: Pairs, batch_size: int, generator: random.Random) -> list[list[int]]:
    """Return the batches of an epoch; no batch holds two pictures of one family, which would be false negatives."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, family in enumerate(pairs.families):
        members[family].append(index)
    rounds: list[list[int]] = [[] for _ in range(PER_FAMILY)]
    for indices in members.values():
        for number, index in enumerate(generator.sample(indices, min(PER_FAMILY, len(indices)))):
            rounds[number].append(index)
    batches = []
    for drawn in rounds:
        generator.shuffle(drawn)
        batches += [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
    return [batch for batch in batches if len(batch) >= batch_size // 2]
