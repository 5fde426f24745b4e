"""Small plans for faults: tiny images in a folder, a stage of another package, and a corpus."""

from pathlib import Path

from fire_stages import Trap

from mmdata.engine import Executor, Runner, RunResult
from mmdata.plan import Budget, Plan
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Resources, Stage
from tests.conftest import encode
from tests.corpus import draw

QUICK = Resources(call_s=1.5, row_s=0.02, memory_mib=512)


def pictures(folder: Path, texts: list[str], partition_rows: int = 16) -> Folder:
    """Write one tiny image a text and return them as a source."""
    folder.mkdir(parents=True, exist_ok=True)
    image = encode(draw("red", "bar"))
    for number, text in enumerate(texts):
        (folder / f"{number:05d}.png").write_bytes(image)
        (folder / f"{number:05d}.txt").write_text(text, encoding="utf-8")
    return Folder(path=str(folder), partition_rows=partition_rows)


def trap_plan(source: Folder, *stages: Stage, budget: Budget | None = None) -> Plan:
    """Return a plan over pictures that ends in a corpus; by default with one trap."""
    steps = (Measure(), *(stages or (Trap(resources=QUICK),)))
    return Plan(name="fire", source=(source,), stages=steps, sink=Shards(samples=50), budget=budget or Budget())


def run_plan(plan: Plan, run_dir: Path | str, executor: Executor) -> RunResult:
    """Run a plan and end its executor, unless it is shared."""
    return Runner(plan, str(run_dir)).execute(executor, quiet=True)
