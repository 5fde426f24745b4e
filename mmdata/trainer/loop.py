"""The training loop, on one screen; around it what one step needs, and the log."""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from mmdata.errors import ConfigError, RunError
from mmdata.trainer.batch import Batch
from mmdata.trainer.checkpoint import Checkpoint, latest, load_optimizer, save
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.data import Data, open_data
from mmdata.trainer.model import Transformer
from mmdata.trainer.moe import end_step
from mmdata.trainer.objectives import counts_of, loss_sums, weighted

LINE_S = 10.0


@dataclass(frozen=True)
class TrainResult:
    """Where a training run stands."""

    step: int
    checkpoint: Path
    metrics: Path


def train(config: TrainConfig, out: Path) -> TrainResult:
    """Train until `optim.steps`; resume from the newest whole checkpoint in `out`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    found = latest(out)
    run = _Run(config, out, found)
    metrics = out / "metrics.jsonl"
    if run.step == config.optim.steps and found is not None:
        return TrainResult(run.step, found.path, metrics)
    with _Log(metrics, run.step, config.optim.steps) as log:
        while run.step < config.optim.steps:
            record = run.update(run.next_batches())
            if run.step % config.eval_every == 0 or run.step == config.optim.steps:
                record |= run.validate()
            log.write(record)
            if run.step % config.checkpoint_every == 0 or run.step == config.optim.steps:
                path = run.save()
    run.loader.close()
    return TrainResult(run.step, path, metrics)


class _Run:
    """Everything that changes while training."""

    def __init__(self, config: TrainConfig, out: Path, found: Checkpoint | None) -> None:
        self.config, self.out = config, out
        if found is not None and found.config.digest != config.digest:
            raise ConfigError(f"{found.path} was trained with another config", hint="use another --out, or the same config")
        self.data: Data = open_data(config, found.tokenizer if found else None)
        self.loader = self.data.loader()
        torch.manual_seed(config.seed)
        self.model = Transformer(config, self.data.encoders.sizes)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self.ema = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.held_out = self.data.validation()
        self.step = self.tokens = 0
        if found is not None:
            self._resume(found)

    def _resume(self, found: Checkpoint) -> None:
        self.model.load_state_dict(found.model(ema=False).state_dict())
        self.ema = {name: value.clone() for name, value in found.model().state_dict().items()}
        load_optimizer(found, self.optimizer, self.model)
        self.loader.restore(found.state["loader"])
        self.step, self.tokens = found.step, int(found.state["tokens"])

    def next_batches(self) -> list[Batch]:
        rows = [list(row) for row in next(self.loader).rows]
        size = self.config.optim.micro_rows
        return [self.data.batch(rows[start : start + size]) for start in range(0, len(rows), size)]

    def update(self, batches: list[Batch]) -> dict[str, float]:
        """Do one optimizer step over all micro-batches, with losses over the counts of the whole step."""
        optim, counts = self.config.optim, counts_of(batches)
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        total: dict[str, float] = {}
        for batch in batches:
            sums = loss_sums(self.model, batch, self.data.encoders)
            weighted(sums, counts, self.config).backward()  # type: ignore[no-untyped-call]
            for name, value in sums.families.items():
                total[name] = total.get(name, 0.0) + float(value.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip)
        if not math.isfinite(float(norm)):
            raise RunError(f"step {self.step}: the gradient is not finite", hint="lower `optim.lr`, or raise `optim.warmup`")
        self.optimizer.step()
        loads = end_step(self.model, lambda value: value)
        self._average()
        self.step += 1
        self.tokens += counts["all"]
        places = sum(batch.ids_BL.numel() for batch in batches)
        losses = {f"loss/{name}": value / max(counts[name], 1) for name, value in total.items()}
        return {
            "step": self.step, **losses, **loads, "lr": lr, "grad_norm": float(norm), "tokens": self.tokens,
            "padding": 1 - counts["all"] / places,
        }  # fmt: skip

    @torch.no_grad()
    def _average(self) -> None:
        # A young average follows closely, so that it does not remember the initial weights.
        decay = min(self.config.optim.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        for name, value in self.ema.items():
            value.lerp_(state[name], 1 - decay)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the losses of the averaged weights on the held-out split, with the same noise every time."""
        if not self.held_out:
            return {}
        live = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        total: dict[str, float] = {}
        for batch in self.held_out:
            for name, value in loss_sums(self.model, batch, self.data.encoders).families.items():
                total[name] = total.get(name, 0.0) + float(value)
        self.model.load_state_dict(live)
        counts = counts_of(self.held_out)
        return {f"val/{name}": value / max(counts[name], 1) for name, value in total.items() if counts[name]}

    def save(self) -> Path:
        state = {
            "step": self.step, "tokens": self.tokens, "loader": self.loader.state().to_json(),
            "config": self.config.model_dump(mode="json"), "corpus": self.data.corpus.digest,
        }  # fmt: skip
        ema: dict[str, Tensor] = {name: value.contiguous() for name, value in self.ema.items()}
        return save(self.out, state, self.model, ema, self.optimizer, self.data.tokenizer)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to a tenth, or constant."""
    optim = config.optim
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return optim.lr
    share = (step - optim.warmup) / max(optim.steps - optim.warmup, 1)
    return optim.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)


class _Log:
    """`metrics.jsonl`, cut back to the step that training resumes from, and a line every 10 s."""

    def __init__(self, path: Path, step: int, total: int) -> None:
        self.path, self.first, self.total = path, step, total
        self.started = self.last = time.monotonic()
        self.first_tokens: float | None = None

    def __enter__(self) -> "_Log":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in old if json.loads(line)["step"] <= self.first]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file: TextIO = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: dict[str, float]) -> None:
        now = time.monotonic()
        seconds = now - self.started
        self.first_tokens = record["tokens"] if self.first_tokens is None else self.first_tokens
        rate = (record["tokens"] - self.first_tokens) / seconds
        self.file.write(json.dumps({**record, "tokens_per_s": round(rate, 1)}) + "\n")
        self.file.flush()
        if now - self.last >= LINE_S or record["step"] == self.total:
            self.last = now
            done = record["step"] - self.first
            left = seconds / done * (self.total - record["step"])
            status = {"step": record["step"], "of": self.total, "tokens_per_s": round(rate, 1), "seconds_left": round(left, 1)}
            (self.path.parent / "status.json").write_text(json.dumps(status), encoding="utf-8")
            sys.stderr.write(
                f"train: step {record['step']:.0f} of {self.total} ({record['step'] / self.total:.0%}), "
                f"{_told(record)}, {rate:,.0f} tokens/s, {left:.0f} s left\n"
            )


def _told(record: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in record.items() if name.startswith("loss/"))
