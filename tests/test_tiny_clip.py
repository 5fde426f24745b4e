"""The small CLIP: it is open_clip's own format, and it scores as its card says."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmdata.demo.server import DATA
from mmdata.demo.truth import known_rows
from mmdata.errors import ConfigError
from mmdata.media import decode
from mmdata.models import TINY_CLIP_FOLDER, OpenClip, ScorerSpec
from mmdata.models.scorer import Scorer


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    with ScorerSpec(open_clip=OpenClip(batch=8)).open("cpu", 1) as opened:
        return opened


def pairs(num: int) -> tuple[list[np.ndarray], list[str]]:
    rows = [row for row in known_rows().values() if row["kind"] == "clean"][:num]
    return [decode((DATA / str(row["path"])).read_bytes()) for row in rows], [str(row["text"]) for row in rows]


def test_matching_pairs_score_above_mismatching_ones(scorer: Scorer) -> None:
    images, texts = pairs(64)
    matching = scorer.score(images, texts)
    mismatching = scorer.score(images, texts[1:] + texts[:1])
    auc = (matching[:, None] > mismatching[None, :]).mean()
    card = json.loads((TINY_CLIP_FOLDER / "metrics.json").read_text(encoding="utf-8"))
    assert auc > 0.75, f"AUC {auc:.3f}; the card says {card}"
    assert np.abs(matching).max() <= 1


def test_a_score_does_not_depend_on_its_batch(scorer: Scorer) -> None:
    images, texts = pairs(11)
    together = scorer.score(images, texts)
    alone = np.concatenate([scorer.score([image], [text]) for image, text in zip(images, texts, strict=True)])
    assert np.abs(together - alone).max() < 1e-5
    assert np.array_equal(scorer.score(images, texts), together)
    assert scorer.score([], []).shape == (0,)


def test_preprocessing_is_open_clips_own(scorer: Scorer) -> None:
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{TINY_CLIP_FOLDER}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    images, texts = pairs(4)
    with torch.inference_mode():
        left = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images]), normalize=True)
        right = model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    assert np.abs((left * right).sum(-1).numpy() - scorer.score(images, texts)).max() < 1e-5


def test_an_architecture_by_name_reads_local_weights(tmp_path: Path) -> None:
    import open_clip

    config = json.loads((TINY_CLIP_FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    (tmp_path / "own-arch.json").write_text(json.dumps(config["model_cfg"]), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "own-arch.json")
    spec = OpenClip(model="own-arch", weights=str(TINY_CLIP_FOLDER / "open_clip_model.safetensors"), batch=4)
    images, texts = pairs(4)
    with ScorerSpec(open_clip=spec).open("cpu", 1) as named:
        scores = named.score(images, texts)
    assert np.isfinite(scores).all()
    assert scores.mean() > named.score(images, texts[1:] + texts[:1]).mean()
    assert len(ScorerSpec(open_clip=spec).weights()) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (OpenClip(model="ViT-B-32"), r"named without weights[\s\S]*laion2b_s34b_b79k"),
        (OpenClip(model="ViT-B-32", weights="laion2b_s34b_b79kk"), r"knows no `ViT-B-32`[\s\S]*did you mean `laion2b_s34b_b79k`"),
        (OpenClip(model="ViT-B-33", weights="x"), r"knows no `ViT-B-33`[\s\S]*did you mean `ViT-B-32`"),
    ],
)
def test_unknown_models_are_refused_with_near_names(spec: OpenClip, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec.files()
