"""How well a CLIP threshold finds captions that belong to another picture, on corpora that the model never saw.

    python -m benchmarks.filter_quality [--quick] [--json FILE]

Truth is made: 30 % of the captions of a corpus are passed on in a ring. The pictures and captions go through the real
pipeline (`clip_score` with its embeddings kept), once a corpus; swapping is then a product of embeddings, so that five
draws of who is swapped cost no more than one. What is compared is said in `NOTES`.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness import HERE, stamp
from benchmarks.images import fetch_packages
from benchmarks.loader_data import CACHE
from mmdata.engine import Runner, RunStore
from mmdata.executors import InlineExecutor
from mmdata.models import OpenClip, ScorerSpec
from mmdata.plan import Plan
from mmdata.report.fates import fates
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.keep import Keep
from mmdata.stages.sources import Folder

PACKAGES = ("openclipart-png", "openclipart-svg", "tuxpaint-stamps-default", "gcompris-qt-data")
SWAPPED_SHARE = 0.3
SEEDS = range(5)
MAX_SIDE = 256
STEM = "clip_score"
NOTES = """\
The model is the small CLIP that ships with mmdata. It was trained on 40 % of the families of near-duplicates of openclipart;
`clip art` here is the half that neither training nor the choice of anything has seen (`recipes/tiny_clip/families.tsv`, split
`rest`, one picture a family), `stamps` are Tux Paint's with their English sentences, `photos` GCompris' with title and first
sentence. 30 % of the captions are swapped in a ring; figures are over five draws.

A row is dropped where its score is below the threshold. *Precision*: of the dropped rows, those that were swapped. *Recall*:
of the swapped rows, those that were dropped. *AUC*: the chance that a row with its own caption scores above a swapped one; 0.5
is a coin. The threshold is the one of the best F1 on validation rows: of openclipart's validation families (*there*), or of a
half of the corpus itself that is then left out (*own half*). The last line is the same done by a plan, `clip_score` and `keep`,
over one draw of clip art: it must drop just the rows that the arithmetic on embeddings says.

Thresholds do not travel well: compare the two lines of a corpus, and choose on rows like its own.
"""


class Pairs(NamedTuple):
    """A corpus: its folder of pictures with texts, as a `folder` source reads it."""

    folder: Path
    captions: list[str]


@dataclass(frozen=True)
class Quality:
    """One line of the page."""

    corpus: str
    rows: int
    threshold_from: str
    threshold: float
    auc: float
    precision: float
    recall: float


def write_pairs(folder: Path, pairs: Iterable[tuple[object, str]]) -> Pairs:
    """Write pictures (of Pillow) and captions, one of each different caption."""
    folder.mkdir(parents=True)
    first: dict[str, object] = {}
    for picture, caption in pairs:
        first.setdefault(caption, picture)
    for number, (caption, picture) in enumerate(first.items()):
        picture.save(folder / f"{number:05d}.png")  # type: ignore[attr-defined]
        (folder / f"{number:05d}.txt").write_text(caption, encoding="utf-8")
    return Pairs(folder, list(first))


def corpora(home: Path, most: int | None) -> dict[str, Pairs]:
    """Return the corpora: clip art for validation and for the test, stamps, photos."""
    from recipes.tiny_clip.openclipart import caption, load_rgb, read_table, rows
    from recipes.tiny_clip.outside import read_photos, read_stamps

    packages = fetch_packages(CACHE, PACKAGES)
    art = home / "openclipart"
    art.mkdir()
    for kind in ("png", "svg"):
        (art / kind).symlink_to(packages[f"openclipart-{kind}"] / "usr/share/openclipart" / kind)
    clips = {clip["path"]: clip for clip in rows(read_table(art)[0])}
    found: dict[str, Pairs] = {}
    for name, split in (("validation", "val"), ("clip art", "rest")):
        some = [clips[path] for path in firsts(split) if path in clips][:most]
        pairs = ((load_rgb(art / "png" / clip["path"], MAX_SIDE), caption(clip)) for clip in some)
        found[name] = write_pairs(home / split, pairs)
    outside = {
        "stamps": read_stamps(packages["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps"),
        "photos": read_photos(packages["gcompris-qt-data"] / "usr/share/gcompris-qt/rcc"),
    }
    for name, samples in outside.items():
        found[name] = write_pairs(home / name, list(samples)[:most])
    return found


def firsts(split: str) -> list[str]:
    """Return the first picture of each family of near-duplicates of a split."""
    with (HERE.parent / "recipes/tiny_clip/families.tsv").open(encoding="utf-8") as file:
        listed = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    found: dict[str, str] = {}
    for row in sorted(listed, key=lambda row: row["path"]):
        found.setdefault(row["family"], row["path"])
    return sorted(found.values())


def embed(pairs: Pairs, run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what the pipeline keeps of a corpus: (N, D) embeddings of images and of captions, in the order of the files."""
    stage = ClipScore(scorer=ScorerSpec(open_clip=OpenClip()), embeddings=("image", "text"))
    plan = Plan(name="quality", source=(Folder(path=str(pairs.folder)),), stages=(stage,))
    result = Runner(plan, str(run_dir)).execute(InlineExecutor(), quiet=True)
    if result.funnel["kept"] != len(pairs.captions):
        raise ValueError(f"{pairs.folder.name}: {result.funnel}")
    table = fates(RunStore(str(run_dir)), [f"{STEM}_image_embedding", f"{STEM}_text_embedding"])
    images, texts = (np.asarray(table.column(f"{STEM}_{what}_embedding").to_pylist(), np.float32) for what in ("image", "text"))
    return images, texts


def given(num: int, seed: int) -> np.ndarray:
    """Return which caption each row gets when some of the rows pass theirs on in a ring."""
    chosen = np.random.default_rng(seed).permutation(num)[: round(SWAPPED_SHARE * num)]
    found = np.arange(num)
    found[chosen] = np.roll(chosen, 1)
    return found


def swapped(images: np.ndarray, texts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of some rows after swapping, over all draws, and which of them carry another's caption."""
    scores, truth = [], []
    for seed in SEEDS:
        order = rows[given(len(rows), seed)]
        scores.append((images[rows] * texts[order]).sum(axis=1))
        truth.append(order != rows)
    return np.concatenate(scores), np.concatenate(truth)


def judge(scores: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return precision and recall of dropping what scores below a threshold."""
    dropped = scores < threshold
    hits = int((dropped & truth).sum())
    return hits / max(int(dropped.sum()), 1), hits / max(int(truth.sum()), 1)


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold of the best F1, to three places."""

    def f1(threshold: float) -> float:
        precision, recall = judge(scores, truth, threshold)
        return 2 * precision * recall / max(precision + recall, 1e-9)

    return float(max(np.unique(np.round(scores, 3)), key=f1))


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the chance that a row with its own caption scores above a swapped one; ties count one half."""
    own, other = scores[~truth], np.sort(scores[truth])
    below = np.searchsorted(other, own, side="left") + np.searchsorted(other, own, side="right")
    return float(below.mean() / (2 * len(other)))


def measure(name: str, vectors: tuple[np.ndarray, np.ndarray], threshold: float) -> list[Quality]:
    """Judge a corpus by a threshold from elsewhere, and one half of it by the other's."""
    rows = np.arange(len(vectors[0]))
    scores, truth = swapped(*vectors, rows)
    found = [Quality(name, len(rows), "there", threshold, auc(scores, truth), *judge(scores, truth, threshold))]
    order = np.random.default_rng(11).permutation(rows)
    own = best_threshold(*swapped(*vectors, order[::2]))
    scores, truth = swapped(*vectors, order[1::2])
    return [*found, Quality(name, len(order[1::2]), "own half", own, auc(scores, truth), *judge(scores, truth, own))]


def by_plan(pairs: Pairs, vectors: tuple[np.ndarray, np.ndarray], threshold: float, home: Path) -> Quality:
    """Let a plan score and judge one draw; it must drop the rows that the embeddings say, but for their float16."""
    order = given(len(pairs.captions), 0)
    folder = home / "swapped"
    shutil.copytree(pairs.folder, folder)
    for row, other in enumerate(order):
        (folder / f"{row:05d}.txt").write_text(pairs.captions[other], encoding="utf-8")
    plan = Plan(name="swapped", source=(Folder(path=str(folder)),), stages=(ClipScore(), Keep(column=STEM, at_least=threshold)))
    Runner(plan, str(home / "swapped-run")).execute(InlineExecutor(), quiet=True)
    table = fates(RunStore(str(home / "swapped-run")), [STEM])
    scores = np.asarray(table.column(STEM).to_pylist(), np.float32)
    dropped, truth = table.column("reason").is_valid().to_numpy(), order != np.arange(len(order))
    expected = (vectors[0] * vectors[1][order]).sum(axis=1)
    if np.abs(scores - expected).max() > 2e-3 or not np.array_equal(dropped, scores < threshold):
        raise ValueError("the plan's scores are not those of the embeddings")
    return Quality("clip art, by a plan", len(order), "there", threshold, auc(scores, truth), *judge(scores, truth, threshold))


def page(found: list[Quality]) -> str:
    """Return the result page."""
    head = "| corpus | rows | threshold from | threshold | AUC | precision | recall |\n" + "|---" * 7 + "|"
    lines = [
        f"| {q.corpus} | {q.rows:,} | {q.threshold_from} | {q.threshold:.3f} | {q.auc:.3f} | {q.precision:.2f} | {q.recall:.2f} |"
        for q in found
    ]
    return "\n".join(["# filter_quality", "", stamp("filter_quality"), "", head, *lines, "", NOTES.strip(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 rows a corpus; never committed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmdata-quality-") as folder:
        home = Path(folder)
        pairs = corpora(home, 200 if options.quick else None)
        vectors = {name: embed(some, home / f"run-{name}") for name, some in pairs.items()}
        rows = np.arange(len(vectors["validation"][0]))
        threshold = best_threshold(*swapped(*vectors["validation"], rows))
        found = [line for name in ("clip art", "stamps", "photos") for line in measure(name, vectors[name], threshold)]
        found.append(by_plan(pairs["clip art"], vectors["clip art"], threshold, home))
    sys.stdout.write(page(found))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(line) for line in found], indent=1) + "\n", encoding="utf-8")
    if not options.quick:
        (HERE / "results/filter_quality.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
