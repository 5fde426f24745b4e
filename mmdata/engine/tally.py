"""What is counted while a run runs, and what follows from it: shares, rates, time left, the bottleneck.

An event costs the same whatever the number of partitions. A stage counts rows and knows how far it is by its partitions;
the passes of a GlobalFilter and of the sink are counted in tasks, since a row goes through several of them.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mmdata.engine.facts import ErrorFacts, StageFacts
from mmdata.engine.keys import SOURCE
from mmdata.engine.task import Task, TaskReport

MAX_KINDS = 1000  # of errors; a run of a million different ones must not fill the memory
MAX_MESSAGE = 500
# What tells one partition's error from another's: ids, and words and numbers that hold a digit.
_UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_VARYING = re.compile(rf"(?<![0-9A-Za-z])(?:{_UUID}|[0-9a-f]{{8,}}(?![0-9A-Za-z])|(?=[A-Za-z]*\d)[0-9A-Za-z]+)")
_RUN_OF_THEM = re.compile(r"#(?:[.,:-]#)+")


@dataclass
class StageTally:
    """What one stage has come to. `lost` partitions were given up before they had passed it."""

    name: str
    rows: int = 0
    computed: int = 0
    partitions: int = 0
    lost: int = 0
    tasks: int = 0
    worked: int = 0
    passes: bool = False
    busy_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0

    @property
    def begun(self) -> bool:
        """True once a task of it is known."""
        return self.first_s is not None or self.tasks > 0

    def facts(self, now: float, to_go: float | None, in_flight: int, all_busy_s: float) -> StageFacts:
        """Return the stage as `status.json` has it; `to_go` are the partitions, or tasks of passes, that are left."""
        done = self.tasks if self.passes else self.partitions
        share = None if to_go is None else 1.0 if not to_go else done / (done + to_go)
        seconds = None if self.first_s is None else (self.last_s if share == 1 else now) - self.first_s
        units = self.worked if self.passes else self.computed
        left = to_go if self.passes or not to_go else self.rows / done * to_go if done else None
        busy_left = 0.0 if left == 0 else None if left is None or not units else left * self.busy_s / units
        return {
            "stage": self.name, "rows": self.rows, "computed": self.computed, "reused": self.rows - self.computed,
            "expected": None if self.passes or left is None else self.rows + round(left), "share": _round(share),
            "tasks": self.tasks, "in_flight": in_flight,
            "busy_s": round(self.busy_s, 3), "busy_share": round(self.busy_s / all_busy_s, 4) if all_busy_s else 0.0,
            "rows_per_s": _round(self.computed / seconds) if seconds else None,
            "rows_per_busy_s": _round(self.computed / self.busy_s) if self.busy_s else None,
            "busy_left_s": _round(busy_left),
            "seconds_left": 0.0 if left == 0 else None if left is None or not units or not seconds
            else round(left * seconds / units, 1),
        }  # fmt: skip


@dataclass
class Errors:
    """Failed attempts by kind: messages that differ only in numbers and ids are one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    shown: dict[str, str] = field(default_factory=dict)

    def add(self, message: str, *, given_up: bool) -> None:
        """Count an attempt that failed."""
        message = " ".join(message.split())
        message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
        kind = _RUN_OF_THEM.sub("#", _VARYING.sub("#", message))
        if kind not in self.counts and len(self.counts) >= MAX_KINDS:
            kind = message = "errors of other kinds"
        self.counts[kind] += 1
        self.given_up[kind] += given_up
        # Numbers stay readable as long as they are the same in all.
        self.shown[kind] = message if self.shown.get(kind, message) == message else kind

    def facts(self, most: int) -> list[ErrorFacts]:
        """Return the kinds that came most often."""
        return [
            {"message": self.shown[kind], "count": num, "given_up": self.given_up[kind]}
            for kind, num in self.counts.most_common(most)
        ]


@dataclass(frozen=True)
class Flight:
    """A task with a worker, and since when."""

    task: Task
    since: float


@dataclass(frozen=True)
class _Head:
    """A partition after its newest segment; its drops include those of the segments before."""

    step: int
    kept: int
    dropped: dict[str, int]


_NOTHING = _Head(-1, 0, {})


class Tally:
    """Counts of a run. Labels of stages are those of the plan's steps in order, the source before and the sink after them."""

    def __init__(self, labels: list[str], partitions: int | None) -> None:
        seen: Counter[str] = Counter()
        self.stages: list[StageTally] = []
        for label in labels:
            seen[label] += 1
            self.stages.append(StageTally(label if seen[label] == 1 else f"{label} {seen[label]}"))
        self.partitions = partitions
        self.flying: dict[str, Flight] = {}
        self.done = self.reused = self.failed = self.given_up = 0
        self.outcomes: Counter[str] = Counter()
        self.errors = Errors()
        self._heads: dict[int, _Head] = {}
        self._spans: dict[int, tuple[int, int]] = {}

    def launch(self, task: Task, now: float) -> None:
        """Note that a worker has a task."""
        self.flying[task.name] = Flight(task, now)
        for stage in self._stages_of(task):
            stage.first_s = now if stage.first_s is None else stage.first_s

    def finish(self, task: Task, record: dict[str, Any], report: TaskReport | None, now: float) -> dict[str, int]:
        """Count a finished task; return the rows it dropped by reason. Without a report it was finished before."""
        self.flying.pop(task.name, None)
        self.done += 1
        self.reused += report is None
        for stage in self._stages_of(task):
            stage.tasks += 1
            if report is not None:
                stage.worked += 1
                stage.last_s = now
        if task.kind == "pass":
            self._count_pass(task, report)
            return {}
        self._count_rows(task, record, report)
        return self._replace_head(task.unit, _Head(task.step, record.get("kept", 0), record.get("dropped", {})))

    def fail(self, task: Task, message: str, *, given_up: bool) -> Flight | None:
        """Count a failed attempt; return the flight that it ends."""
        self.failed += 1
        self.given_up += given_up
        self.errors.add(message, given_up=given_up)
        if given_up and task.kind == "segment":
            for stage in self.stages[self._span(task)[0] :]:
                stage.lost += 1
            self.outcomes.subtract(self._heads.pop(task.unit, _NOTHING).dropped)  # none of its rows is in this generation
        return self.flying.pop(task.name, None)

    def stage_facts(self, now: float, total: int, *, ended: bool) -> list[StageFacts]:
        """Return the stages as `status.json` has them."""
        in_flight = Counter(stage.name for flight in self.flying.values() for stage in self._stages_of(flight.task))
        busy = sum(stage.busy_s for stage in self.stages)
        to_go = [self._to_go(place, total, ended) for place in range(len(self.stages))]
        return [stage.facts(now, left, in_flight[stage.name], busy) for stage, left in zip(self.stages, to_go, strict=True)]

    def _count_rows(self, task: Task, record: dict[str, Any], report: TaskReport | None) -> None:
        source = [{"index": SOURCE, "needed": record.get("rows_in", 0), "computed": record.get("rows_in", 0)}]
        for step in (source if task.step == 0 else []) + record.get("steps", []):
            stage = self.stages[step["index"] + 1]
            if not stage.passes:
                stage.partitions += 1
                stage.rows += step["needed"]
                # Rows that another of them took from a document were computed and are not needed.
                stage.computed += min(step["computed"], step["needed"]) if report is not None else 0
        if report is not None:
            for index, seconds in report.step_seconds.items():
                self.stages[index + 1].busy_s += seconds

    def _count_pass(self, task: Task, report: TaskReport | None) -> None:
        stage = self.stages[task.step + 1]
        stage.passes = True
        if task.pass_index == 0:  # the first pass reads the partitions, later ones what it made
            rows = sum(self._heads[unit].kept for unit in task.inputs if unit in self._heads)
            stage.rows += rows
            stage.computed += rows if report is not None else 0
        stage.busy_s += 0.0 if report is None else report.seconds

    def _replace_head(self, unit: int, head: _Head) -> dict[str, int]:
        """Let a partition's newest segment stand for it; return the rows that this one dropped."""
        before = self._heads.get(unit, _NOTHING)
        if head.step < before.step:  # a later one was found finished first
            return {}
        self._heads[unit] = head
        self.outcomes.update(head.dropped)
        self.outcomes.subtract(before.dropped)
        return {reason: num - before.dropped.get(reason, 0) for reason, num in head.dropped.items()}

    def _to_go(self, place: int, total: int, ended: bool) -> float | None:
        """Return the partitions, or tasks of passes, that a stage has still to do; null when nobody knows."""
        stage = self.stages[place]
        if not stage.passes:
            return None if self.partitions is None else max(self.partitions - stage.lost - stage.partitions, 0)
        if ended or any(later.begun for later in self.stages[place + 1 :]):
            return 0
        # All partitions wait for a pass: when nothing comes after it, every task that is left is its own.
        return max(total - self.done, 0) if place == len(self.stages) - 1 else None

    def _stages_of(self, task: Task) -> list[StageTally]:
        start, stop = self._span(task)
        return self.stages[start:stop]

    def _span(self, task: Task) -> tuple[int, int]:
        """Return the places of a task's stages. Segments follow each other, and a label names a segment's stages."""
        if task.kind == "pass":
            return task.step + 1, task.step + 2
        if task.step not in self._spans:
            start = max((stop for step, (_, stop) in self._spans.items() if step < task.step), default=0)
            names = 0 if task.label == self.stages[0].name else task.label.count(" + ") + 1
            self._spans[task.step] = (start, start + names + (task.step == 0))
        return self._spans[task.step]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
