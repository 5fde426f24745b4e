"""The corpora of `filter_train`: one pool with a web-like share of wrong captions, as it is, filtered, and cleaned by truth.

Decided here: the pool is all of openclipart that the small CLIP was not trained on and no choice was made on
(`recipes/tiny_clip/families.tsv`, split `rest`), served on loopback and fetched, shrunk, scored, filtered and written by plans.
Splits are the sink's own, by family; what is held out is learnt from a first corpus, in which every caption is right, and
captions are passed on in a ring among training rows alone. The threshold comes from openclipart's validation families.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.filter_quality import best_threshold, given, swapped
from benchmarks.harness import HERE
from benchmarks.images import fetch_packages
from benchmarks.loader_data import CACHE
from mmdata.demo.server import serving
from mmdata.engine import Runner, RunStore
from mmdata.executors import InlineExecutor
from mmdata.loader import part_of, read_sample
from mmdata.models import OpenClip, ScorerSpec
from mmdata.net import Limits
from mmdata.plan import Plan
from mmdata.report.fates import fates
from mmdata.shards import open_corpus
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.download import Download
from mmdata.stages.keep import Keep
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Catalog
from mmdata.stages.verbs import Stage

SPLITS = {"val": 0.1, "test": 0.15}
SERVED_PX = 256
STORED_PX = 128
NUM_HOSTS = 32
SCORE = "clip_score"
CORPORA = ("unfiltered", "filtered", "clean")
CARRY = {"family": "string", "own": "string", "wrong": "bool", "held_out": "bool"}


class Picture(NamedTuple):
    """A picture of openclipart: its path there, the first path of its near-duplicates, and its caption."""

    path: str
    family: str
    caption: str


@dataclass(frozen=True)
class Row:
    """A row of the pool. `own` is the caption that the picture came with; `wrong` that `text` is another one."""

    uid: str
    url: str
    text: str
    family: str
    own: str
    wrong: bool = False
    held_out: bool = False


class Removed(NamedTuple):
    """What a filter did to the training rows: how many there were, were wrong, were dropped, and were both."""

    rows: int
    wrong: int
    dropped: int
    hits: int


class Data(NamedTuple):
    """Folders of the corpora by name, the threshold of the filter, and what it and the truth removed."""

    folders: dict[str, str]
    threshold: float
    removed: dict[str, Removed]


def pictures(most: int | None) -> tuple[dict[str, list[Picture]], Path]:
    """Return the pictures of the splits of families that are used, in the order of their paths, and the folder of the PNGs."""
    from recipes.tiny_clip.openclipart import caption, read_table, rows

    packages = fetch_packages(CACHE, ("openclipart-png", "openclipart-svg"))
    art = CACHE / "filter-train/openclipart"
    art.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        if not (art / kind).exists():
            (art / kind).symlink_to(packages[f"openclipart-{kind}"] / "usr/share/openclipart" / kind)
    with (HERE.parent / "recipes/tiny_clip/families.tsv").open(encoding="utf-8") as file:
        listed = {row["path"]: row for row in csv.DictReader(file, delimiter="\t")}
    found: dict[str, list[Picture]] = {"val": [], "rest": []}
    for clip in rows(read_table(art)[0]):
        about = listed.get(clip["path"])
        if about is not None and about["split"] in found:
            found[about["split"]].append(Picture(clip["path"], about["family"], caption(clip)))
    return {split: some[:most] for split, some in found.items()}, art / "png"


def serve_pictures(home: Path, found: Sequence[Picture], root: Path) -> list[Row]:
    """Write pictures on white where the server finds them; return their rows, with their own captions."""
    from recipes.tiny_clip.openclipart import load_rgb

    (home / "images").mkdir(parents=True, exist_ok=True)
    made = []
    for number, one in enumerate(found):
        uid = hashlib.sha256(one.path.encode()).hexdigest()[:32]
        file = home / f"images/{uid}.png"
        if not file.exists():
            load_rgb(root / one.path, SERVED_PX).save(file)
        url = f"http://host-{number % NUM_HOSTS:02d}.demo.localhost/images/{uid}.png"
        made.append(Row(uid, url, one.caption, one.family, one.caption))
    return made


def write_catalog(home: Path, name: str, rows: Iterable[Row]) -> Catalog:
    """Write rows as a list with a catalog beside it, as a published dataset comes."""
    (home / f"{name}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    columns = {"url": "url", "text": "text", "sample_id": "uid"}
    entry = {"files": [f"{name}.jsonl"], "licence": "public domain", "columns": columns, "carry": CARRY}
    (home / f"{name}.yaml").write_text(yaml.safe_dump({"entries": {name: entry}}), encoding="utf-8")
    return Catalog(file=str(home / f"{name}.yaml"), entry=name, partition_rows=512)


def run_plan(home: Path, source: Catalog, stages: Sequence[Stage], sink: Shards | None) -> str | None:
    """Fetch the rows of a catalog at 128 px with white borders, run stages over them; return the corpus's folder."""
    fetch = Download(image_size=STORED_PX, resize_mode="border", limits=Limits(host_interval_s=0, per_host=8))
    plan = Plan(name=source.entry, source=(source,), stages=(fetch, *stages), sink=sink)
    with serving(home) as server:
        result = Runner(plan, str(home / f"run-{source.entry}"), server.allow).execute(InlineExecutor(), quiet=True)
    lost = {reason: num for reason, num in result.funnel["dropped"].items() if num and not reason.startswith(("clip_", "where_"))}
    if lost:
        raise ValueError(f"{source.entry}: rows were lost on the way: {lost}")
    return result.corpus


def held_out(corpus: str) -> set[str]:
    """Return the ids of the samples that are in no training split."""
    opened = open_corpus(corpus)
    parts = [part_of(opened, name) for name in SPLITS]
    return {opened.sample_id(index) for part in parts for index in range(part.first, part.first + part.num)}


def pass_on(rows: Sequence[Row], kept_out: set[str], seed: int = 0) -> list[Row]:
    """Pass 30 % of the training rows' captions on in a ring; a caption that is the same by chance is not wrong."""
    train = [number for number, row in enumerate(rows) if row.uid not in kept_out]
    found = [replace(row, held_out=row.uid in kept_out) for row in rows]
    for place, other in enumerate(given(len(train), seed)):
        row, text = found[train[place]], rows[train[other]].text
        found[train[place]] = replace(row, text=text, wrong=text.casefold() != row.own.casefold())
    return found


def threshold_of(home: Path, rows: Sequence[Row]) -> float:
    """Return the threshold of the best F1 on rows whose captions are passed on for that purpose, over five draws."""
    stage = ClipScore(scorer=ScorerSpec(open_clip=OpenClip()), embeddings=("image", "text"))
    run_plan(home, write_catalog(home, "validation", rows), (stage,), None)
    names = [f"{SCORE}_{what}_embedding" for what in ("image", "text")]
    table = fates(RunStore(str(home / "run-validation")), names)
    images, texts = (np.asarray(table.column(name).to_pylist(), np.float32) for name in names)
    return best_threshold(*swapped(images, texts, np.arange(len(images))))


def removed(rows: Sequence[Row], corpus: str) -> Removed:
    """Compare a corpus with the truth."""
    opened = open_corpus(corpus)
    kept = {opened.sample_id(index) for index in range(len(opened.samples))}
    train = [row for row in rows if not row.held_out]
    gone = [row for row in train if row.uid not in kept]
    return Removed(len(train), sum(row.wrong for row in train), len(gone), sum(row.wrong for row in gone))


def make_corpora(home: Path, most: int | None = None) -> Data:
    """Make the corpora in `home`, or find them there; of `most` pictures of each split of families."""
    done = home / "data.json"
    if done.exists():
        facts = json.loads(done.read_text(encoding="utf-8"))
        return Data(facts["folders"], facts["threshold"], {name: Removed(*nums) for name, nums in facts["removed"].items()})
    home.mkdir(parents=True, exist_ok=True)
    chosen, root = pictures(most)
    validation, pool = (serve_pictures(home, chosen[split], root) for split in ("val", "rest"))
    data = filtered(home, pool, threshold_of(home, validation))
    done.write_text(json.dumps(data._asdict(), indent=1), encoding="utf-8")
    return data


def filtered(home: Path, pool: Sequence[Row], threshold: float) -> Data:
    """Make the three corpora of a pool; what they hold out is the same."""
    sink = Shards(splits=SPLITS, group="family")
    own = run_plan(home, write_catalog(home, "own", pool), (), sink)
    assert own is not None
    kept_out = held_out(own)
    noisy = pass_on(pool, kept_out)
    source, score = write_catalog(home, "noisy", noisy), ClipScore(scorer=ScorerSpec(open_clip=OpenClip()))
    rules: dict[str, tuple[Stage, ...]] = {
        "unfiltered": (score,),
        "filtered": (score, Keep(where=f"held_out or {SCORE} >= {threshold}")),
        "clean": (score, Keep(where="held_out or not wrong")),
    }
    folders = {}
    for name in CORPORA:
        folders[name] = str(run_plan(home, source, rules[name], sink))
        if held_out(folders[name]) != kept_out:
            raise ValueError(f"{name}: it does not hold out what the others do")
    return Data(folders, threshold, {name: removed(noisy, folders[name]) for name in CORPORA})


def held_out_pairs(corpus: str, split: str) -> list[tuple[str, np.ndarray, str]]:
    """Return id, image (H, W, 3) uint8 and caption of a held-out split: one picture a family, one of each caption."""
    opened = open_corpus(corpus)
    part = part_of(opened, split)
    found: dict[str, tuple[str, np.ndarray, str]] = {}
    captions: set[str] = set()
    for index in range(part.first, part.first + part.num):
        sample = read_sample(opened, index)
        facts: dict[str, Any] = sample.meta
        caption = str(facts["caption"])
        if facts["wrong"] or facts["family"] in found or caption.casefold() in captions:
            continue
        image = next(block.image for block in sample.blocks if block.image is not None)
        found[str(facts["family"])] = (sample.sample_id, image, caption)
        captions.add(caption.casefold())
    return list(found.values())
