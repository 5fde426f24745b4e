"""The atlas on shapes whose truth is known: does every objective, with every sharing, learn both directions, at equal compute?

    python -m benchmarks.atlas [--quick] [--seeds N] [--steps N] [--together N]

The corpus is made by `mmdata.demo.shapes`, the codes are k-means of its patches, the cells are trained and asked by `mmdata
atlas`. What was trained already is not trained again (the cache names a run by its config).
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import HERE, stamp
from benchmarks.loader_data import CACHE
from mmdata.demo.shapes import held_out, templates, write_shapes
from mmdata.loader import keyed
from mmdata.report.atlas import CLAIMED, HEAD, SPLITS, claim_rows, table_rows
from mmdata.trainer.atlas import AtlasConfig, run_atlas
from mmdata.trainer.checkpoint import latest
from mmdata.trainer.layout import Sequencer
from mmdata.trainer.vision import train_image_tokenizer
from mmdata.trainer.vision.config import TokenizerConfig

SIZE, PATCH, STEPS, LAST, DRAWS = 12, 3, 800, 20, 40
NOTES = """\
64 combinations of shape, quadrant and level, of which 56 are trained on and 8 held out; a caption is three words. *Seen* are the
56, *held out* the 8, whose words were all seen, but never these three together. *Captions*: share that has the words of the
true one. *Images*: share that is nearest to the picture of its own caption, among all 64. Intervals are Wilson's over the pairs
for one seed, Student's over seeds for several. All cells have the same corpus, rows a step, learning rate and operations; an
expert is 1 / top_k as wide as the dense layer. Eight held-out pairs tell little: what is to be read there is 0, some or all.

**Floor of the autoregressive cells** (a leak alarm). What a sample must cost: which of caption and image comes first is a coin,
and one of them says which of the 56 it is; a dropped caption tells at most its length. A loss below the floor means that a
token saw what it was to predict.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of two cells; never committed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--together", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    home = CACHE / ("atlas-quick" if options.quick else "atlas")
    atlas = asked(home, options.seeds, 10 if options.quick else options.steps, options.together, quick=options.quick)
    found = json.loads(run_atlas(atlas, home, lambda line: print(line, file=sys.stderr)).read_text(encoding="utf-8"))
    text = page(found, floors(atlas, home))
    sys.stdout.write(text)
    if not options.quick:
        (HERE / "results/atlas.md").write_text(text, encoding="utf-8")


def asked(home: Path, seeds: int, steps: int, together: int, *, quick: bool = False) -> AtlasConfig:
    """Make the corpus and the codes; return the atlas."""
    corpus = write_shapes(home / "shapes", size=SIZE)
    codes = home / "codes"
    made = {"name": "codes", "corpus": corpus, "size": SIZE, "tokenizer": {"kind": "kmeans", "factor": PATCH, "codes": 64}}
    train_image_tokenizer(TokenizerConfig.model_validate(made), codes)
    base: dict[str, Any] = {
        "name": "shapes", "corpus": corpus, "image": {"size": SIZE, "patch": PATCH}, "text": {"vocab": 300},
        "model": {"width": 128, "layers": 4, "heads": 4}, "layout": {"row_tokens": 512, "max_text_tokens": 8},
        "optim": {"steps": steps, "rows": 3, "micro_rows": 3, "lr": 2e-3, "warmup": 20},
        "sampler": {"steps": 16, "cfg": 2.0, "text_steps": 8, "image_temperature": 1.0},
        "evaluate": {"samples": 56, "every": 100_000, "retrieval": 8}, "eval_every": 400, "checkpoint_every": 100_000,
    }  # fmt: skip
    few = {"objectives": ("ar", "transfusion"), "shares": ("dense",)} if quick else {}
    return AtlasConfig.model_validate({"base": base, "codes": str(codes), "seeds": seeds, "together": together, **few})


def floors(atlas: AtlasConfig, home: Path) -> list[tuple[str, float, float]]:
    """Return of each autoregressive run: its name, nats a sample over its last steps, and the least that can be had."""
    found = []
    for folder in sorted((home / "runs").glob("ar-*")):
        checkpoint = latest(folder)
        if checkpoint is None:
            continue
        sequencer = Sequencer(checkpoint.config, checkpoint.tokenizer, checkpoint.encoders().sizes)
        least, tokens = least_nats(sequencer)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][-LAST:]
        nats = sum(float(np.mean([line[f"loss/{family}"] for line in lines])) * tokens[family] for family in ("text", "codes"))
        found.append((folder.name, nats, least))
    return found


def least_nats(sequencer: Sequencer) -> tuple[float, dict[str, float]]:
    """Return the least nats a sample can cost on average, and the tokens of each family that a sample has on average."""
    images, captions = templates(SIZE)
    seen = [number for number in range(len(captions)) if number not in held_out()]
    lengths = [len(sequencer.encode_text(captions[number])) for number in seen]
    layout = sequencer.config.layout
    first, dropped = layout.p_caption_first, layout.p_caption_first * layout.p_drop_text
    learnt = 1 - dropped  # the first token is told by a dropped caption, and is not learnt then
    coin = -sum(part * math.log(part / learnt) for part in (first - dropped, 1 - first))
    shares = [lengths.count(length) / len(lengths) for length in set(lengths)]
    known = -sum(share * math.log(share) for share in shares)  # what the length of a dropped caption tells
    totals = {"text": 0, "codes": 0}
    for number in seen:
        for draw in range(DRAWS):
            pair = [sequencer.encode_text(captions[number]), images[number]]
            counts = sequencer.lay_out(pair, keyed("floor", number, draw)).counts
            totals = {family: totals[family] + counts[family] for family in totals}
    return coin + math.log(len(seen)) - dropped * known, {family: num / (DRAWS * len(seen)) for family, num in totals.items()}


def page(found: dict[str, Any], least: list[tuple[str, float, float]]) -> str:
    """Return the result page."""
    parts = ["# atlas", "", stamp("atlas"), "", *_table(HEAD, table_rows(found)), ""]
    for split, words in SPLITS.items():
        parts += [f"## What papers claim, {words}", "", *_table(CLAIMED, claim_rows(found, split)), ""]
    rows = [(name, f"{nats:.3f}", f"{floor:.3f}", f"{nats / floor:.3f}") for name, nats, floor in least]
    parts += ["## Floor of the autoregressive cells, nats a sample", "", *_table(("run", "seen", "least", "ratio"), rows), ""]
    return "\n".join([*parts, NOTES.strip(), ""])


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


if __name__ == "__main__":
    main()
