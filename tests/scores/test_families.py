"""SigLIP and multilingual models: their tokenizers, and their scores as cosines. Small ones in open_clip's own layout.

What a tokenizer of transformers is made of comes with the model's folder, so that no hub is asked.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdata.errors import ConfigError
from mmdata.models import OpenClip
from tests.scores.small import write_model

TEXTS = ["a red square", "un carré rouge", "ein rotes Quadrat", "赤い四角", "مربع أحمر", "красный квадрат"]
SIGLIP = {"hf_tokenizer_name": "own", "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True,
          "pool_type": "last", "vocab_size": 400}  # fmt: skip
SQUASHED = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


def write_tokenizer(folder: Path) -> None:
    """Train a tokenizer on the texts and write it as transformers reads it."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(TEXTS * 4, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "siglip")
    return write_model(tmp_path / "siglip", text=SIGLIP, custom_text=True, init_logit_bias=-10.0, preprocess_cfg=SQUASHED)


@pytest.fixture
def multilingual(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "many")
    import transformers

    config = transformers.XLMRobertaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    config.save_pretrained(tmp_path / "many" / "text")
    text = {
        "hf_model_name": str(tmp_path / "many/text"),
        "hf_tokenizer_name": "own",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
    }
    return write_model(tmp_path / "many", text=text, custom_text=True)


@pytest.mark.parametrize("family", ["siglip", "multilingual"])
def test_scores_are_cosines_of_the_models_own_tokens(family: str, request: pytest.FixtureRequest) -> None:
    import open_clip

    name = f"local-dir:{request.getfixturevalue(family)}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    image = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    with torch.inference_mode():
        left = model.eval().encode_image(preprocess(Image.fromarray(image))[None], normalize=True)
        right = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
    with OpenClip(model=name.removeprefix("local-dir:"), batch=4).open("cpu", 1) as towers:
        scores = towers.score([image] * len(TEXTS), TEXTS)
    assert np.abs(scores - (left @ right.T).numpy()[0]).max() < 1e-5
    assert len(set(scores.tolist())) == len(TEXTS)  # no script ends as one unknown token
    assert np.abs(scores).max() <= 1


def test_the_tokenizer_is_part_of_what_was_asked(siglip: Path) -> None:
    before = OpenClip(model=str(siglip)).digests()
    names = [path.name for path in OpenClip(model=str(siglip)).files()]
    assert names[:2] == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert "tokenizer.json" in names
    facts = json.loads((siglip / "tokenizer.json").read_text(encoding="utf-8"))
    (siglip / "tokenizer.json").write_text(json.dumps(facts | {"version": "1.0 "}), encoding="utf-8")
    assert OpenClip(model=str(siglip)).digests() != before


def test_a_tokenizer_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "bare", text=SIGLIP, custom_text=True, init_logit_bias=-10.0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with (
        pytest.raises(ConfigError, match=r"needs a package that is not here[\s\S]*pip install mmdata\[transformers\]"),
        OpenClip(model=str(folder)).open("cpu", 1),
    ):
        pass
