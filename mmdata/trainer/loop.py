"""The training loop, on one screen; around it what one step needs.

A step's losses are sums over the tokens of all micro-batches on all ranks, divided by counts that are known before the first
backward pass: neither the number of ranks nor that of micro-batches changes them.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdata.errors import ConfigError, RunError, did_you_mean, first_line
from mmdata.trainer.batch import FAMILIES, Batch
from mmdata.trainer.checkpoint import Checkpoint, check_same, latest, name_of, save
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.data import Data, open_data
from mmdata.trainer.dist import World, clip, gathered, gradients, joined, local, put, rest, share
from mmdata.trainer.ema import Ema
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.evaluate import evaluating
from mmdata.trainer.flops import active_parameters, peak_flops, step_flops
from mmdata.trainer.layout import Tokens
from mmdata.trainer.log import METRICS, Log
from mmdata.trainer.model import Transformer
from mmdata.trainer.moe import end_step, forget_loads
from mmdata.trainer.objectives import counts_of, divisor, is_low, loss_sums, weighted
from mmdata.trainer.optim import learning_rate, load_state, make_optimizer, state_of


@dataclass(frozen=True)
class TrainResult:
    """Where a training run stands."""

    step: int
    checkpoint: Path
    metrics: Path
    rank: int = 0


def train(config: TrainConfig, out: Path) -> TrainResult:
    """Train until `optim.steps`; resume from the newest whole checkpoint in `out`. Under torchrun, as one of its ranks."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with joined(config) as world, ExitStack() as stack:
        run = _Run(config, out, world, stack)
        path, total = out / name_of(run.step), config.optim.steps
        if run.step < total:
            with Log(out, run.step, total, run.facts, writes=world.first, tensorboard=config.tensorboard) as log:
                while run.step < total:
                    record = run.update()
                    found = run.validate() if run.due(config.eval_every) else {}
                    if config.evaluate.samples and run.due(config.evaluate.every):
                        found |= run.evaluate()
                    log.write(record | found)
                    if run.due(config.checkpoint_every):
                        log.sync()
                        path = run.save(found)
        run.loader.close()
    return TrainResult(run.step, path, out / METRICS, world.rank)


@dataclass
class _Counters:
    """What adds up over a run, all ranks together."""

    tokens: int = 0
    samples: int = 0
    flops: float = 0.0
    skipped: int = 0
    skips_in_a_row: int = 0


class _Run:
    """Everything that changes while training."""

    def __init__(self, config: TrainConfig, out: Path, world: World, stack: ExitStack) -> None:
        self.config, self.out, self.world = config, out, world
        found = _found(out, world)
        self.data: Data = open_data(config, world, found.tokenizer if found else None)
        if found is not None:
            check_same(found, config, self.data.identity)
        self.loader = world.in_turn(self.data.loader)
        torch.manual_seed(config.seed)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.model = Transformer(config, self.data.encoders.sizes).to(world.device, self.dtype)
        self.active = active_parameters(self.model)
        self.counted = {"kind": tuple(self.active), "predicted": FAMILIES}
        self.shared = share(Objective(self.model, self.data.encoders), list(self.model.blocks), config, world)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.ema = Ema(self.model, config.optim.ema)
        self.held_out = world.together(self._held_out)
        asks = partial(evaluating, config, self.data.corpus, self.data.sequencer)
        self.evaluation = world.together(lambda: stack.enter_context(asks()) if world.first else None)
        self.peak = peak_flops(config, world.device, low=is_low(config.precision, world.device.type))
        self.step, self.counters, self.waited = 0, _Counters(), 0.0
        if found is not None:
            self._resume(found)

    @property
    def facts(self) -> dict[str, Any]:
        """What is told of the run beside its steps."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        active = max(self.active.values())
        return {"config": self.config.model_dump(mode="json"), "parameters": parameters, "active_parameters": active}

    def due(self, every: int) -> bool:
        """Say whether something that is done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.config.optim.steps

    def _resume(self, found: Checkpoint) -> None:
        weights = found.tensors("model")
        for name, tensor in self.model.state_dict().items():
            put(tensor, weights[name])
        self.ema.load(found.tensors("ema"))
        load_state(self.optimizer, self.model, found.tensors("optim"))
        self.loader.restore(found.state["loader"])
        self.step, self.counters = found.step, _Counters(**found.state["counters"])

    def _held_out(self) -> list[tuple[Batch, bool]]:
        """Return this rank's micro-batches of the validation split, as many as any rank has: those to spare do not count."""
        found = [self.data.batch(rows) for rows in self.data.validation()]
        rounds = range(self.world.rank, -(-len(found) // self.world.size) * self.world.size, self.world.size)
        return [(found[min(number, len(found) - 1)], number < len(found)) for number in rounds]

    def update(self) -> dict[str, float | None]:
        """Do one optimizer step."""
        started, optim = time.perf_counter(), self.config.optim
        with self._memory():
            micro, counts = self._read()
            self.optimizer.zero_grad(set_to_none=True)
            sums, detail = self._backward(micro, counts)
            norm = clip(self._learnt(), optim.clip)
            loads = self._apply(sums, norm)
        self.step += 1
        counters, seconds = self.counters, time.perf_counter() - started
        kinds, predicted = ({name: counts[f"{what} {name}"] for name in names} for what, names in self.counted.items())
        flops = step_flops(self.model, kinds, predicted, counts["pairs"])
        counters.tokens, counters.samples = counters.tokens + int(counts["all"]), counters.samples + int(counts["samples"])
        counters.flops += flops
        losses = {f"loss/{name}": value / divisor(name, counts) for name, value in sums.items()} | detail
        return {
            "step": self.step, **losses, **loads, "lr": learning_rate(optim, self.step - 1), "grad_norm": norm,
            "ema_gap": self.ema.gap(), "tokens": counters.tokens, "samples": counters.samples, "flops": counters.flops,
            "skipped": counters.skipped, "padding": 1 - counts["all"] / counts["places"], "seconds": round(seconds, 4),
            "loader_wait": round(counts["wait"] / self.world.size / seconds, 4),
            "tokens_per_s": round(counts["all"] / seconds, 1),
            "mfu": round(flops / seconds / self.world.size / self.peak, 4) if self.peak else None,
        }  # fmt: skip

    def _read(self) -> tuple[list[Batch], dict[str, float]]:
        """Return this rank's micro-batches of the next step, and the counts of the step over all ranks."""
        micro: list[Batch] = []

        def own() -> dict[str, float]:
            rows = [list(row) for row in next(self.loader).rows]
            size = self.config.optim.micro_rows
            micro.extend(self.data.batch(rows[start : start + size]) for start in range(0, len(rows), size))
            waited, self.waited = self.waited, self.loader.stats().wait_s
            return _added([dict(counts_of(micro)), self._measures(rows, micro), {"wait": self.waited - waited}])

        return micro, _added(self.world.gather(own))

    def _measures(self, rows: list[list[Tokens]], micro: list[Batch]) -> dict[str, float]:
        return {
            "samples": sum(len(row) for row in rows), "places": len(rows) * self.config.layout.row_tokens,
            "pairs": sum(batch.pairs for batch in micro),
            **{f"kind {name}": sum(batch.kinds[name] for batch in micro) for name in self.counted["kind"]},
            **{f"predicted {name}": sum(batch.predicted[name] for batch in micro) for name in self.counted["predicted"]},
        }  # fmt: skip

    def _backward(self, micro: list[Batch], counts: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Add up the gradients of all micro-batches; return sums of losses over all ranks, and means of their parts by name."""
        totals: dict[str, Tensor] = {}
        self.shared.train()
        for number, batch in enumerate(micro):
            with gradients(self.shared, last=number == len(micro) - 1):
                sums, detail = self.shared(batch.to(self.world.device))
                # Ranks exchange the mean of their gradients, and the sum is wanted.
                loss = weighted(sums, counts, self.config) * self.world.size
                loss.backward()
            for name, value in {**sums, **detail}.items():
                totals[name] = totals.get(name, 0) + value.detach()
        found = self.world.sum({name: float(value) for name, value in totals.items()})
        parts = {name.removeprefix(PART) for name in found if name.startswith(PART)}
        means = {f"loss/{name}": found[PART + name] / max(found[TOKENS + name], 1) for name in sorted(parts)}
        return {name: value for name, value in found.items() if not name.startswith((PART, TOKENS))}, means

    def _apply(self, sums: Mapping[str, float], norm: float) -> dict[str, float]:
        """Change the weights, unless something is not finite: all ranks see the same numbers, and do the same.

        Returns the experts' shares of the tokens.
        """
        wrong = [f"loss `{name}`" for name, value in sums.items() if not math.isfinite(value)]
        wrong += [] if math.isfinite(norm) else [f"gradient of {self._not_finite()}"]
        counters, optim = self.counters, self.config.optim
        if not wrong:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(optim, self.step)
            self.optimizer.step()
            loads = end_step(self.model, self.world.add)
            self.ema.update(self.step)
            counters.skips_in_a_row = 0
            return loads
        forget_loads(self.model)
        counters.skipped, counters.skips_in_a_row = counters.skipped + 1, counters.skips_in_a_row + 1
        if optim.nonfinite == "skip" and counters.skips_in_a_row <= optim.max_skips:
            return {}
        often = f", {counters.skips_in_a_row} steps in a row" if optim.nonfinite == "skip" else ""
        raise RunError(
            f"step {self.step + 1}: not finite{often}: {', '.join(wrong)}; the last checkpoint stays",
            hint="lower `optim.lr`, raise `optim.warmup`, or use a wider `precision`; `optim.nonfinite: skip` passes steps over",
        )

    def _not_finite(self) -> str:
        """Name the parameters whose gradient is not finite, over all shards."""
        named = ((name, parameter.grad) for name, parameter in self.model.named_parameters() if parameter.grad is not None)
        told = self.world.gather(lambda: [name for name, grad in named if not bool(local(grad).isfinite().all())])
        names = sorted({name for part in told for name in part})
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"`{names[0]}`{more}" if names else "all weights together"

    def _learnt(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def evaluate(self) -> dict[str, float]:
        """Return what the averaged weights make of the pairs that are always asked; the first rank asks a copy of them."""
        tensors = gathered(self.ema.tensors, self.world)

        def ask() -> dict[str, float]:
            if not self.world.first or self.evaluation is None:
                return {}
            model = Transformer(self.config, self.data.encoders.sizes).to(self.world.device, self.dtype)
            model.load_state_dict(tensors)
            return self.evaluation(model.eval(), self.data.encoders, self.out, self.step)

        return self.world.sum(self.world.together(ask))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the losses of the averaged weights on the held-out split, with the same noise every time."""
        if not self.held_out:
            return {}
        parts: list[dict[str, float]] = []
        self.shared.eval()
        with self.ema.applied(), self._memory():
            for batch, counted in self.held_out:
                sums, _ = self.shared(batch.to(self.world.device))
                if counted:
                    parts.append({f"sum {name}": float(value) for name, value in sums.items()} | counts_of([batch]))
            rest(self.shared)
        totals = self.world.sum(_added(parts))
        sums = {name: totals[f"sum {name}"] for name in sums}
        found = {f"val/{name}": value / divisor(name, totals) for name, value in sums.items() if totals.get(name)}
        loss = float(weighted(sums, totals, self.config))
        return found | {"val/loss": loss}

    def save(self, figures: Mapping[str, float]) -> Path:
        """Write a checkpoint; `figures` are those of an evaluation at this step, if there was one."""
        metric, asks = self.config.keep.metric, self.config.evaluate
        whole = bool(figures) and (not asks.samples or self.due(asks.every))
        if whole and self.config.keep.best and metric not in figures and "metric" in self.config.keep.model_fields_set:
            raise ConfigError(f"`keep.metric` {metric} is no figure of the evaluation", hint=did_you_mean(metric, figures))
        state: dict[str, Any] = {
            "step": self.step, "counters": vars(self.counters), "loader": self.loader.state().to_json(), "metrics": dict(figures),
            "sizes": asdict(self.data.encoders.sizes),
            "config": self.config.model_dump(mode="json"), "identity": self.data.identity,
        }  # fmt: skip
        parts = {"model": self.model.state_dict(), "ema": self.ema.tensors, "optim": state_of(self.optimizer, self.model)}
        tensors = {part: gathered(values, self.world) for part, values in parts.items()}

        def write() -> None:
            if self.world.first:
                save(self.out, state, tensors, self.data.tokenizer, self.data.encoders.trained, self.config.keep)

        self.world.together(write)
        return self.out / name_of(self.step)

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Say what to do when memory is out."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            rows, length = self.config.optim.micro_rows, self.config.layout.row_tokens
            lower = f"lower `optim.micro_rows` (now {rows})" if rows > 1 else "lower `layout.row_tokens`"
            raise RunError(
                f"step {self.step + 1}: out of memory on a micro-batch of {rows} rows of {length} tokens: {first_line(error)}",
                hint=f"{lower}, or set `activation_checkpointing: true`: the same command goes on from the last checkpoint",
            ) from error


PART, TOKENS = "part ", "tokens of "


class Objective(nn.Module):
    """What ranks share: from a micro-batch to the sums of its losses, by name, and sums and tokens of their parts."""

    def __init__(self, model: Transformer, encoders: Encoders) -> None:
        super().__init__()
        self.model, self.encoders = model, encoders

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the sums of a micro-batch's losses."""
        sums = loss_sums(self.model, batch, self.encoders)
        parts = {PART + name: total for name, (total, _) in sums.detail.items()}
        return sums.named, parts | {TOKENS + name: tokens for name, (_, tokens) in sums.detail.items()}


def _found(out: Path, world: World) -> Checkpoint | None:
    """Return the newest whole checkpoint, which all ranks must see."""
    found = world.together(lambda: latest(out))
    steps = world.gather(lambda: found.step if found else None)
    if len(set(steps)) > 1:
        hint = "use a folder that all ranks share under one path"
        raise RunError(f"{out}: ranks see different checkpoints: {', '.join(map(str, steps))}", hint=hint)
    return found


def _added(parts: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}
