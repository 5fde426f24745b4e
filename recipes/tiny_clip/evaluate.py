"""Measure the tiny CLIP, choose the threshold for swapped captions on `val`, and write its card.

    python -m recipes.tiny_clip.evaluate --model tiny_clip --openclipart FOLDER/usr/share/openclipart \\
        --stamps FOLDER/usr/share/tuxpaint/stamps --photos FOLDER/usr/share/gcompris-qt/rcc

Writes `metrics.json` and `MODEL_CARD.md` into the model's folder. Axes: N pictures, D embedding.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from open_clip import CLIP
from torch import Tensor

from recipes.tiny_clip.outside import Captioned, read_photos, read_stamps
from recipes.tiny_clip.pictures import read_held
from recipes.tiny_clip.scores import (
    Scores,
    SwapReport,
    best_threshold,
    judge_swaps,
    matching_auc,
    recall_at_1,
    swap_captions,
)
from recipes.tiny_clip.student import Transform, embed_images, embed_texts, load

NUM_CANDIDATES = 400
SWAPPED_SHARE = 0.3
SEEDS = range(5)  # which captions are swapped, and which 400 compete, is luck; five draws even it out


class Figures(TypedDict):
    """What is reported of one set."""

    num_pictures: int
    auc: float
    recall_at_1: float
    num_candidates: int


class Batch(TypedDict):
    """One set, ready to be scored."""

    pixels_NCHW: Tensor
    captions: list[str]


def outside_batch(samples: Iterable[Captioned], transform: Transform) -> Batch:
    """Prepare pictures from outside the clip art, one for each caption."""
    first = {sample.caption: sample.picture for sample in reversed(list(samples))}
    return {"pixels_NCHW": torch.stack([transform(picture) for picture in first.values()]), "captions": list(first)}


def score_all(model: CLIP, batch: Batch) -> Scores:
    """Return (N, N) cosines of every picture with every caption."""
    images_ND, texts_ND = embed_images(model, batch["pixels_NCHW"]), embed_texts(model, batch["captions"])
    scores_NN: Scores = (images_ND @ texts_ND.T).numpy()
    return scores_NN


def measure(scores_NN: Scores, captions: list[str]) -> Figures:
    """Return AUC over all pairs, and R@1 among at most `NUM_CANDIDATES` captions."""
    num = min(NUM_CANDIDATES, len(captions))
    recalls = []
    for seed in SEEDS:
        drawn = np.random.default_rng(seed).permutation(len(captions))[:num]
        recalls.append(recall_at_1(scores_NN[np.ix_(drawn, drawn)], [captions[index] for index in drawn]))
    return {
        "num_pictures": len(captions),
        "auc": round(matching_auc(scores_NN), 4),
        "recall_at_1": round(float(np.mean(recalls)), 4),
        "num_candidates": num,
    }


def swapped(scores_NN: Scores, captions: list[str]) -> tuple[Scores, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return scores after swapping captions, and which rows now carry words that are not theirs."""
    scores, truths = [], []
    for seed in SEEDS:
        given = swap_captions(len(captions), SWAPPED_SHARE, seed)
        scores.append(scores_NN[np.arange(len(captions)), given])
        truths.append(np.array([captions[index] != captions[row] for row, index in enumerate(given)]))
    return np.concatenate(scores), np.concatenate(truths)


def time_per_image(model: CLIP, side: int, num_rounds: int = 20) -> float:
    """Return milliseconds to embed one picture alone, on one thread."""
    torch.set_num_threads(1)
    pixels = torch.zeros(1, 3, side, side)
    embed_images(model, pixels)
    times = []
    for _ in range(num_rounds):
        start = time.perf_counter()
        embed_images(model, pixels)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


CARD = """# tiny_clip

A CLIP of {megabytes:.1f} MB for the demonstration and the tests of mmdata. **It is no model for real corpora**: it has
seen {num_train} pieces of clip art. For real data name a real model, such as `ViT-B-32` / `laion2b_s34b_b79k`.

- Format: open_clip's own (`open_clip_config.json`, `open_clip_model.safetensors`, half precision). Image tower
  EfficientNet-Lite0 at 128 pixels, text tower a transformer of width 64 with open_clip's default tokenizer.
- Load it: `open_clip.create_model_and_transforms("local-dir:PATH")` and `open_clip.get_tokenizer("local-dir:PATH")`.
- Lay transparent pictures on white first; the transform drops transparency without asking.
- Training data: {num_train} pictures of Debian's `openclipart-png`, a public-domain collection, split by
  near-duplicate family (`recipes/tiny_clip/families.tsv`). Teachers: EfficientNet-Lite0 (ImageNet weights,
  Apache-2.0) and all-MiniLM-L6-v2 (MIT). English glosses are WordNet's, as timm ships them.
- Make it again: `recipes/tiny_clip`, half an hour on one CPU core.

## How well it tells captions apart

AUC: the chance that a picture scores higher with its own caption than another picture does with a foreign one. R@1: how
often the own caption wins among the given number. One picture of each family; stamps and photos are of other sources.

| set | pictures | AUC | R@1 | among |
|---|---|---|---|---|
{table}

## Threshold for swapped captions

Chosen on the validation families: drop a row if its cosine is below **{threshold:.3f}**. With 30 % of the captions
swapped at random:

| set | precision | recall | F1 |
|---|---|---|---|
{swaps}

## Limits

English nouns and drawings on white. It reads no text in pictures, counts nothing, and knows hardly any photo, place or
person. Stamps and photos above say how far it reaches beyond clip art. One picture takes {milliseconds:.0f} ms on one
thread of the machine that wrote this card.
"""

NAMES = {"val": "clip art, validation", "rest": "clip art, never trained on", "stamps": "stamps", "photos": "photos"}


def write_card(folder: Path, figures: dict[str, Figures], swaps: dict[str, SwapReport], num_train: int, ms: float) -> None:
    """Write `metrics.json` and `MODEL_CARD.md`."""
    metrics = {"sets": figures, "swapped": {name: report._asdict() for name, report in swaps.items()}}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    table = (
        f"| {NAMES[name]} | {row['num_pictures']} | {row['auc']:.3f} | {row['recall_at_1']:.2f} | {row['num_candidates']} |"
        for name, row in figures.items()
    )
    lines = (f"| {NAMES[name]} | {r.precision:.2f} | {r.recall:.2f} | {r.f1:.2f} |" for name, r in swaps.items())
    card = CARD.format(
        megabytes=(folder / "open_clip_model.safetensors").stat().st_size / 1e6,
        num_train=num_train,
        table="\n".join(table),
        threshold=swaps["val"].threshold,
        swaps="\n".join(lines),
        milliseconds=ms,
    )
    (folder / "MODEL_CARD.md").write_text(card)


def evaluate(model: CLIP, batches: dict[str, Batch]) -> tuple[dict[str, Figures], dict[str, SwapReport]]:
    """Return the figures of every set, and reports on swapped captions for the clip art."""
    scores = {name: score_all(model, batch) for name, batch in batches.items()}
    figures = {name: measure(scores[name], batch["captions"]) for name, batch in batches.items()}
    rows = {name: swapped(scores[name], batches[name]["captions"]) for name in ("val", "rest")}
    threshold = best_threshold(*rows["val"])
    return figures, {name: judge_swaps(*row, threshold) for name, row in rows.items()}


def main() -> None:
    """Measure, write, and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--openclipart", type=Path, required=True, help="folder with png/ and svg/")
    parser.add_argument("--families", type=Path, default=Path(__file__).with_name("families.tsv"))
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    flags = parser.parse_args()
    model, transform = load(flags.model)
    batches: dict[str, Batch] = {}
    for split in ("val", "rest"):
        held = read_held(flags.openclipart, flags.families, split, transform)
        batches[split] = {"pixels_NCHW": held.pixels_NCHW, "captions": held.captions}
    batches["stamps"] = outside_batch(read_stamps(flags.stamps), transform)
    batches["photos"] = outside_batch(read_photos(flags.photos), transform)
    figures, swaps = evaluate(model, batches)
    num_train = sum(line.endswith("\ttrain") for line in flags.families.read_text().splitlines())
    write_card(flags.model, figures, swaps, num_train, time_per_image(model, batches["val"]["pixels_NCHW"].shape[-1]))
    print((flags.model / "metrics.json").read_text())


if __name__ == "__main__":
    main()
