"""Every legal combination of objectives, mask and sharing takes 20 steps, learns what it sees, and samples both ways."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmdata.trainer.moe import end_step
from mmdata.trainer.objectives import counts_of, loss_sums, weighted
from mmdata.trainer.use import Generator
from tests.trainer.common import SHARES, batch_of, config, merged, picture, small

OBJECTIVES = [
    {"text": {"objective": text}, "image": {"objective": image}, "mask": mask}
    for text, image, mask in itertools.product(
        ("ar", "mdm"), ("ar", "mdm", "flow", "ddpm_eps", "none"), ("causal", "span_bidir", "full")
    )
]
MORE: list[dict[str, Any]] = [
    {"time": {"cond": "token"}}, {"time": {"cond": "adaln"}}, {"time": {"cond": "none"}}, {"image": {"predict": "clean"}},
    {"image": {"predict": "noise"}}, {"image": {"objective": "ddpm_eps", "predict": "velocity"}},
    {"layout": {"positions": "raster"}}, {"noise_isolated": False, "layout": {"clean_copy": False}},
    {"params": {"share": "mot", "route_by": "task"}}, {"params": {"share": "moe", "top_k": 1, "balance": "switch"}},
    {"params": {"share": "moe", "balance": "switch", "scores": "sigmoid", "shared_expert": True, "experts": 4}},
    {"noise_isolated": False, "layout": {"clean_copy": False, "und_noise_cap": 0.5}}, {"model": {"qk_norm": False}},
    {"layout": {"p_drop_image": 0.5, "decompose": 0.5}}, {"sampler": {"solver": "heun", "cfg": 1.0}},
    {"sampler": {"solver": "midpoint", "renorm": 0.5, "cfg_image": 1.5, "cfg_interval": [0.2, 0.9]}},
    {"image": {"objective": "ar", "repr": {"gen": "vq", "und": "pixel_patch"}}, "mask": "causal"},
    {"text": {"objective": "mdm"}, "mask": "full", "time": {"joint": "shared_t", "cond": "token"}},
    {"text": {"objective": "mdm"}, "mask": "full", "time": {"joint": "independent_t", "cond": "adaln"}},
    {"text": {"objective": "mdm", "masking": "cosine"}, "mask": "full", "sampler": {"text_choice": "ancestral"}},
    {
        "text": {"objective": "mdm"}, "mask": "full", "layout": {"p_drop_image": 0.5},
        "image": {"objective": "mdm", "masking": "likelihood", "repr": {"gen": "vq"}},
    },
]  # fmt: skip


def legal(settings: dict[str, Any]) -> bool:
    vq = {"image": {"repr": {"gen": "vq"}, "tokenizer": "x"}} if settings["image"]["objective"] in {"ar", "mdm"} else {}
    try:
        config(merged(settings, vq, {"layout": {"p_caption_first": 0.0}}))
    except ValidationError:
        return False
    return True


LEGAL = [settings for settings in OBJECTIVES if legal(settings)]


def test_there_are_as_many_legal_combinations_as_the_rules_leave() -> None:
    # Text one by one: codes causal (1); masks, flow, noise, none with two masks each (8). Text behind masks: full, four (4).
    assert len(LEGAL) == 13


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("settings", LEGAL, ids=str)
def test_a_combination_learns_and_samples(tmp_path: Path, settings: dict[str, Any], share: str) -> None:
    vq = {"image": {"repr": {"gen": "vq"}}} if settings["image"]["objective"] in {"ar", "mdm"} else {}
    learn_and_sample(tmp_path, merged(settings, vq, SHARES[share]))


@pytest.mark.parametrize("settings", MORE, ids=str)
def test_a_switch_learns_and_samples(tmp_path: Path, settings: dict[str, Any]) -> None:
    learn_and_sample(tmp_path, settings)


def learn_and_sample(folder: Path, settings: dict[str, Any]) -> None:
    """Take 20 steps on one batch, whose loss must fall, and sample images, captions and a document."""
    torch.set_num_threads(1)
    sampler = {"sampler": {"steps": 4, "text_steps": 4, "max_text_tokens": 4}}
    only_read = {"layout": {"p_caption_first": 0.0}} if settings.get("image", {}).get("objective") == "none" else {}
    one = small(folder, sampler, only_read, settings)
    batch = batch_of([one.tokens("ti", 0), one.tokens("ti", 1), one.tokens("it", 2)], [one.tokens("tit", 3)])
    optimizer, counts = torch.optim.AdamW(one.model.parameters(), lr=3e-3), counts_of([batch])
    one.model.train()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = weighted(loss_sums(one.model, batch, one.encoders).named, counts, one.config)
        loss.backward()
        optimizer.step()
        end_step(one.model, lambda load: load)
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    generator = Generator(one.model.eval(), one.encoders, one.sequencer)
    if one.config.image.objective != "none":
        first, again = generator.images(["a red 0", "a red 0 a red 1"]), generator.images(["a red 0"])
        assert [image.shape for image in first] == [(8, 8, 3)] * 2
        assert np.array_equal(first[0], again[0])  # whatever is made beside it
    captions = generator.captions([picture(0), picture(1)])
    assert captions[0] == generator.captions([picture(0)])[0]
    if one.config.mask != "full":
        blocks = generator.document(["a red 0", picture(1)], more=2)
        assert all(isinstance(block, str) or block.shape == (8, 8, 3) for block in blocks)
