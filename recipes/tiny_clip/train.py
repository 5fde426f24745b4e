"""Train the tiny CLIP: first the text tower on a teacher's vectors, then the image tower, then both on captions.

    python -m recipes.tiny_clip.train --openclipart FOLDER/usr/share/openclipart --out tiny_clip --work cache

About half an hour on one CPU core. Only the `train` split is learned from; `val` chose the settings. `--work`
keeps the teachers' vectors, which take five minutes and do not change between runs.

Axes: N pictures or texts, T tokens, D embedding, C channels, H height, W width, K classes, V vocabulary.
"""

import argparse
import copy
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from recipes.tiny_clip.openclipart import Clip, worded
from recipes.tiny_clip.pictures import Held, Pairs, draw_epoch, read_canvas, read_held, read_split, to_pixels
from recipes.tiny_clip.scores import matching_auc, recall_at_1
from recipes.tiny_clip.student import CONTEXT_TOKENS, TEXT_WIDTH, create, embed_images, embed_texts, save
from recipes.tiny_clip.teachers import (
    DIMENSIONS,
    TextTeacher,
    corpus,
    image_labels,
    image_trunk,
    label_vectors,
    vocabulary,
)

SEED = 20240607
BATCH_SIZE = 128
TEXT_BATCH_SIZE = 256
LEARNING_RATE = 1e-3
RIDGE, PRIOR_SHARE = 1000.0, 0.5  # by validation AUC
HEAD_STD = 0.02  # of the weights the regression gives; only their direction matters, half precision likes this size
FROZEN_STAGES = 2  # of the image tower's seven: edges and textures are learned already, and cost the most time
TEACHER_TEMPERATURE = 0.08
SOFT_SHARE = 0.25
SEEN_WEIGHT, REPLAY_WEIGHT = 1.0, 2.0  # of the two teachers, beside the contrast's 1
MAX_SCALE = 50.0
AVERAGE_DECAY = 0.98  # of the weights per step


class Targets(NamedTuple):
    """What the teachers say, rotated into the student's space."""

    texts: dict[str, int]  # to the row in the next two
    tokens_NT: Tensor
    texts_ND: Tensor
    vocabulary_VD: Tensor
    labels_KD: Tensor


def note(text: str) -> None:
    """Report progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def cached(folder: Path, name: str, sources: Sequence[str], make: Callable[[], Tensor]) -> Tensor:
    """Return a tensor that is kept in `folder`, making it first if need be; it is bound to what it was made of."""
    digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:12]
    path = folder / f"{name}-{digest}.pt"
    if not path.exists():
        torch.save(make(), path)
    loaded: Tensor = torch.load(path, weights_only=True)
    return loaded


def ask_teachers(clips: list[Clip], work: Path) -> Targets:
    """Embed the corpus, the vocabulary and the image labels, and rotate them to their main directions."""
    teacher, tokenizer = TextTeacher(), open_clip.SimpleTokenizer(context_length=CONTEXT_TOKENS)
    texts = corpus(clips, tokenizer, SEED)
    words, labels = vocabulary(tokenizer), image_labels()
    texts_ND = cached(work, "corpus", texts, lambda: teacher.embed(texts))
    vocabulary_VD = cached(work, "vocabulary", words, lambda: teacher.embed(words))
    labels_KD = cached(work, "labels", labels, lambda: teacher.embed(labels))
    # Not centred: the first direction then holds the mean, and cosines stay those of the teacher.
    basis = torch.linalg.svd(texts_ND, full_matrices=False).Vh[:DIMENSIONS].T
    tokens_NT = open_clip.tokenize(texts, context_length=CONTEXT_TOKENS)
    numbered = {text: row for row, text in enumerate(texts)}
    vectors_ND, labels_KD = normalize(texts_ND @ basis, dim=-1), normalize(labels_KD @ basis, dim=-1)
    return Targets(numbered, tokens_NT, vectors_ND, vocabulary_VD @ basis, labels_KD)


def train_text(model: CLIP, targets: Targets, num_epochs: int) -> None:
    """Teach the text tower the teacher's vectors; rare tokens start from their own teacher vector."""
    with torch.no_grad():
        start = targets.vocabulary_VD[:, :TEXT_WIDTH]
        model.token_embedding.weight.copy_(0.5 * start / start.std(0))
    tokens_NT = targets.tokens_NT
    embedding = [model.token_embedding.weight]
    others = [value for name, value in text_parameters(model) if name != "token_embedding.weight"]
    optimizer = AdamW([{"params": embedding, "lr": 1e-3}, {"params": others, "lr": 2e-3}], weight_decay=0.0)
    num_steps = num_epochs * (len(tokens_NT) // TEXT_BATCH_SIZE)
    schedule = OneCycleLR(optimizer, [1e-3, 2e-3], total_steps=num_steps, pct_start=0.1)
    for epoch in range(num_epochs):
        losses = []
        for batch in torch.split(torch.randperm(len(tokens_NT)), TEXT_BATCH_SIZE)[: len(tokens_NT) // TEXT_BATCH_SIZE]:
            loss = distance(encode_text(model, tokens_NT[batch]), targets.texts_ND[batch])
            losses.append(step(loss, optimizer))
            schedule.step()
        note(f"text epoch {epoch}: cosine to teacher {1 - np.mean(losses):.3f}")


def text_parameters(model: CLIP) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what belongs to the text tower; CLIP keeps it in the model itself, next to `visual`."""
    for name, value in model.named_parameters():
        if not name.startswith("visual.") and name != "logit_scale":
            yield name, value


def encode_text(model: CLIP, tokens_NT: Tensor) -> Tensor:
    """Encode only as many positions as the longest text has: attention is causal, so the rest changes nothing."""
    longest = int(tokens_NT.argmax(-1).max()) + 1  # the end mark has the largest number of all tokens
    tokens_NT = tokens_NT[:, :longest]
    states_NTD = model.token_embedding(tokens_NT) + model.positional_embedding[:longest]
    states_NTD = model.ln_final(model.transformer(states_NTD, attn_mask=model.attn_mask[:longest, :longest]))
    ends_ND = states_NTD[torch.arange(len(tokens_NT)), tokens_NT.argmax(-1)]
    return normalize(ends_ND @ model.text_projection, dim=-1)


def distance(vectors_ND: Tensor, targets_ND: Tensor) -> Tensor:
    """Return the mean of one minus cosine."""
    return 1 - (vectors_ND * targets_ND).sum(-1).mean()


def step(loss: Tensor, optimizer: Optimizer) -> float:
    """Take one step of the optimizer and return the loss."""
    value = loss.item()
    if not np.isfinite(value):
        raise FloatingPointError(f"the loss became {value}; a lower learning rate may help")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return value


def read_pairs(root: Path, families: Path, targets: Targets, work: Path) -> Pairs:
    """Read the training pictures and ask the image teacher what it sees in them."""
    clips, names = read_split(root, families, "train")
    canvas = read_canvas(root, clips)
    # The teacher's vectors are rotated by a basis that depends on the corpus, so its texts are part of the key.
    sources = [*(clip["sha256"] for clip in clips), *targets.texts]
    seen = cached(work, "seen", sources, lambda: label_vectors(image_trunk(), canvas, targets.labels_KD))
    return Pairs(clips, names, canvas, seen)


def soft_targets(teacher_ND: Tensor) -> Tensor:
    """Return the (N, N) targets of the contrast: mostly the pair itself, partly captions that mean the same."""
    alike_NN = (teacher_ND @ teacher_ND.T / TEACHER_TEMPERATURE).softmax(-1)
    return (1 - SOFT_SHARE) * torch.eye(len(teacher_ND)) + SOFT_SHARE * alike_NN


def pair_optimizer(model: CLIP, num_steps: int) -> tuple[Optimizer, LRScheduler]:
    """Give the projection and the scale the full rate, and the taught towers a fifth of it."""
    for part in [model.visual.trunk.conv_stem, *model.visual.trunk.blocks[:FROZEN_STAGES]]:
        part.requires_grad_(False)
    trunk = [value for value in model.visual.trunk.parameters() if value.requires_grad]
    head = [*model.visual.head.parameters(), model.logit_scale]
    text = [value for _, value in text_parameters(model)]
    groups = [(head, LEARNING_RATE), ([*trunk, *text], LEARNING_RATE / 5)]
    optimizer = AdamW([{"params": values, "lr": rate} for values, rate in groups], weight_decay=0.02)
    rates = [rate for _, rate in groups]
    return optimizer, OneCycleLR(optimizer, rates, total_steps=num_steps, pct_start=0.1)


def contrast(model: CLIP, pairs: Pairs, batch: list[int], targets: Targets, generator: random.Random) -> Tensor:
    """Return the loss of one batch: captions against pictures, and both against their teachers."""
    texts = [worded(pairs.clips[index], generator.choice((0, 0, 0, 1, 2, 4))) for index in batch]
    rows_N = [targets.texts[text] for text in texts]
    pixels = to_pixels(pairs.canvas_NCHW[batch], augment=True).contiguous(memory_format=torch.channels_last)
    images_ND = normalize(model.visual(pixels), dim=-1)
    texts_ND = encode_text(model, targets.tokens_NT[rows_N])
    wanted_NN = soft_targets(targets.texts_ND[rows_N])
    logits_NN = model.logit_scale.exp().clamp(max=MAX_SCALE) * images_ND @ texts_ND.T
    loss = (cross_entropy(logits_NN, wanted_NN) + cross_entropy(logits_NN.T, wanted_NN)) / 2
    replay = torch.randint(len(targets.texts), (2 * BATCH_SIZE,))
    remembered = distance(encode_text(model, targets.tokens_NT[replay]), targets.texts_ND[replay])
    return loss + SEEN_WEIGHT * distance(images_ND, pairs.seen_ND[batch]) + REPLAY_WEIGHT * remembered


def train_pairs(model: CLIP, pairs: Pairs, targets: Targets, num_epochs: int) -> CLIP:
    """Train both towers and return the average of the weights over the last steps."""
    generator = random.Random(SEED)
    num_steps = num_epochs * len(draw_epoch(pairs, BATCH_SIZE, random.Random(SEED)))
    optimizer, schedule = pair_optimizer(model, num_steps)
    average = copy.deepcopy(model)
    for epoch in range(num_epochs):
        losses = []
        for batch in draw_epoch(pairs, BATCH_SIZE, generator):
            losses.append(step(contrast(model, pairs, batch, targets, generator), optimizer))
            schedule.step()
            average = blend(average, model, 1 - AVERAGE_DECAY)
        note(f"epoch {epoch}: loss {np.mean(losses):.3f}")
    return average


@torch.no_grad()
def blend(start: CLIP, end: CLIP, share: float) -> CLIP:
    """Move the weights of `start` towards those of `end` by `share` of the way, in place, and return `start`."""
    for kept, new in zip(start.parameters(), end.parameters(), strict=True):
        kept.lerp_(new, share)
    return start


@torch.no_grad()
def centre_text(model: CLIP, tokens_NT: Tensor) -> None:
    """Shift the last bias so that the captions' mean becomes zero: what all captions share tells none apart."""
    states: list[Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    encode_text(model, tokens_NT)
    hook.remove()
    ends_ND = states[0][torch.arange(len(tokens_NT)), tokens_NT.argmax(-1)]
    model.ln_final.bias -= ends_ND.mean(0)


@torch.no_grad()
def refit_head(model: CLIP, pairs: Pairs) -> None:
    """Replace the image projection by a ridge regression from the trunk's features to the captions' vectors.

    The regression is drawn towards what ImageNet's classifier knows, not towards zero: its weights and the vectors of
    its labels give a projection for a thousand things in photos, most of which are in no training picture.
    """
    batches = torch.split(pairs.canvas_NCHW, 64)
    features = torch.cat([model.visual.trunk(to_pixels(batch, augment=False)) for batch in batches])
    wanted_ND = embed_texts(model, [worded(clip, 2) for clip in pairs.clips])
    labels_KD = embed_texts(model, image_labels())
    prior = image_trunk().get_parameter("classifier.weight").T @ (labels_KD - labels_KD.mean(0))
    guess_ND = features @ prior
    prior *= PRIOR_SHARE * wanted_ND.norm() / (guess_ND - guess_ND.mean(0)).norm()
    sizes = Counter(pairs.families)
    weighted = features.T / torch.tensor([sizes[family] for family in pairs.families])
    penalty = RIDGE * torch.eye(features.shape[1])
    weight = torch.linalg.solve(weighted @ features + penalty, weighted @ wanted_ND + RIDGE * prior).T
    model.visual.head.proj.weight.copy_(HEAD_STD * weight / weight.std())


def judge(model: CLIP, held: Held) -> tuple[float, float]:
    """Return AUC and R@1 on the validation pictures."""
    scores_NN = (embed_images(model, held.pixels_NCHW) @ embed_texts(model, held.captions).T).numpy()
    return matching_auc(scores_NN), recall_at_1(scores_NN, held.captions)


def main() -> None:
    """Train and save the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openclipart", type=Path, required=True, help="folder with png/ and svg/")
    parser.add_argument("--families", type=Path, default=Path(__file__).with_name("families.tsv"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the configuration and the weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for the teachers' vectors")
    parser.add_argument("--text-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(flags.threads)
    flags.work.mkdir(parents=True, exist_ok=True)
    # Evaluation mode throughout: batch normalisation keeps ImageNet's statistics, which 2,000 drawings would spoil.
    model, transform = create(flags.out)
    model.eval().visual.trunk.load_state_dict(image_trunk().state_dict(), strict=False)
    targets = ask_teachers(read_split(flags.openclipart, flags.families, "train")[0], flags.work)
    train_text(model, targets, flags.text_epochs)
    pairs = read_pairs(flags.openclipart, flags.families, targets, flags.work)
    held = read_held(flags.openclipart, flags.families, "val", transform)
    note(f"{len(pairs.clips)} training pictures, {len(held.clips)} validation families")
    average = train_pairs(model, pairs, targets, flags.epochs)
    note("validation AUC {:.4f}, R@1 {:.3f} as trained".format(*judge(average, held)))
    centre_text(average, targets.tokens_NT[[targets.texts[worded(clip, 2)] for clip in pairs.clips]])
    refit_head(average, pairs)
    note("validation AUC {:.4f}, R@1 {:.3f} with the projection fitted anew".format(*judge(average, held)))
    save(average, flags.out)


if __name__ == "__main__":
    main()
