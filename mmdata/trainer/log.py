"""What is written while training: `metrics.jsonl`, `status.json`, and a line every 10 s for who watches.

A line of `metrics.jsonl` is one step; its keys are flat, with `/` between their parts. A number that is not finite is null.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from mmdata.trainer.tensorboard import TensorBoard

LINE_S = 10.0
METRICS, STATUS, CONFIG = "metrics.jsonl", "status.json", "config.json"
TIMED = ("tokens_per_s", "loader_wait", "mfu", "seconds")  # what differs between two runs of the same training


class Log:
    """The log of a training run, cut back to the step that it resumes from; only the first rank writes.

    facts   `config`, which is written once, and what each `status.json` says besides: sizes of the model
    """

    def __init__(
        self, folder: Path, step: int, total: int, facts: Mapping[str, Any] | None = None, *, writes: bool = True,
        tensorboard: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.first, self.total, self.writes = folder, step, total, writes
        self.facts = dict(facts or {})
        self.board = TensorBoard(folder / "tensorboard", step) if tensorboard and writes else None
        self.started = self.last = time.monotonic()
        self.file: TextIO | None = None

    def __enter__(self) -> Self:
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / METRICS
            temp = path.with_name(f".tmp-{METRICS}")
            temp.write_text("".join(f"{line}\n" for line in _before(path, self.first)), encoding="utf-8")
            temp.replace(path)
            self.file = path.open("a", encoding="utf-8")
            if "config" in self.facts:
                self._whole(CONFIG, self.facts.pop("config"))
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()

    def write(self, record: Mapping[str, float | None]) -> None:
        """Append a step, and tell who watches when it is time."""
        if self.file is None:
            return
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in record.items()}
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()
        if self.board is not None:
            self.board.write({name: value for name, value in finite.items() if value is not None})
        now = time.monotonic()
        if now - self.last >= LINE_S or record["step"] == self.total:
            self.last = now
            self._tell(finite, now)

    def sync(self) -> None:
        """Make the lines so far last: a checkpoint must not be ahead of them."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def _tell(self, record: Mapping[str, float | None], now: float) -> None:
        step, rate = int(record["step"] or 0), record["tokens_per_s"] or 0.0
        left = (now - self.started) / (step - self.first) * (self.total - step)
        status = {"step": step, "of": self.total, "tokens_per_s": rate, "seconds_left": round(left, 1)}
        self._whole(STATUS, {**status, **self.facts})
        losses = ", ".join(
            f"{name.removeprefix('loss/')} {value:.4g}"
            for name, value in record.items()
            if name.startswith("loss/") and name.count("/") == 1 and value is not None
        )
        sys.stderr.write(
            f"train: step {step} of {self.total} ({step / self.total:.0%}), {losses}, {rate:,.0f} tokens/s, {left:.0f} s left\n"
        )

    def _whole(self, name: str, what: Mapping[str, Any]) -> None:
        """Write a small file whole or not at all."""
        temp = self.folder / f".tmp-{name}"
        temp.write_text(json.dumps(what), encoding="utf-8")
        temp.replace(self.folder / name)


def _before(path: Path, step: int) -> list[str]:
    """Return the lines up to a step; one that was cut short by the end of its process is none."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            number = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break
        if number <= step:
            kept.append(line)
    return kept
