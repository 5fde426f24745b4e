"""A plan to change in every way, over quick lists; and what must hold of a run beside what was forecast of it."""

import hashlib
import json
import re
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.demo import DemoServer
from mmdata.demo.server import DATA
from mmdata.engine import Forecast, Runner, RunResult, Task, TaskReport
from mmdata.engine.forecast import Span
from mmdata.engine.generation import find_generation
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.state import CHILD_BITS, State
from mmdata.errors import PartitionError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan, load_plan
from mmdata.report.table import forecast_text
from mmdata.stages.verbs import Split
from mmdata.storage import LocalStore
from tests.conftest import write_yaml

PLAN = """\
name: changed
source:
  - catalog: {file: catalog.yaml, entry: pairs, partition_rows: 16}
  - catalog: {file: catalog.yaml, entry: documents}
stages:
  - split_captions
  - text_rules: {min_chars: 6}
  - download: {image_size: 48, limits: {total_s: 20, host_interval_s: 0, retries: 0}}
  - measure
  - keep: {column: bytes, at_least: 1400, nulls: keep}
  - keep: {column: aspect, at_most: 1.6, nulls: keep}
  - dedupe: {by: raw_sha256}
  - keep: {column: width, at_least: 30, nulls: keep}
sink:
  shards: {samples: 8, splits: {val: 0.2}}
"""
CATALOG = """\
entries:
  pairs: {files: ["pairs-*.jsonl"], columns: {captions: [also]}}
  documents: {files: [documents.jsonl], shape: documents}
"""
VARIES = ("status.json", "funnel.json", "facts/", "lease/", "corpus/")
QUICK = {"clean": 9, "exact_duplicate": 2, "not_found": 1, "html_named_jpg": 1}


def write_lists(home: Path, *names: str) -> None:
    """Write a list of some dozen rows for each name, other rows for another name, and three documents."""
    home.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = {f"http://host-{row['host']:02d}.demo.localhost/{row['path']}": str(row["kind"]) for row in known}
    pairs = [json.loads(line) for line in (DATA / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in names:
        first = 40 * (ord(name) - ord("a"))
        rows = [
            row for kind, num in QUICK.items() for row in [r for r in pairs if kinds.get(r["url"]) == kind][first % 5 :][:num]
        ]
        rows += [row for row in pairs[first:] if row["also"] is not None][:2]
        (home / f"pairs-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    urls = [row["url"] for row in pairs if kinds.get(row["url"]) == "clean"][50:56]
    gone = next(row["url"] for row in pairs if kinds.get(row["url"]) == "not_found")
    documents = [
        {"images": [None, urls[0], None, urls[1]], "texts": ["The first words of it.", None, "short", None]},
        {"images": [gone, None, urls[2], None], "texts": [None, "About something that is gone.", None, "And more of it."]},
        {"images": [urls[3], None, gone], "texts": [None, "tiny", None]},
    ]
    (home / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    write_yaml(home, CATALOG, "catalog.yaml")


def plan_of(home: Path, *replace: tuple[str, str]) -> Plan:
    """Return the plan with pieces of its text replaced."""
    text = PLAN
    for old, new in replace:
        assert old in text
        text = text.replace(old, new)
    return load_plan(write_yaml(home, text), base=home)


@dataclass
class Change:
    """A run folder before a plan is run in it; `run` asserts that what is forecast comes to pass."""

    plan: Plan
    url: str
    server: DemoServer | None = None
    forecast: Forecast = field(init=False)
    before: dict[str, str] = field(init=False)

    def look(self) -> str:
        """Forecast, writing nothing; return the text."""
        stamps = {path: path.lstat().st_mtime_ns for path in Path(self.url).rglob("*")}
        self.forecast = self.runner().forecast()
        assert stamps == {path: path.lstat().st_mtime_ns for path in Path(self.url).rglob("*")}
        self.before = digests(self.url)
        return forecast_text(self.forecast)

    def runner(self) -> Runner:
        return Runner(self.plan, self.url, () if self.server is None else self.server.allow)

    def run(self) -> RunResult:
        """Look, run, and compare."""
        text = self.look()
        result = self.runner().execute(InlineExecutor(), quiet=True)
        after = digests(self.url)
        assert {name: after.get(name) for name in self.before} == self.before  # the old generation is untouched
        assert result.fresh != self.forecast.done
        if self.forecast.done:
            assert text.endswith("all is there, nothing to do")
            assert after == self.before
            return result
        Outcome(self, result).check(text)
        return result


@dataclass
class Outcome:
    """What a run did, read from its folder: new records, new rows in column files, new results of passes."""

    change: Change
    result: RunResult

    def __post_init__(self) -> None:
        runner = self.change.runner()
        self.run = runner.run
        self.generation, job = find_generation(runner.run, self.change.plan, (), None)
        assert self.generation.number == self.result.generation == self.change.forecast.generation
        self.look = Scheduler(runner.run, self.generation, job, None)
        assert self.look.segments()
        self.keys = list(job.keys)[1:]

    def check(self, text: str) -> None:
        lines = text.splitlines()[1:]
        steps = self.change.forecast.steps
        assert len(lines) == len(steps)
        for index, (line, step) in enumerate(zip(lines, steps, strict=True)):
            assert line.split("  ")[1] == step.stage
            if step.passes is None:
                kept, computed = self.kept(index), self.computed(index)
                assert within(kept, step.kept), f"{line}: kept {kept}"
                assert within(computed, step.computed), f"{line}: computed {computed}"
                assert within(kept, said(line, "kept")), f"{line}: kept {kept}"
                assert within(computed, said(line, "computed")), f"{line}: computed {computed}"
            else:
                made = self.made(index)
                assert step.passes == "perhaps" or made == (step.passes == "anew"), line
                assert ("made anew, from all rows" in line) == (step.passes in ("anew", "perhaps"))

    def computed(self, index: int) -> int:
        """Count the rows that records which were not there before say a step was asked for."""
        names = [name for name in self.run.store.list("tasks") if name.endswith(".json")]
        records = [self.run.read_json(f"tasks/{name}") for name in names if f"tasks/{name}" not in self.change.before]
        seen = {record["key"] for head in self.look.heads.values() for record in self.run.records(head["key"])}
        mine = [record for record in records if record["key"] in seen]
        return sum(step["computed"] for record in mine for step in record["steps"] if step["index"] == index)

    def kept(self, index: int) -> int:
        """Count the rows that a step needed, by their fates, and that lay in its column files before."""
        step, total = self.generation.plan.steps[index], 0
        for unit, head in self.look.heads.items():
            fates = State.from_bytes(self.run.state_of(head)).table()
            stages = fates.column("stage").to_numpy()
            needed = (fates.column("space").to_numpy() == step.space) & ((stages == -1) | (stages >= index))
            rows = fates.column("_row").to_numpy()[needed]
            files = [name for name in self.change.before if name.startswith(self._columns(index, unit))]
            tables = [pq.read_table(Path(self.change.url) / name, columns=["_row"]) for name in files]
            held = pa.concat_tables(tables).column(0).to_numpy() if tables else rows[:0]
            total += int(np.isin(rows, held >> CHILD_BITS if isinstance(step.stage, Split) else held).sum())
        return total

    def _columns(self, index: int, unit: int) -> str:
        return f"columns/{self.keys[index]}/{self.generation.partitions[unit].ident}."

    def made(self, index: int) -> bool:
        """Say whether results of a step's passes are new."""
        if index in self.look.verdicts:
            key = self.look.verdicts[index].split("/", maxsplit=1)[0]
        else:
            sunk = self.look.sink()
            assert sunk is not None
            key = sunk[0]
        return any(name.startswith(f"passes/{key}/") for name in set(digests(self.change.url)) - set(self.change.before))


def digests(url: str) -> dict[str, str]:
    """Return a digest of every file of a run folder that is written once."""
    root = Path(url)
    names = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names if not name.startswith(VARIES)}


def within(number: int, span: Span) -> bool:
    return span.least <= number and (span.most is None or number <= span.most)


def said(line: str, word: str) -> Span:
    """Read a number, or a range, out of a line of the forecast; what is not said is 0."""
    found = re.search(rf"\b{word} ([\d,]+)(?: to ([\d,]+)| (or more))?", line)
    if found is None:
        return Span()
    least = int(found[1].replace(",", ""))
    return Span(least, None if found[3] else int((found[2] or found[1]).replace(",", "")))


class Stopping(InlineExecutor):
    """Ends the run at the first trouble, as a kill would."""

    def submit(self, task: Task) -> "Future[TaskReport]":
        future = super().submit(task)
        if (error := future.exception()) is not None:
            raise RunError("stopped") from error
        return future


class GivingUp(InlineExecutor):
    """Fails every attempt at one partition from its second segment on."""

    def submit(self, task: Task) -> "Future[TaskReport]":
        if task.kind == "segment" and task.unit == 1 and task.step:
            future: Future[TaskReport] = Future()
            future.set_exception(PartitionError("a bad day"))
            return future
        return super().submit(task)


class Dying(LocalStore):
    """A store whose process ends before the nth object is deleted."""

    left: int

    def delete(self, name: str) -> None:
        if "probe" not in name:
            type(self).left -= 1
        if type(self).left < 0:
            raise KeyboardInterrupt
        super().delete(name)
