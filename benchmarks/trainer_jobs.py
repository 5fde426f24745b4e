"""A side of `benchmarks/trainer.py` that runs in our own environment, in a process of its own.

    python -m benchmarks.trainer_jobs OPTIONS.json      print what a step took as JSON; `side` is ours, causal or peak

`ours` alone knows the trainer. `causal` is the physical reference: a plain transformer with the causal kernel, cross-entropy on
every token, nothing else. `peak` is one product of squares.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.trainer_steps import measured, opened
from benchmarks.trainer_data import PATCH, SIZE, TEXT
from mmdata.text import train_tokenizer
from mmdata.trainer.batch import collate
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Sequencer
from mmdata.trainer.model import Transformer
from mmdata.trainer.objectives import counts_of, loss_sums, weighted

LossOf = Callable[[int], Tensor]  # the loss of the first so many rows


def ours(options: dict[str, Any], ids_RT: np.ndarray, images_RNHWC: np.ndarray) -> tuple[nn.Module, LossOf, dict[str, Any]]:
    """Return the trainer's model at a kind of sharing, its loss, and facts of the batch: all that knows the trainer."""
    device = options["device"]
    config = TrainConfig.model_validate({
        "name": "bench", "corpus": "-", "mask": options["mask"], "noise_isolated": False, "params": {"share": options["share"]},
        "layout": {"clean_copy": False, "p_drop_text": 0, "row_tokens": options["length"]},
        "image": {"size": SIZE, "patch": PATCH},
        "precision": "float32" if device == "cpu" else "bfloat16",
        "model": {
            "width": options["width"], "layers": options["depth"], "heads": options["heads"],
            "ffn_mult": options["hidden"] / options["width"],
        },
    })  # fmt: skip
    encoders = Encoders(config, options["vocab"], device)
    sequencer = Sequencer(config, train_tokenizer(["a"], 300), encoders.sizes)
    dice = np.random.default_rng(0)
    started = time.perf_counter()
    laid = [[sequencer.lay_out(blocks_of(*row), dice)] for row in zip(ids_RT, images_RNHWC, strict=True)]
    batches = {num: collate(laid[:num], options["length"]) for num in (1, len(laid))}
    batch = batches[len(laid)]
    facts = {
        "collate_s": time.perf_counter() - started, "length": batch.ids_BL.shape[1],
        "text": len(ids_RT[0]), "patches": len(batches[1].latents.at_N),
    }  # fmt: skip
    moved = {num: some.to(device) for num, some in batches.items()}
    model = Transformer(config, encoders.sizes).to(device)

    def loss_of(num: int) -> Tensor:
        loss: Tensor = weighted(loss_sums(model, moved[num], encoders).named, counts_of([moved[num]]), config)
        return loss

    return model, loss_of, facts


def blocks_of(ids_T: np.ndarray, images_NHWC: np.ndarray) -> list[list[int] | np.ndarray]:
    """Return a row's blocks: text and image in turn, and the text that is left."""
    found: list[list[int] | np.ndarray] = []
    for place, image_HWC in enumerate(images_NHWC):
        found += [ids_T[place * TEXT : (place + 1) * TEXT].tolist(), image_HWC]
    return [*found, ids_T[len(images_NHWC) * TEXT :].tolist()]


class Plain(nn.Module):
    """A plain causal transformer: RMSNorm, RoPE, the causal kernel, SwiGLU."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        width, hidden, self.heads = options["width"], options["hidden"], options["heads"]
        self.embed = nn.Embedding(options["vocab"], width)
        parts = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 2 * hidden), "down": (hidden, width)}
        self.blocks = nn.ModuleList()
        for _ in range(options["depth"]):
            linear = {name: nn.Linear(*sizes, bias=False) for name, sizes in parts.items()}
            self.blocks.append(nn.ModuleDict(linear | {"norm1": nn.RMSNorm(width), "norm2": nn.RMSNorm(width)}))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, options["vocab"], bias=False)
        half = width // self.heads // 2
        angle_LE = torch.arange(options["length"])[:, None] * 10_000 ** (-torch.arange(half) / half)
        self.register_buffer("cos_LE", angle_LE.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin_LE", torch.cat([-angle_LE.sin(), angle_LE.sin()], 1), persistent=False)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next token."""
        x = self.embed(ids_BL)
        batch, length, width = x.shape
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # type: ignore[index]
            y = functional.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(batch, length, width))  # type: ignore[index]
            gate, up = block["up"](block["norm2"](x)).chunk(2, -1)  # type: ignore[index]
            x = x + block["down"](functional.silu(gate) * up)  # type: ignore[index]
        logits = self.head(self.norm(x)).flatten(0, 1)
        return functional.cross_entropy(logits.float(), ids_BL.roll(-1, 1).flatten())

    def turned(self, x_BHLE: Tensor) -> Tensor:
        """Return queries or keys turned by their places."""
        left, right = x_BHLE.chunk(2, -1)
        return x_BHLE * self.cos_LE.to(x_BHLE.dtype) + torch.cat([right, left], -1) * self.sin_LE.to(x_BHLE.dtype)  # type: ignore[operator]


def causal(options: dict[str, Any]) -> tuple[nn.Module, LossOf, dict[str, Any]]:
    """Return the physical reference on rows of random ids."""
    device = options["device"]
    model = Plain(options).to(device)
    ids_BL = torch.randint(options["vocab"], (options["rows"], options["length"]), device=device)

    def loss_of(num: int) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss: Tensor = model(ids_BL[:num])
        return loss

    return model, loss_of, {"length": options["length"], "text": options["length"], "patches": 0}


def peak(options: dict[str, Any]) -> dict[str, Any]:
    """Return the operations a second of a product of squares, the best of some: float32, or bfloat16 on a GPU."""
    side, device = options["side_of_squares"], options["device"]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    took = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(one, other)
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return {"flops_per_s": 2 * side**3 / min(took)}


def main() -> None:
    options, batch = opened()
    if options["side"] == "peak":
        print(json.dumps(peak(options)))
        return
    model, loss_of, facts = ours(options, batch["ids"], batch["images"]) if options["side"] == "ours" else causal(options)
    print(json.dumps(facts | measured(model, loss_of, options)))


if __name__ == "__main__":
    main()
