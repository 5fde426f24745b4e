"""Packed rows as tensors, and the mask.

Axes: B rows, L tokens of a row, P numbers of a patch. Padding has document -1 and attends to itself alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmdata.text.tokenizer import PAD
from mmdata.trainer.sequence import CAUSAL, EDGE, FULL, NO_TARGET, NOISE, PADDING_DOC, Tokens


@dataclass(frozen=True)
class Batch:
    """What the model reads and the losses compare with; see `Tokens` for the meaning of each."""

    ids_BL: Tensor
    pos_BL: Tensor
    grid_BL: Tensor
    time_BL: Tensor
    patches_BLP: Tensor
    mask_BLL: Tensor
    target_BL: Tensor
    noisy_BL: Tensor
    flow_BLP: Tensor

    def rows(self, start: int, stop: int) -> "Batch":
        """Return some of the rows: a micro-batch."""
        return Batch(**{name: value[start:stop] for name, value in vars(self).items()})

    @property
    def num_text(self) -> int:
        """Tokens with a text loss."""
        return int((self.target_BL != NO_TARGET).sum())

    @property
    def num_image(self) -> int:
        """Patches with an image loss."""
        return int(self.noisy_BL.sum())


def collate(rows: list[list[Tokens]], row_tokens: int, *, bidirectional: bool, isolated: bool) -> Batch:
    """Pack samples into rows of one length."""
    packed = [_pack(row, row_tokens) for row in rows]
    stacked = {name: np.stack([row[name] for row in packed]) for name in packed[0]}
    mask = np.stack(
        [attention_mask(row["doc"], row["split"], row["mode"], bidirectional=bidirectional, isolated=isolated) for row in packed]
    )
    return Batch(
        torch.from_numpy(stacked["ids"]), torch.from_numpy(stacked["pos"]), torch.from_numpy(stacked["grid"]),
        torch.from_numpy(stacked["time"]), torch.from_numpy(stacked["patches"]), torch.from_numpy(mask),
        torch.from_numpy(stacked["target"]), torch.from_numpy(stacked["mode"] == NOISE), torch.from_numpy(stacked["flow"]),
    )  # fmt: skip


def attention_mask(
    doc_L: np.ndarray, split_L: np.ndarray, mode_L: np.ndarray, *, bidirectional: bool = True, isolated: bool = True
) -> np.ndarray:
    """Return who attends to whom, (L, L) bool: [q, k].

    Same document, and causal or within one image; noise is seen by its own segment alone, and so are the edges of a noisy
    image that a clean copy follows. From BAGEL; without noise segments it is Transfusion's mask. Padding sees itself.
    """
    num = len(doc_L)
    place = np.arange(num)
    same_doc = (doc_L[:, None] == doc_L[None, :]) & (doc_L[:, None] != PADDING_DOC)
    same_split = split_L[:, None] == split_L[None, :]
    causal = place[:, None] >= place[None, :]
    # Patches of one image are one segment; its boi and eoi share the number but are causal.
    patch_L = (mode_L == FULL) | (mode_L == NOISE)
    within = same_split & patch_L[:, None] & patch_L[None, :]
    allowed = same_doc & (causal | within) if bidirectional else same_doc & causal
    if isolated:
        allowed &= ~((mode_L[None, :] == NOISE) & ~(same_split & (mode_L[:, None] == NOISE)))
        allowed &= ~((mode_L[None, :] == EDGE) & ~same_split)
    result: np.ndarray = allowed | (place[:, None] == place[None, :])
    return result


def _pack(row: list[Tokens], row_tokens: int) -> dict[str, np.ndarray]:
    num = sum(len(tokens) for tokens in row)
    if num > row_tokens:
        raise AssertionError(f"a row of {num} tokens, planned for {row_tokens}: lengths and layout disagree")
    pad = row_tokens - num

    def join(name: str, fill: float) -> np.ndarray:
        parts = [getattr(tokens, name) for tokens in row]
        tail = np.full((pad, *parts[0].shape[1:]), fill, dtype=parts[0].dtype)
        return np.concatenate([*parts, tail])

    doc = np.concatenate([*(np.full(len(tokens), number) for number, tokens in enumerate(row)), np.full(pad, PADDING_DOC)])
    return {
        "ids": join("ids_T", PAD), "pos": join("pos_T", 0), "grid": join("grid_T", -1), "time": join("time_T", 0),
        "patches": join("patches_TP", 0), "target": join("target_T", NO_TARGET), "mode": join("mode_T", CAUSAL),
        "flow": join("flow_TP", 0), "split": join("split_T", 0), "doc": doc,
    }  # fmt: skip
