"""A plan that holds everything a plan can hold, over 60 rows of the demo set: CLIP scores, hostile rows, a Split, a
document, a GlobalFilter, two splits of the corpus."""

import hashlib
import json
from pathlib import Path

from mmdata.demo import DemoServer
from mmdata.demo.server import DATA
from mmdata.engine import Executor, Runner, RunResult
from mmdata.plan import Plan, load_plan
from tests.conftest import write_yaml

PLAN = """\
name: small
source:
  - catalog: {file: catalog.yaml, entry: pairs, partition_rows: 16}
  - catalog: {file: catalog.yaml, entry: documents}
stages:
  - split_captions
  - download: {image_size: 64, limits: {total_s: 2, host_interval_s: 0, retries: 0}}
  - measure
  - text_rules: {min_chars: 2, min_latin: 0.9}
  - clip_score: {scorer: {open_clip: {batch: 8}}, embeddings: [image]}
  - keep: {column: clip_score, at_least: 0.1, nulls: keep}
  - dedupe: {by: raw_sha256, best: clip_score}
sink:
  shards: {samples: 10, splits: {val: 0.2}}
"""
CATALOG = """\
entries:
  pairs: {files: [pairs.jsonl], columns: {captions: [also]}}
  documents: {files: [documents.jsonl], shape: documents}
"""


def write_small(folder: Path, *replace: tuple[str, str]) -> Path:
    """Write the plan, its catalog and its lists; return the plan's file."""
    folder.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = {f"host-{row['host']:02d}.demo.localhost/{row['path']}": str(row["kind"]) for row in known}
    pairs = [json.loads(line) for line in (DATA / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen, seen = [], dict.fromkeys([*kinds.values(), "slow"], 0)
    for row in pairs:
        kind = kinds.get(row["url"].removeprefix("http://"), "slow")
        seen[kind] += 1
        if row["also"] is not None or seen[kind] <= (16 if kind == "clean" else 2):
            chosen.append(row)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen[:60]), encoding="utf-8")
    (folder / "documents.jsonl").write_bytes((DATA / "documents.jsonl").read_bytes())
    write_yaml(folder, CATALOG, "catalog.yaml")
    text = PLAN
    for old, new in replace:
        assert old in text
        text = text.replace(old, new)
    return write_yaml(folder, text)


def small_plan(folder: Path, *replace: tuple[str, str]) -> Plan:
    """Return the plan, loaded."""
    return load_plan(write_small(folder, *replace), base=folder)


def run_small(plan: Plan, run_dir: Path, executor: Executor, server: DemoServer) -> RunResult:
    """Run the plan against the demo's server."""
    return Runner(plan, str(run_dir), server.allow).execute(executor, quiet=True)


def corpus_digest(run_dir: Path) -> str:
    """Return a digest of every byte of the corpus, manifest and indexes included."""
    corpus = run_dir / "corpus"
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    assert any(path.suffix == ".tar" for path in files)
    lines = [f"{path.relative_to(corpus)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
