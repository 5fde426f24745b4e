"""A document in which everything sees everything, with one block to be sampled: the model reads all of it at every step.

Axes: C conditions, B rows, N tokens that are sampled, P numbers of a token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdata.text.tokenizer import MASK
from mmdata.trainer.batch import collate, fill
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Tokens
from mmdata.trainer.model import Hidden, Transformer
from mmdata.trainer.paths import path_of


class Canvas:
    """Documents of one structure, C * B of them, the conditional ones first. What is to be sampled is what they predict."""

    def __init__(self, model: Transformer, encoders: Encoders, tokens: Sequence[Tokens]) -> None:
        self.model, self.sizes, self.rows = model, model.sizes, len(tokens)
        device, self.dtype = model.embed.weight.device, model.embed.weight.dtype
        batch = collate([[one] for one in tokens], len(tokens[0])).to(device)
        self.inputs, _ = fill(batch, encoders, path_of(model.config.image).mix, self.dtype)
        self.mask = batch.sight.dense()
        self.predict, self.learnt = batch.predict_M, batch.learnt_N
        here = batch.latents.at_N[self.learnt]
        # A token that tells a time stands right before the image whose time it is.
        self.timed = torch.cat([here, batch.times_N[torch.isin(batch.times_N + 1, here)]])

    def text(self, ids_BN: Tensor, masked_BN: Tensor) -> Tensor:
        """Return logits of text, (C * B, N, ids), for ids of which some are masked; conditions share them."""
        return self._ids(ids_BN, masked_BN, 0, "text")

    def codes(self, codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
        """Return logits of codes, (C * B, N, codes)."""
        return self._ids(codes_BN, masked_BN, self.sizes.vocab, "codes")

    def numbers(self, values_BNP: Tensor, time: float) -> Tensor:
        """Return what the head gives for numbers at a noise time, (C * B, N, P)."""
        rows = self.rows // len(values_BNP)
        flat = values_BNP.to(self.inputs.values_NP).repeat(rows, 1, 1).reshape(-1, self.sizes.dim)
        values = self.inputs.values_NP.index_copy(0, self.learnt, flat)
        times = self.inputs.time_BL.reshape(-1).index_fill(0, self.timed, time).view_as(self.inputs.time_BL)
        states = self._run(self.inputs._replace(values_NP=values, time_BL=times)).states_BLD
        at = self.inputs.latents.at_N[self.learnt]
        found: Tensor = self.model.patch_out(states.flatten(0, 1)[at])
        return found.view(self.rows, -1, self.sizes.dim)

    def _ids(self, ids_BN: Tensor, masked_BN: Tensor, first: int, family: str) -> Tensor:
        rows = self.rows // len(ids_BN)
        shown = (ids_BN + first).masked_fill(masked_BN, MASK).repeat(rows, 1).reshape(-1).to(self.predict.device)
        ids = self.inputs.ids_BL.reshape(-1).index_copy(0, self.predict, shown).view_as(self.inputs.ids_BL)
        states = self._run(self.inputs._replace(ids_BL=ids)).states_BLD.flatten(0, 1)[self.predict]
        return self.model.logits(states, family).view(self.rows, ids_BN.shape[1], -1)

    def _run(self, inputs: object) -> Hidden:
        found: Hidden = self.model(inputs, self.mask)
        return found
