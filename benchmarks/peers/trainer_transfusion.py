"""The peer of `benchmarks/trainer.py`: transfusion-pytorch, one sample a row, without what costs time and can go.

    python trainer_transfusion.py OPTIONS.json

Left out: U-Net skips, gated values, value residuals, condition dropout, axial positions, the losses of reconstruction and of
consistency, type checks at run time. What cannot be left out is part of the model: adaptive norms by the noise time of each
token, attention residuals over all layers, a soft cap on attention, logits for every token. Its choice of how a batch is
prepared is its own (`auto`, timed by itself in the warm-up). FlexAttention on a GPU alone, as it has it.
"""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import json
from importlib.metadata import version

import numpy as np
import torch
from trainer_steps import measured, opened
from transfusion_pytorch import Transfusion

OWN_IDS = 3 + 2 + 129  # sos, eos, null; start and end of an image; the characters of its shape


def made(options: dict) -> Transfusion:
    width, heads = options["width"], options["heads"]
    expansion = (options["hidden"] + 0.5) * 1.5 / width  # it takes the whole part of width * expansion * 2 / 3
    cuda = options["device"] == "cuda"
    model = Transfusion(
        num_text_tokens=options["vocab"] - OWN_IDS,
        dim_latent=options["channels"],
        modality_default_shape=(options["patches"],),
        prob_uncond=0.0,
        transformer={
            "dim": width, "depth": options["depth"], "dim_head": width // heads, "heads": heads, "ff_expansion_factor": expansion,
            "unet_skips": False, "use_value_residual": False, "use_flex_attn": cuda, "attn_kwargs": {"gate_values": False},
        },
    )  # fmt: skip
    if model.transformer.layers[0][2].fn.net[0].out_features != 2 * options["hidden"]:
        raise ValueError("the hidden size of the peer is not ours")
    return model.to(options["device"])


def samples(options: dict, ids_RT: np.ndarray, patches_RNCP: np.ndarray) -> list[list[torch.Tensor]]:
    """Return each row as one sample: text and image in turn, and the text that is left."""
    per = options["text"]
    found = []
    for ids_T, patches_NCP in zip(ids_RT, patches_RNCP, strict=True):
        sample = []
        for place, patches_CP in enumerate(patches_NCP):
            sample.append(torch.from_numpy(ids_T[place * per : (place + 1) * per]))
            sample.append(torch.from_numpy(patches_CP))
        sample.append(torch.from_numpy(ids_T[len(patches_NCP) * per :]))
        found.append([part.to(options["device"]) for part in sample])
    return found


def main() -> None:
    options, batch = opened()
    model, rows = made(options), samples(options, batch["ids"], batch["patches"])
    seen = []
    model.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    low = options["device"] == "cuda"

    def loss_of(num: int) -> torch.Tensor:
        with torch.autocast(options["device"], dtype=torch.bfloat16, enabled=low):
            return model(rows[:num])

    found = measured(model, loss_of, options)
    text = sum(len(part) for part in rows[0] if part.ndim == 1)
    patches = sum(len(part) for part in rows[0] if part.ndim == 2)
    facts = {"version": version("transfusion-pytorch"), "length": seen[-1], "text": text, "patches": patches}
    print(json.dumps(found | facts))


if __name__ == "__main__":
    main()
