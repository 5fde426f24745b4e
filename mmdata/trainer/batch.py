"""Packed rows as tensors, and `fill`: from what a token shows to what the model reads.

Axes: B rows, L tokens of a row, I images, N tokens of one kind in the whole batch (their places are flat: row * L + column),
P numbers of a token, M predictions of ids. Padding has document -1 and attends to itself alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mmdata.text.tokenizer import MASK, PAD
from mmdata.trainer.attention import PADDING_DOC, Sight
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import CODE, FEATURE, LATENT, NOBODY, TEXT, TIME, Tokens

FAMILIES = ("text", "codes", "latents")


class Part(NamedTuple):
    """Tokens of one kind: where they stand, which image they show, and where in it. All (N,) int64."""

    at_N: Tensor
    image_N: Tensor
    grid_N: Tensor


@dataclass(frozen=True)
class Batch:
    """What a row of tokens is; see `layout.Tokens`.

    sight        who sees whom                        tower_BL   whose weights a token uses
    modality_BL  0 text, 1 image, -1 padding
    pixels_IHWC  uint8, of all images                 masked_N   codes or text ids that the model is not shown, flat places
    latents      numbers, their `level_N` and the noise of those above 0; `learnt_N`: places among them that are predicted
    predict_M    flat places that predict an id       aim_M      flat places whose id it is
    level_M      share of masks where it is predicted source_M   number of the sample's source, in `sources`
    counts       of all tokens of a family that its loss is divided by
    predicted    predictions that are made, by family
    kinds        tokens of text, and of images            pairs      pairs of tokens of which one sees the other
    """

    ids_BL: Tensor
    pos_BL: Tensor
    tower_BL: Tensor
    modality_BL: Tensor
    level_BL: Tensor
    sight: Sight
    pixels_IHWC: Tensor
    masked_N: Tensor
    latents: Part
    codes: Part
    features: Part
    times_N: Tensor
    noised_N: Tensor
    noise_NP: Tensor
    learnt_N: Tensor
    predict_M: Tensor
    aim_M: Tensor
    weight_BL: Tensor
    source_BL: Tensor
    sources: tuple[str, ...]
    counts: dict[str, int]
    kinds: dict[str, int]
    predicted: dict[str, int]
    pairs: int

    @property
    def used(self) -> int:
        """Tokens that are no padding."""
        return sum(self.kinds.values())

    def to(self, device: str | torch.device) -> Self:
        """Return itself on a device."""
        return type(self)(**{item.name: _to(getattr(self, item.name), device) for item in fields(self)})


class Inputs(NamedTuple):
    """What the model reads.

    ids_BL     text ids, and codes after them; MASK where hidden     pos_BL, tower_BL   positions and towers
    codes      where codes stand, for their place in the image
    latents    numbers as given, (N, P), with their noise time, (N,)
    features   numbers, (N, F), of images to be understood
    times      tokens that tell a noise time: flat places, and the times
    modality_BL   0 text, 1 image, -1 padding
    time_BL    the noise time of each token, for conditions that every token gets
    """

    ids_BL: Tensor
    pos_BL: Tensor
    tower_BL: Tensor
    modality_BL: Tensor
    time_BL: Tensor
    codes: Part
    latents: Part
    values_NP: Tensor
    features: Part
    features_NF: Tensor
    times_N: Tensor


def collate(rows: Sequence[Sequence[Tokens]], row_tokens: int) -> Batch:
    """Pack samples into rows of one length."""
    return _Packer(row_tokens).pack(rows)


class _Packer:
    def __init__(self, row_tokens: int) -> None:
        self.length = row_tokens

    def pack(self, rows: Sequence[Sequence[Tokens]]) -> Batch:
        flat = [tokens for row in rows for tokens in row]
        starts, doc_BL = self._places(rows)
        first_image = np.cumsum([0, *(len(tokens.images) for tokens in flat)])
        sources = tuple(sorted({tokens.source for tokens in flat}))
        whole = {name: self._spread(rows, starts, name, fill) for name, fill in _FILLS.items()}
        image_BL = self._spread(rows, starts, "image", NOBODY, [int(number) for number in first_image[:-1]])
        aim_BL = self._spread(rows, starts, "aim", NOBODY, starts)
        source_BL = np.zeros_like(doc_BL)
        for start, tokens in zip(starts, flat, strict=True):
            source_BL.reshape(-1)[start : start + len(tokens)] = sources.index(tokens.source)
        kind, level = whole["kind"].reshape(-1), whole["level"].reshape(-1)
        parts = {number: self._part(kind == number, image_BL, whole["grid"]) for number in (LATENT, CODE, FEATURE)}
        at = np.flatnonzero(kind == LATENT)
        predict = np.flatnonzero(aim_BL.reshape(-1) != NOBODY)
        pixels = [image for tokens in flat for image in tokens.images]
        noise = [tokens.noise_NP for tokens in flat if len(tokens.noise_NP)]
        return Batch(
            ids_BL=_int(whole["ids"]), pos_BL=_int(whole["pos"]), tower_BL=_int(whole["tower"]),
            modality_BL=_int(np.where(doc_BL == PADDING_DOC, -1, whole["kind"] != TEXT)),
            level_BL=torch.from_numpy(whole["level"]),
            sight=Sight(_int(doc_BL), _int(whole["span"]), _int(whole["veil"])),
            pixels_IHWC=torch.from_numpy(np.stack(pixels)) if pixels else torch.zeros(0, 0, 0, 3, dtype=torch.uint8),
            masked_N=_int(np.flatnonzero(whole["masked"])),
            latents=parts[LATENT], codes=parts[CODE], features=parts[FEATURE], times_N=_int(np.flatnonzero(kind == TIME)),
            noised_N=_int(np.flatnonzero(level[at] > 0)), noise_NP=torch.from_numpy(np.concatenate(noise) if noise else _NONE),
            learnt_N=_int(np.flatnonzero(whole["learnt"].reshape(-1)[at])),
            predict_M=_int(predict), aim_M=_int(aim_BL.reshape(-1)[predict]),
            weight_BL=torch.from_numpy(whole["weight"]), source_BL=_int(source_BL), sources=sources,
            counts={family: sum(tokens.counts[family] for tokens in flat) for family in FAMILIES},
            kinds={"text": int(((kind == TEXT) & (doc_BL.reshape(-1) != PADDING_DOC)).sum()), "image": int((kind != TEXT).sum())},
            predicted={
                "text": int((kind[aim_BL.reshape(-1)[predict]] == TEXT).sum()),
                "codes": int((kind[aim_BL.reshape(-1)[predict]] == CODE).sum()), "latents": int(whole["learnt"].sum()),
            },
            pairs=sum(tokens.pairs for tokens in flat),
        )  # fmt: skip

    def _places(self, rows: Sequence[Sequence[Tokens]]) -> tuple[list[int], np.ndarray]:
        """Return where each sample starts, flat, and the documents, (B, L)."""
        starts: list[int] = []
        doc_BL = np.full((len(rows), self.length), PADDING_DOC)
        for number, row in enumerate(rows):
            at = 0
            for doc, tokens in enumerate(row):
                starts.append(number * self.length + at)
                doc_BL[number, at : at + len(tokens)] = doc
                at += len(tokens)
            if at > self.length:
                raise AssertionError(f"a row of {at} tokens, planned for {self.length}: lengths and layout disagree")
        return starts, doc_BL

    def _spread(
        self, rows: Sequence[Sequence[Tokens]], starts: list[int], name: str, fill: float, added: list[int] | None = None
    ) -> np.ndarray:
        """Return a column of all samples, (B, L); `added` is added to a sample's values that are not -1."""
        parts = [getattr(tokens, f"{name}_T") for row in rows for tokens in row]
        whole = np.full(len(rows) * self.length, fill, dtype=parts[0].dtype if parts else np.int64)
        for number, (start, part) in enumerate(zip(starts, parts, strict=True)):
            moved = part if added is None else np.where(part >= 0, part + added[number], part)
            whole[start : start + len(part)] = moved
        return whole.reshape(len(rows), self.length)

    @staticmethod
    def _part(here: np.ndarray, image_BL: np.ndarray, grid_BL: np.ndarray) -> Part:
        at = np.flatnonzero(here)
        return Part(_int(at), _int(image_BL.reshape(-1)[at]), _int(grid_BL.reshape(-1)[at]))


_NONE = np.zeros((0, 0), np.float32)
_FILLS = {
    "ids": PAD, "kind": TEXT, "pos": 0, "span": -1, "veil": -1, "tower": 0, "grid": -1, "level": 0.0, "masked": False,
    "learnt": False, "weight": 1.0,
}  # fmt: skip


Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class Truth(NamedTuple):
    """What is to be predicted: ids, (M,), and numbers without noise and their noise, (N, P), where they are learnt."""

    aim_M: Tensor
    clean_NP: Tensor
    noise_NP: Tensor
    time_N: Tensor


def fill(batch: Batch, encoders: Encoders, mix: Mix, dtype: torch.dtype = torch.float32) -> tuple[Inputs, Truth]:
    """Encode the batch's images and corrupt what is to be predicted.

    mix  (clean, noise, times) -> numbers with noise, as the objective's path has it
    """
    ids = batch.ids_BL.reshape(-1).clone()
    clean = torch.zeros(len(batch.latents.at_N), encoders.sizes.dim, dtype=dtype, device=ids.device)
    if len(batch.codes.at_N):
        codes = encoders.encode(_shown(batch, batch.codes))
        ids[batch.codes.at_N] = encoders.sizes.vocab + _pick(codes, batch.codes)
    elif len(batch.latents.at_N):
        clean = _pick(encoders.encode(_shown(batch, batch.latents)), batch.latents).to(dtype)
    features = torch.zeros(0, encoders.sizes.und_dim, dtype=dtype, device=ids.device)
    if len(batch.features.at_N):
        features = _pick(encoders.understand(_shown(batch, batch.features)), batch.features).to(dtype)
    aim = ids[batch.aim_M]
    ids[batch.masked_N] = MASK
    level = batch.level_BL.reshape(-1).to(dtype)
    time_N = level[batch.latents.at_N]
    noise = torch.zeros_like(clean)
    if len(batch.noised_N):
        noise[batch.noised_N] = batch.noise_NP.to(dtype)
    values = torch.where((time_N > 0)[:, None], mix(clean, noise, time_N[:, None]), clean)
    time_BL = torch.zeros_like(level).index_copy(0, batch.latents.at_N, time_N)
    time_BL = time_BL.index_copy(0, batch.times_N, level[batch.times_N]).view_as(batch.level_BL)
    inputs = Inputs(
        ids.view_as(batch.ids_BL), batch.pos_BL, batch.tower_BL, batch.modality_BL, time_BL, batch.codes, batch.latents, values,
        batch.features, features, batch.times_N,
    )  # fmt: skip
    learnt = batch.learnt_N
    return inputs, Truth(aim, clean[learnt], noise[learnt], time_N[learnt])


def _shown(batch: Batch, part: Part) -> Tensor:
    return batch.pixels_IHWC[torch.unique(part.image_N)]


def _pick(values_IN: Tensor, part: Part) -> Tensor:
    _, number = torch.unique(part.image_N, return_inverse=True)
    return values_IN[number, part.grid_N].clone()  # of tensors made without gradients


def _int(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _to(value: Any, device: str | torch.device) -> Any:  # noqa: ANN401 - a field of any type
    if isinstance(value, Part):
        return Part(*(part.to(device, non_blocking=True) for part in value))
    return value.to(device, non_blocking=True) if isinstance(value, Tensor | Sight) else value
