"""Run a plan in a run folder: the one function behind `mmdata run`.

The same call again resumes. When all is there already nothing is written and nobody is asked: the lease is taken only
once there is work.
"""

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmdata.clock import Clock
from mmdata.engine.facts import State
from mmdata.engine.floors import check_floors
from mmdata.engine.forecast import Forecast, forecast
from mmdata.engine.generation import asks_same, find_generation, generation_facts
from mmdata.engine.lease import Lease
from mmdata.engine.ledger import by_stage, funnel, profiles, several
from mmdata.engine.metrics import serve_metrics
from mmdata.engine.passes import num_expected
from mmdata.engine.progress import Progress
from mmdata.engine.runstore import Generation, RunStore
from mmdata.engine.scheduler import Scheduler
from mmdata.engine.task import Executor, Job
from mmdata.errors import BusyError, first_line
from mmdata.net import Guard
from mmdata.net.shared import forget_hosts
from mmdata.plan import Budget, Plan
from mmdata.shards.manifest import Finish
from mmdata.storage import LocalStore, clear_temps, digest_bytes


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    funnel    rows in, made, kept, dropped by reason, split: of the partitions that were done
    computed  rows computed by stage        failed  partitions that were given up, by number, and why
    notes     (stage, what it says of its work)
    """

    generation: int
    funnel: dict[str, Any]
    by_stage: list[tuple[str, str, int]]
    computed: dict[str, int]
    corpus: str | None
    seconds: float
    fresh: bool
    failed: dict[int, str]
    notes: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Runner:
    """A plan and a run folder.

    budget   stands in for the plan's own      metrics  where to serve them, as HOST:PORT
    retry    outcomes that are asked about once more: rows that ended so are fetched again, and only they
    """

    plan: Plan
    url: str
    allow: tuple[str, ...] = ()
    limit: int | None = None
    budget: Budget | None = None
    clock: Clock = field(default_factory=Clock)
    metrics: str | None = None
    retry: tuple[str, ...] = ()
    run: RunStore = field(init=False)

    def __post_init__(self) -> None:
        self.plan.check()
        check_floors()
        Guard(self.allow)  # refuses what is no allowance
        self.run = RunStore(self.url)
        if self.run.owner() is not None:
            self.run.claim(self.plan)  # refuses a folder of another plan

    def forecast(self) -> Forecast:
        """Find out what is kept and what will be computed; write nothing."""
        generation, job = find_generation(self.run, self.plan, self.allow, self.limit, self.retry)
        return forecast(self.run, generation, job)

    def execute(self, executor: Executor, *, quiet: bool = False) -> RunResult:
        """Do what is missing and return what the run came to."""
        started = time.monotonic()
        generation, job = find_generation(self.run, self.plan, self.allow, self.limit, self.retry)
        num = sum(partition.rows for partition in generation.partitions)
        for stage in self.plan.stages:
            stage.check_size(num, self.plan.fields)
        look = Scheduler(self.run, generation, job, None)
        if look.segments() and (sunk := self._sink(look)) is not None and self._manifested(generation, look):
            show_newest(self.run, generation.number, sunk[0], funnel(list(look.heads.values())))
            return self._result(generation, look, sunk[0], started, fresh=False)
        del look  # it knows as much of every partition as the one that works
        self.run.claim(self.plan)
        with Lease(self.run.store, self.clock) as lease:
            self.run.store.probe()
            self.run.settle("")  # `run.json` may be of a run that was killed
            self._clear_temps()
            generation, job = self._open_generation()
            job = replace(job, share=executor.machines)
            progress = None if quiet else self._progress(generation)
            budget = self.plan.budget if self.budget is None else self.budget
            scheduler = Scheduler(self.run, generation, job, executor, progress, budget, self.clock, lease.check)
            try:
                with self._serving(progress):
                    corpus = self._work(generation, scheduler, lease)
            finally:
                forget_hosts(self.run.store.url)
        return self._result(generation, scheduler, corpus, started, fresh=True)

    def _work(self, generation: Generation, scheduler: Scheduler, lease: Lease) -> str | None:
        """Run all tasks and finish the generation; however it ends, the progress says so."""
        state: State = "stopped"
        why = ""
        try:
            scheduler.segments()
            scheduler.ledger.check(scheduler.budget)  # also where every task was done by a call before
            sunk = self._sink(scheduler)
            assert sunk is not None
            corpus, made = sunk
            lease.check(now=True)
            if scheduler.attempts_failed:
                self._clear_temps()  # of workers that died in this call
            self._finish(generation, scheduler, corpus, made)
            state = "done with failures" if scheduler.failed else "done"
        except BaseException as error:
            why = first_line(error)
            raise
        finally:
            if scheduler.progress is not None and not isinstance(sys.exception(), BusyError):  # the folder is another's now
                scheduler.progress.end(state, why)
        return corpus

    def _sink(self, scheduler: Scheduler) -> tuple[str | None, Any] | None:
        if scheduler.generation.plan.sink is None:
            return None, None
        made = scheduler.sink()
        return None if made is None else (f"corpora/{made[0]}", made)

    def _finish(self, generation: Generation, scheduler: Scheduler, corpus: str | None, made: Any) -> None:  # noqa: ANN401
        plan, total = generation.plan, funnel(list(scheduler.heads.values()))
        if corpus is not None and plan.sink is not None:
            facts = Finish(
                plan.name, self.plan.digest, total, plan.licences, plan.meanings, made[2], plan.trusted, plan.cautions,
                plan.makers, several(scheduler.heads.values()),
            )  # fmt: skip
            plan.sink.finish(self.run.store, corpus, made[1], facts)
        show_newest(self.run, generation.number, corpus, total)
        self.run.store.put(f"facts/{generation.number}.json", json.dumps(scheduler.times, indent=1).encode())
        self.run.create_manifest(generation.number, {
            "plan_digest": self.plan.digest, "allow": list(self.allow), "cautions": plan.cautions,
            "corpus": corpus, "funnel": total,
            "by_stage": [list(item) for item in self._by_stage(generation, scheduler)],
            "profiles": profiles(scheduler.heads.values()),
            "heads": _heads(generation, scheduler), "passes": sorted(scheduler.passes),
            **({"notes": [list(item) for item in notes]} if (notes := self._notes(generation, scheduler)) else {}),
            "failed": {str(unit): why for unit, why in sorted(scheduler.failed.items())},
        })  # fmt: skip
        if made is not None:
            with suppress(OSError):  # the run is finished; what is left is freed by `mmdata gc`
                self.run.free_media(made[0])

    def _result(
        self, generation: Generation, scheduler: Scheduler, corpus: str | None, started: float, *, fresh: bool
    ) -> RunResult:
        computed: dict[str, int] = {step.stage.name: 0 for step in generation.plan.steps}
        for step in generation.plan.steps:
            computed[step.stage.name] += scheduler.computed[step.index]
        place = None if corpus is None else f"{self.url}/{corpus}"
        return RunResult(
            generation.number, funnel(list(scheduler.heads.values())), self._by_stage(generation, scheduler), computed, place,
            time.monotonic() - started, fresh, dict(scheduler.failed), self._notes(generation, scheduler),
        )  # fmt: skip

    def _by_stage(self, generation: Generation, scheduler: Scheduler) -> list[tuple[str, str, int]]:
        names = {-2: "source"} | {step.index: step.stage.name for step in generation.plan.steps}
        return [(names[stage], reason, num) for stage, reason, num in by_stage(list(scheduler.heads.values()))]

    def _notes(self, generation: Generation, scheduler: Scheduler) -> list[tuple[str, str]]:
        return [(generation.plan.steps[step].stage.name, note) for step, note in sorted(scheduler.notes.items())]

    def _open_generation(self) -> tuple[Generation, Job]:
        """Write what is asked, unless it was before; return it, and the job with the digest of what stands there.

        Which generation it is must be found out by the holder of the lease: another run may have started and ended since.
        """
        generation, job = find_generation(self.run, self.plan, self.allow, self.limit, self.retry)
        facts = generation_facts(self.plan, generation, job, limited=self.limit is not None)
        name = f"generations/{generation.number}.json"
        if not self.run.create_generation(generation.number, facts) and not asks_same(self.run.read_json(name), facts):
            raise BusyError(f"{self.url}: another run has just asked for generation {generation.number}", hint="run it again")
        return generation, replace(job, digest=digest_bytes(self.run.store.read(name)))

    def _manifested(self, generation: Generation, look: Scheduler) -> bool:
        if not self.run.store.exists(f"manifest/{generation.number}.json"):
            return False
        return bool(self.run.manifest(generation.number)["heads"] == _heads(generation, look))

    def _progress(self, generation: Generation) -> Progress:
        plan, num = generation.plan, len(generation.partitions)
        total = num * len(plan.segments) + sum(num_expected(generation, step) for step in range(len(plan.stages) + 1))
        labels = ["source", *(step.stage.name for step in plan.steps)]
        labels += [] if plan.sink is None else [f"sink {plan.sink.name}"]
        return Progress(self.run.store, plan.name, labels, total, clock=self.clock, partitions=num)

    def _serving(self, progress: Progress | None) -> AbstractContextManager[object]:
        return nullcontext() if progress is None or self.metrics is None else serve_metrics(progress.facts, self.metrics)

    def _clear_temps(self) -> None:
        """Remove what killed writers left; only the holder of the lease may."""
        if isinstance(self.run.store, LocalStore):
            clear_temps(self.run.store.root)


def show_newest(run: RunStore, number: int, corpus: str | None, total: dict[str, Any]) -> None:
    """Let `corpus` and `funnel.json` be those of one generation, and that the one asked for last; write only what differs."""
    run.note_asked(number)
    if corpus is not None:
        point(run, "corpus", corpus)
    text = (json.dumps(total, indent=1) + "\n").encode()
    if not run.store.exists("funnel.json") or run.store.read("funnel.json") != text:
        run.store.put("funnel.json", text)


def point(run: RunStore, name: str, target: str) -> None:
    """Let `corpus` name the newest corpus on a local disk: a convenience, the manifest is what counts."""
    if isinstance(run.store, LocalStore):
        link, temp = run.store.path(name), run.store.path(f".tmp-{name}")
        if link.is_symlink() and link.readlink() == Path(target):
            return
        temp.unlink(missing_ok=True)
        temp.symlink_to(Path(target))
        temp.replace(link)


def _heads(generation: Generation, scheduler: Scheduler) -> list[str | None]:
    """Return the key of each partition's last record, null for one that was given up."""
    return [scheduler.heads[unit]["key"] if unit in scheduler.heads else None for unit in range(len(generation.partitions))]
