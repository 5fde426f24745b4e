"""How many operations a step takes, and what share of the device's peak that is.

    6 * sum over kinds of tokens of (tokens * parameters that such a token uses)
    + 12 * layers * width * (pairs of tokens that the mask allows)
Forward and backward, a multiplication and an addition as two. Embeddings that are looked up are no operations, padding and
what activation checkpointing computes twice are not counted.
"""

from collections.abc import Mapping

import torch

from mmdata.trainer.config import TrainConfig
from mmdata.trainer.model import Transformer

# 1e12 dense operations a second in bfloat16, from the vendor's data sheets.
PEAKS = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0,
}  # fmt: skip


def step_flops(model: Transformer, kinds: Mapping[str, float], predicted: Mapping[str, float], pairs: float) -> float:
    """Return the operations of a step.

    kinds   tokens of text and of images              predicted   predictions of each family, which alone have logits
    pairs   of tokens that the mask allows, summed over rows
    """
    sizes, config, active = model.sizes, model.config.model, active_parameters(model)
    products = sum(number * active[kind] for kind, number in kinds.items())
    stream = model.config.text.objective == model.config.image.objective == "ar"
    ids = {"text": sizes.ids if stream else sizes.vocab, "codes": sizes.ids if stream else sizes.codes, "latents": sizes.dim}
    heads = sum(number * config.width * ids[family] for family, number in predicted.items())
    return 6 * (products + heads) + 12 * config.layers * config.width * pairs


def active_parameters(model: Transformer) -> dict[str, int]:
    """Return how many parameters a token of text, and one of an image, is multiplied with: one tower, `top_k` experts.

    The maps of an image's numbers are counted for images alone, the heads for neither: they make few predictions.
    """
    towers, params = model.config.params.towers, model.config.params
    both = images = 0
    for name, parameter in model.named_parameters():
        first, num = name.partition(".")[0], parameter.numel()
        if first in {"patch_in", "feature_in", "time"}:
            images += num
        elif first not in {"embed", "place", "feature_place", "head", "patch_out"}:
            routed = (
                params.share == "moe" and ".ffn." in name and name.rpartition(".")[2] in {"up", "down"} and "shared" not in name
            )
            both += num * params.top_k // params.experts if routed else num // (towers if first in {"blocks", "norm"} else 1)
    return {"text": both, "image": both + images}


def peak_flops(config: TrainConfig, device: torch.device, *, low: bool) -> float | None:
    """Return the operations a second that a device could do; null where nobody knows.

    low  matrix products are in bfloat16: the table is of that alone
    """
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda" or not low:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAKS.items() if all(word in name for word in part.split())), None)
