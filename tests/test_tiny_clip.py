"""The small CLIP: it is open_clip's own format, it scores as its card says, and nothing crosses its splits."""

import csv
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

ROOT = Path(__file__).parent.parent
FAMILIES = ROOT / "recipes/tiny_clip/families.tsv"


def families() -> list[dict[str, str]]:
    with FAMILIES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    with ScorerSpec(open_clip=OpenClip(batch=8)).open("cpu", 1) as opened:
        return opened


def pairs(num: int) -> tuple[list[np.ndarray], list[str]]:
    rows = [row for row in known_rows().values() if row["kind"] == "clean"][:num]
    return [decode((DATA / str(row["path"])).read_bytes()) for row in rows], [str(row["text"]) for row in rows]


def test_a_family_lies_in_one_split() -> None:
    splits: dict[str, set[str]] = {}
    for row in families():
        splits.setdefault(row["family"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    shares = {name: sum(name in found for found in splits.values()) / len(splits) for name in ("train", "val", "rest")}
    assert shares["train"] == pytest.approx(0.4, abs=0.03)
    assert shares["val"] == pytest.approx(0.1, abs=0.03)


def test_the_demo_set_is_of_families_never_trained_on() -> None:
    split = {row["path"]: row["split"] for row in families()}
    with (DATA / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        sources = [row["path in openclipart-png"] for row in csv.DictReader(file, delimiter="\t")]
    known = [path for path in sources if path in split]
    assert len(known) >= 480
    assert {split[path] for path in known} == {"rest"}


def test_every_picture_has_its_source_and_licence() -> None:
    with (DATA / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    originals = {path.relative_to(DATA).as_posix() for path in (DATA / "images").iterdir() if path.is_file()}
    kinds = {str(row["path"]): str(row["kind"]) for row in known_rows().values()}
    made = {path for path, kind in kinds.items() if kind in ("html_named_jpg", "huge_png")}
    assert originals - made <= set(rows)
    assert all(row["licence"] for row in rows.values())


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
