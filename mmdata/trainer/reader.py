"""A document being read or written over a cache: several rows of one structure, each segment read once.

Text and finished images go into the cache; an image in the making sees the cache and itself and leaves nothing behind. Whoever
goes on after an image reads it clean, so that what follows sees what training showed it (BAGEL).

Axes: B rows, T text tokens, N tokens of an image, P numbers of a token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdata.text.tokenizer import BOI, EOI, MASK, NULL
from mmdata.trainer.attention import Cache
from mmdata.trainer.batch import Inputs, Part
from mmdata.trainer.layout import MADE, READ
from mmdata.trainer.model import Hidden, Transformer


class Reader:
    """The cache of some rows, and the next position. All are in one order: each call adds the same kinds of tokens to each."""

    def __init__(self, model: Transformer, rows: int) -> None:
        self.model, self.config, self.sizes, self.rows = model, model.config, model.sizes, rows
        self.device, self.dtype = model.embed.weight.device, model.embed.weight.dtype
        self.cache = Cache()
        self.pos = self.length = 0

    def text(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Read text, the same number of ids a row; return the logits after the last, (B, ids)."""
        num = len(ids[0])
        logits = self._ids(torch.tensor(list(ids)), torch.arange(self.pos, self.pos + num))
        self.pos += num
        return logits

    def edge(self, index: int) -> Tensor:
        """Read boi or eoi, which share the position of their image; return the logits after it, (B, ids)."""
        return self._ids(torch.full((self.rows, 1), index), torch.tensor([self.pos]))

    def _ids(self, ids_BT: Tensor, pos_T: Tensor) -> Tensor:
        num = ids_BT.shape[1]
        hidden = self._read(self._inputs(ids_BT, pos_T), torch.ones(num, num, dtype=torch.bool).tril(), keep=True)
        return self.model.logits(hidden.states_BLD[:, -1], None if self._one_stream else "text")

    @property
    def _one_stream(self) -> bool:
        return self.config.text.objective == self.config.image.objective == "ar"

    def numbers(self, values_BNP: Tensor, time: float, *, made: bool = True, keep: bool = False) -> Tensor:
        """Let numbers at a noise time see the cache and each other; return what the head gives, (B, N, P)."""
        told, num = int(self.model.timed == "token"), self.sizes.tokens
        inputs = self._image(told + num, made=made, time=time, told=told)
        at = (torch.arange(self.rows)[:, None] * (told + num) + told + torch.arange(num)).reshape(-1).to(self.device)
        inputs = inputs._replace(
            latents=self._part(at), values_NP=values_BNP.reshape(-1, self.sizes.dim).to(self.device, self.dtype),
            times_N=(torch.arange(self.rows * told) * (told + num)).to(self.device),
        )  # fmt: skip
        if told:
            inputs.pos_BL[:, 0] = self.pos
        hidden = self._read(inputs, self._within(told + num), keep=keep)
        if keep:
            self._pass(num)
        given: Tensor = self.model.patch_out(hidden.states_BLD[:, told:])
        return given

    def codes(self, codes_BN: Tensor, masked_BN: Tensor | None = None, *, made: bool = True, keep: bool = False) -> Tensor:
        """Let codes, some of them masked, see the cache and each other; return logits of codes, (B, N, codes)."""
        num = self.sizes.tokens
        inputs = self._image(num, made=made)
        ids = self.sizes.vocab + codes_BN.to(self.device)
        inputs.ids_BL[:] = ids if masked_BN is None else ids.masked_fill(masked_BN.to(self.device), MASK)
        inputs = inputs._replace(codes=self._part(torch.arange(self.rows * num, device=self.device)))
        hidden = self._read(inputs, self._within(num), keep=keep)
        if keep:
            self._pass(num)
        return self.model.logits(hidden.states_BLD, "codes")

    def code(self, codes_B: Sequence[int], place: int, *, made: bool = True) -> Tensor:
        """Read one code of an image that is written code by code; return the logits after it, (B, ids)."""
        inputs = self._image(1, made=made)
        inputs.ids_BL[:, 0] = self.sizes.vocab + torch.tensor(list(codes_B), device=self.device)
        if self.config.layout.positions == "raster":
            self.pos += place > 0
            inputs.pos_BL[:] = self.pos
        at = torch.arange(self.rows, device=self.device)
        inputs = inputs._replace(codes=Part(at, at, torch.full_like(at, place)))
        hidden = self._read(inputs, torch.ones(1, 1, dtype=torch.bool), keep=True)
        return self.model.logits(hidden.states_BLD[:, -1])

    def features(self, features_BNF: Tensor) -> Tensor:
        """Read the features of an image with its boi and eoi; return the logits after it."""
        num = self.sizes.und_tokens
        self.edge(BOI)
        inputs = self._image(num, made=False)
        at = torch.arange(self.rows * num, device=self.device)
        flat = features_BNF.reshape(-1, self.sizes.und_dim).to(self.device, self.dtype)
        inputs = inputs._replace(features=Part(at, at // num, at % num), features_NF=flat)
        self._read(inputs, self._within(num), keep=True)
        self._pass(num)
        return self._close()

    def image(self, values: Tensor, *, made: bool) -> Tensor:
        """Read a finished image with its boi and eoi, numbers (B, N, P) or codes (B, N); return the logits after it."""
        self.edge(BOI)
        if self.sizes.codes:
            self.codes(values, made=made, keep=True)
        else:
            self.numbers(values, 0.0, made=made, keep=True)
        return self._close()

    def null_image(self) -> Tensor:
        """Read an image span that shows nothing; return the logits after it."""
        num = self.sizes.und_tokens if self.sizes.und_dim else self.sizes.tokens
        self.edge(BOI)
        within = torch.ones(num, num, dtype=torch.bool).tril()
        self._read(self._inputs(torch.full((self.rows, num), NULL), self._places(num)), within, keep=True)
        self._pass(num)
        return self._close()

    def _close(self) -> Tensor:
        logits = self.edge(EOI)
        self.pos += 1
        return logits

    def _pass(self, num: int) -> None:
        self.pos = int(self._places(num)[-1])

    def _places(self, num: int) -> Tensor:
        return self.pos + torch.arange(num) * (self.config.layout.positions == "raster")

    def _within(self, num: int) -> Tensor:
        whole = torch.ones(num, num, dtype=torch.bool)
        return whole if self.config.mask == "span_bidir" else whole.tril()

    def _part(self, at_N: Tensor) -> Part:
        num = self.sizes.tokens
        number = torch.arange(self.rows * num, device=self.device)
        return Part(at_N, number // num, number % num)

    def _image(self, num: int, *, made: bool, time: float = 0.0, told: int = 0) -> Inputs:
        """Return the inputs of image tokens, values left out; the first `told` of them tell a time."""
        params = self.config.params
        tower = 0 if params.share != "mot" else 1 if params.route_by == "modality" else (MADE if made else READ)
        pos = torch.cat([torch.full((told,), self.pos), self._places(num - told)])
        inputs = self._inputs(torch.zeros(self.rows, num, dtype=torch.long), pos)
        return inputs._replace(
            tower_BL=torch.full_like(inputs.tower_BL, tower), modality_BL=torch.ones_like(inputs.modality_BL),
            time_BL=torch.full_like(inputs.time_BL, time),
        )  # fmt: skip

    def _inputs(self, ids_BT: Tensor, pos_T: Tensor) -> Inputs:
        """Return the inputs of text tokens."""
        ids = ids_BT.to(self.device)
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        none = Part(nothing, nothing, nothing)
        zeros = torch.zeros_like(ids)
        return Inputs(
            ids, pos_T.to(self.device).expand_as(ids).clone(), zeros, zeros, zeros.to(self.dtype), none, none,
            torch.zeros(0, self.sizes.dim, device=self.device, dtype=self.dtype), none,
            torch.zeros(0, self.sizes.und_dim, device=self.device, dtype=self.dtype), nothing,
        )  # fmt: skip

    def _read(self, inputs: Inputs, within_LL: Tensor, *, keep: bool) -> Hidden:
        num = within_LL.shape[0]
        before = torch.ones(num, self.length, dtype=torch.bool)
        mask = torch.cat([before, within_LL], 1).to(self.device).expand(self.rows, -1, -1)
        hidden: Hidden = self.model(inputs, mask, self.cache)
        if keep:
            self.cache = hidden.cache
            self.length += num
        return hidden
