"""Run a plan in a run folder: the one function behind `mmdata run`.

The same call again resumes. When all is there already nothing is written and nobody is asked: the lease is taken only
once there is work.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmdata.engine.keys import keys_of, plan_keys, short
from mmdata.engine.lease import Lease
from mmdata.engine.ledger import by_stage, funnel
from mmdata.engine.passes import num_buckets
from mmdata.engine.progress import Progress
from mmdata.engine.runstore import Generation, Partition, RunStore
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.task import Executor, Job
from mmdata.errors import ConfigError
from mmdata.net import Guard
from mmdata.plan import Plan
from mmdata.shards.manifest import Finish
from mmdata.stages.verbs import GlobalFilter, SourceSlice
from mmdata.storage import LocalStore, digest_bytes, digest_json, walk_temps

FOLDERS = ("columns", "corpora", "facts", "generations", "lease", "manifest", "passes", "payload", "tasks")


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    generation: int
    funnel: dict[str, Any]
    by_stage: list[tuple[str, str, int]]
    computed: dict[str, int]
    corpus: str | None
    seconds: float
    fresh: bool


@dataclass(frozen=True)
class Forecast:
    """What a run would do: for each step how many partitions have its columns, how many have none, and whether rows that
    they have not yet seen may reach it."""

    generation: int
    partitions: int
    steps: list[tuple[str, int, int, bool]]
    tasks_missing: bool


@dataclass
class Runner:
    """A plan and a run folder."""

    plan: Plan
    url: str
    allow: tuple[str, ...] = ()
    limit: int | None = None
    run: RunStore = field(init=False)

    def __post_init__(self) -> None:
        self.plan.check()
        Guard(self.allow)  # refuses what is no allowance
        self.run = RunStore(self.url)
        self._refuse_foreign()

    def forecast(self) -> Forecast:
        """Find out what is kept and what would be computed; write nothing."""
        generation, job = self._generation()
        keys = keys_of(job)
        look = Scheduler(self.run, generation, job, None)
        done = look.segments() and (generation.plan.sink is None or look.sink() is not None)
        # From the first segment that lacks a record on, rows that were not there before may come.
        reached = min((task.step for task in look.missing if task.kind == "segment"), default=len(generation.plan.segments))
        steps = []
        for number, segment in enumerate(generation.plan.segments):
            for step in segment.steps:
                names = [f"columns/{keys[step.index]}/{part.ident}.0.parquet" for part in generation.partitions]
                held = sum(self.run.store.exists(name) for name in names)
                steps.append((step.stage.name, held, len(names) - held, number >= reached))
        return Forecast(generation.number, len(generation.partitions), steps, not done)

    def execute(self, executor: Executor, *, quiet: bool = False) -> RunResult:
        """Do what is missing and return what the run came to."""
        started = time.monotonic()
        generation, job = self._generation()
        look = Scheduler(self.run, generation, job, None)
        if look.segments() and (sunk := self._sink(look)) is not None and self._manifested(generation, look):
            self._show_newest(sunk[0], funnel(list(look.heads.values())))
            return self._result(generation, look, sunk[0], started, fresh=False)
        self.run.claim(self.plan)
        with Lease(self.run.store):
            self._clear_temps()
            job = self._open_generation(generation, job)
            progress = None if quiet else Progress(self.run.store, self.plan.name, self._num_tasks(generation))
            scheduler = Scheduler(self.run, generation, job, executor, progress)
            corpus = self._work(generation, scheduler)
        return self._result(generation, scheduler, corpus, started, fresh=True)

    def _work(self, generation: Generation, scheduler: Scheduler) -> str | None:
        """Run all tasks and finish the generation; however it ends, the progress says so."""
        state = "stopped"
        try:
            scheduler.segments()
            sunk = self._sink(scheduler)
            assert sunk is not None
            corpus, made = sunk
            self._finish(generation, scheduler, corpus, made)
            state = "done"
        finally:
            if scheduler.progress is not None:
                scheduler.progress.end(state)
        return corpus

    def _sink(self, scheduler: Scheduler) -> tuple[str | None, Any] | None:
        if scheduler.generation.plan.sink is None:
            return None, None
        made = scheduler.sink()
        return None if made is None else (f"corpora/{made[0]}", made)

    def _finish(self, generation: Generation, scheduler: Scheduler, corpus: str | None, made: Any) -> None:  # noqa: ANN401
        plan, total = generation.plan, funnel(list(scheduler.heads.values()))
        if corpus is not None and plan.sink is not None:
            columns = {name: _meaning(column) for name, column in plan.fields.items()}
            facts = Finish(plan.name, self.plan.digest, total, self._licences(), columns, made[2], plan.trusted)
            plan.sink.finish(self.run.store, corpus, made[1], facts)
        self._show_newest(corpus, total)
        self.run.store.put(f"facts/{generation.number}.json", json.dumps(_times(scheduler), indent=1).encode())
        self.run.create_manifest(generation.number, {
            "plan_digest": self.plan.digest, "allow": list(self.allow), "corpus": corpus, "funnel": total,
            "by_stage": [list(item) for item in self._by_stage(generation, scheduler)],
            "heads": [scheduler.heads[unit]["key"] for unit in sorted(scheduler.heads)],
        })  # fmt: skip

    def _result(
        self, generation: Generation, scheduler: Scheduler, corpus: str | None, started: float, *, fresh: bool
    ) -> RunResult:
        computed: dict[str, int] = {step.stage.name: 0 for step in generation.plan.steps}
        for report in scheduler.reports:
            for step in report.record.get("steps", ()):
                computed[step["stage"]] += step["computed"]
        heads = list(scheduler.heads.values())
        place = None if corpus is None else f"{self.url}/{corpus}"
        return RunResult(
            generation.number, funnel(heads), self._by_stage(generation, scheduler), computed, place,
            time.monotonic() - started, fresh,
        )  # fmt: skip

    def _by_stage(self, generation: Generation, scheduler: Scheduler) -> list[tuple[str, str, int]]:
        names = {-2: "source"} | {step.index: step.stage.name for step in generation.plan.steps}
        return [(names[stage], reason, num) for stage, reason, num in by_stage(list(scheduler.heads.values()))]

    def _refuse_foreign(self) -> None:
        if self.run.owner() is not None:
            self.run.claim(self.plan)

    def _generation(self) -> tuple[Generation, Job]:
        """Return the generation that this call is about (an unfinished or equal one, or the next) and its job."""
        plan = self.plan.located()
        keys = plan_keys(plan)
        generation = self._match(plan, digest_json([keys[index] for index in sorted(keys)]))
        job = Job(self.url, generation.number, "", plan.to_json(), tuple(keys[i] for i in sorted(keys)), self.allow)
        return generation, job

    def _match(self, plan: Plan, keys: str) -> Generation:
        known = self._known_generations()
        numbers = {item["ident"]: item["number"] for facts in known.values() for item in facts["partitions"]}
        partitions = self._partitions(plan, numbers)
        mine = [_partition_facts(partition) for partition in partitions]
        for number, facts in reversed(known.items()):
            if (facts["plan_digest"], facts["keys"], facts["partitions"]) == (self.plan.digest, keys, mine):
                return Generation(number, plan, partitions, self.allow)
        return Generation(max(known, default=0) + 1, plan, partitions, self.allow)

    def _known_generations(self) -> dict[int, dict[str, Any]]:
        return {number: self.run.read_json(f"generations/{number}.json") for number in self.run.numbers("generations")}

    def _partitions(self, plan: Plan, numbers: dict[str, int]) -> tuple[Partition, ...]:
        found: list[Partition] = []
        key = plan_keys(plan)[-1]
        left = self.limit
        free = max(numbers.values(), default=-1) + 1
        for index, source in enumerate(plan.source):
            for part in source.scan():
                size = part.stop - part.start if left is None else min(part.stop - part.start, left)
                left = None if left is None else left - size
                if size <= 0:
                    continue
                cut = SourceSlice(part.digest, part.file, part.start, part.start + size)
                ident = short([key, index, cut.digest, cut.file, cut.start, cut.stop])
                if ident not in numbers:
                    numbers[ident] = free
                    free += 1
                found.append(Partition(numbers[ident], ident, index, cut))
        if not found:
            raise ConfigError(f"the source of `{plan.name}` has no rows", hint="check the files of the catalog entry")
        return tuple(found)

    def _open_generation(self, generation: Generation, job: Job) -> Job:
        """Write what is asked, unless it was before; return the job with the digest of what stands there."""
        self.run.create_generation(generation.number, self._generation_facts(generation, job))
        return replace(job, digest=digest_bytes(self.run.store.read(f"generations/{generation.number}.json")))

    def _generation_facts(self, generation: Generation, job: Job) -> dict[str, Any]:
        return {
            "plan_digest": self.plan.digest, "keys": digest_json(list(job.keys)), "plan": self.plan.model_dump(mode="json"),
            "located": generation.plan.model_dump(mode="json"), "allow": list(self.allow),
            "partitions": [_partition_facts(partition) for partition in generation.partitions],
        }  # fmt: skip

    def _manifested(self, generation: Generation, look: Scheduler) -> bool:
        name = f"manifest/{generation.number}.json"
        return self.run.store.exists(name) and self.run.read_json(name)["heads"] == [
            look.heads[unit]["key"] for unit in sorted(look.heads)
        ]

    def _num_tasks(self, generation: Generation) -> int:
        num = len(generation.partitions)
        passes = sum(isinstance(step.stage, GlobalFilter) for step in generation.plan.steps) + bool(generation.plan.sink)
        return num * len(generation.plan.segments) + passes * (num + num_buckets(num))

    def _licences(self) -> dict[str, str]:
        return {name: licence for source in self.plan.source for name, licence in source.licences().items()}

    def _clear_temps(self) -> None:
        """Remove what killed writers left in our own folders; only the holder of the lease may."""
        if isinstance(self.run.store, LocalStore):
            for name in FOLDERS:
                for path in walk_temps(self.run.store.path(name)):
                    path.unlink(missing_ok=True)

    def _show_newest(self, corpus: str | None, total: dict[str, Any]) -> None:
        """Let `corpus` and `funnel.json` be those of this call's plan; write only what differs."""
        if corpus is not None:
            self._point("corpus", corpus)
        text = (json.dumps(total, indent=1) + "\n").encode()
        if not self.run.store.exists("funnel.json") or self.run.store.read("funnel.json") != text:
            self.run.store.put("funnel.json", text)

    def _point(self, name: str, target: str) -> None:
        """Let `corpus` name the newest corpus on a local disk: a convenience, the manifest is what counts."""
        if isinstance(self.run.store, LocalStore):
            link, temp = self.run.store.path(name), self.run.store.path(f".tmp-{name}")
            if link.is_symlink() and link.readlink() == Path(target):
                return
            temp.unlink(missing_ok=True)
            temp.symlink_to(Path(target))
            temp.replace(link)


def _partition_facts(partition: Partition) -> dict[str, Any]:
    part = partition.part
    return {
        "number": partition.number, "ident": partition.ident, "source": partition.source,
        "part": {"digest": part.digest, "file": part.file, "start": part.start, "stop": part.stop},
    }  # fmt: skip


def _times(scheduler: Scheduler) -> list[dict[str, Any]]:
    return [
        {"task": report.key, "label": report.record.get("label", report.record.get("pass", "")),
         "seconds": round(report.seconds, 3), "worker": report.worker}
        for report in scheduler.reports
    ]  # fmt: skip


def _meaning(column: Any) -> str:  # noqa: ANN401 - a pyarrow field
    data = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
    return f"{data.get('meaning', 'carried')} [{data.get('unit', str(column.type))}]"
