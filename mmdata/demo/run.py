"""The main job on the bundled set: serve, run the plan, train, sample, show."""

import sys
import time
from pathlib import Path

from mmdata.config import build, parse_yaml
from mmdata.demo.pictures import make_samples
from mmdata.demo.server import DATA, serving
from mmdata.demo.truth import demo_fates, swap_score
from mmdata.engine import Runner, RunResult, RunStore
from mmdata.executors import open_executor
from mmdata.plan import Plan, load_plan
from mmdata.report.page import Card, Section, cards_html, funnel_html, image_html, table_html, write_page
from mmdata.report.table import funnel_text
from mmdata.report.training import read_training
from mmdata.report.training_page import losses_html
from mmdata.shards import open_corpus
from mmdata.shards.payloads import fetch_payload
from mmdata.stages.keep import Keep
from mmdata.trainer import TrainConfig, train

HOME = Path(__file__).parent.parent.parent


def demo_plan(at_least: float | None = None) -> Plan:
    """Return the bundled plan, with another CLIP threshold if one is given."""
    plan = load_plan(DATA / "demo.yaml", base=HOME)
    if at_least is None:
        return plan
    stages = tuple(stage.model_copy(update={"at_least": at_least}) if isinstance(stage, Keep) else stage for stage in plan.stages)
    return plan.changed(stages=stages)


def demo_config(corpus: str) -> TrainConfig:
    """Return the bundled training config for a corpus."""
    text = (DATA / "train.yaml").read_text(encoding="utf-8")
    return build(TrainConfig, parse_yaml(text, str(DATA / "train.yaml"))).model_copy(update={"corpus": corpus})


def run_demo(out: Path, at_least: float | None = None, executor: str = "processes") -> None:
    """Run the main job into a folder and print what it came to; the same call again finds all done."""
    started = time.monotonic()
    result = _corpus(out, at_least, executor)
    assert result.corpus is not None
    digest = open_corpus(result.corpus).digest
    home = out / "training" / digest[:16]
    _tell(f"corpus after {time.monotonic() - started:.0f} s; training")
    trained = train(demo_config(result.corpus), home)
    _point(out / "train", home)
    page = home / "index.html"
    if not page.exists():
        _show(out, home, result, trained.checkpoint, trained.metrics)
    for name in ("samples.png", "index.html"):
        _point(out / name, home / name)
    sys.stdout.write(f"\n{funnel_text(result)}\n{(home / 'swaps.txt').read_text(encoding='utf-8')}\n")
    sys.stdout.write(f"pictures: {out / 'samples.png'}\npage:     {out / 'index.html'}\n")
    _tell(f"main job: {time.monotonic() - started:.0f} s")


def serve_forever() -> None:
    """Serve the bundled set until Ctrl-C, and say how to run the plan against it."""
    with serving() as server:
        _tell(f"serving {DATA} on 127.0.0.1:{server.port}; Ctrl-C ends it. In another terminal:")
        _tell(f"  mmdata run pipelines/demo.yaml --run-dir runs/own --allow '{server.allow[0]}'")
        while True:
            time.sleep(3600)


def _corpus(out: Path, at_least: float | None, executor: str) -> RunResult:
    runner = Runner(demo_plan(at_least), str(out))
    with serving() as server:
        runner = Runner(runner.plan, str(out), server.allow)
        pool = open_executor(executor)
        try:
            return runner.execute(pool)
        finally:
            pool.close()


def _show(out: Path, home: Path, result: RunResult, checkpoint: Path, metrics: Path) -> None:
    assert result.corpus is not None
    _tell("generating samples")
    captions = make_samples(result.corpus, checkpoint, home / "samples.png")
    run = RunStore(str(out))
    table = demo_fates(run, result.generation)
    swaps = swap_score(table).text()
    (home / "swaps.txt").write_text(swaps, encoding="utf-8")
    rows = table.to_pylist()
    dropped = [row for row in rows if row["reason"] == "clip_score_below"]
    kept = sorted((row for row in rows if row["reason"] is None and row["clip_score"] is not None), key=lambda r: r["clip_score"])
    sections = [
        Section("Funnel", funnel_html(result.funnel, result.by_stage)),
        Section("Known truth", f"<p>{swaps}.</p>"),
        Section("Dropped by the CLIP filter", cards_html([_card(run, row) for row in dropped[:12]])),
        Section("Kept, lowest scores first", cards_html([_card(run, row) for row in kept[:6]])),
        Section("Kept, highest scores", cards_html([_card(run, row) for row in kept[-6:]])),
        Section("Training curves", losses_html(read_training(metrics.parent))),
        Section("Generated images", image_html(home / "samples.png")),
        Section("Captions of held-out images", table_html(("true", "generated"), captions)),
    ]
    write_page(home / "index.html", "mmdata demo: from a catalog to a trained model", sections)


def _card(run: RunStore, row: dict[str, object]) -> Card:
    from mmdata.media import decode

    note = f" [{row['kind']}]" if row["kind"] not in (None, "clean") else ""
    return Card(decode(fetch_payload(run.store, row["payload"])), f"{row['clip_score']:.3f}{note} {row['text']}")  # type: ignore[arg-type]


def _point(link: Path, target: Path) -> None:
    temp = link.with_name(f".tmp-{link.name}")
    temp.unlink(missing_ok=True)
    temp.symlink_to(target.relative_to(link.parent))
    temp.replace(link)


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
