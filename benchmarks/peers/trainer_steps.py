"""What every side of `benchmarks/trainer.py` shares: how a training step is timed and what is counted.

Decided here: a step is forward, backward and a fused AdamW on one fixed batch; some steps run before the clock starts, and the
median of those that follow counts. Memory is what the process grew to (what was allocated, on a GPU) since before the model was
made. Products are those of weights with tokens, as they are executed in a step; the attention's are left to the caller, who
knows how many pairs the mask allows.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

WEIGHTS = ("mm", "addmm", "_grouped_mm")  # batched products are those of attention
LEARNING_RATE = 1e-4


def opened() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the options named on the command line, and the batch: ids (R, T), images (R, N, H, W, 3), patches (R, N, C, P)."""
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    _warm_up()
    options["before_mib"] = memory_mib("VmRSS")
    with np.load(options["batch"]) as batch:
        return options, dict(batch)


def _warm_up() -> None:
    """Load what a first step loads, which is no side's memory."""
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    products(lambda: model(torch.ones(1, 8)).sum().backward())
    optimizer.step()


def measured(model: nn.Module, loss_of: Callable[[int], Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Train on some rows by `loss_of(rows)`; return what a step took."""
    rows, device = options["rows"], options["device"]
    flops = products(lambda: loss_of(1).backward()) * rows  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    if options.get("compile"):
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> tuple[float, float]:
        started, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss_of(rows).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, time.process_time() - cpu

    for _ in range(options["warm"]):
        step()
    if options.get("profile"):
        return profiled(step)
    took = [step() for _ in range(options["steps"])]
    grown = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory_mib("VmHWM") - options["before_mib"]
    return {
        "seconds": statistics.median(wall for wall, _ in took), "cpu": statistics.median(cpu for _, cpu in took),
        "mib": grown, "flops": flops, "parameters": sum(weights.numel() for weights in model.parameters()),
        "loss": float(loss_of(rows).detach()), "torch": torch.__version__,
    }  # fmt: skip


def products(work: Callable[[], object]) -> int:
    """Return the floating-point operations of the products of weights in some work."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped})
    with counter:
        work()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if str(op).rpartition(".")[2] in WEIGHTS)


def _grouped(left: tuple[int, ...], right: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * left[-2] * left[-1] * right[-1]


def profiled(step: Callable[[], object]) -> dict[str, Any]:
    """Return the operations that took most of a step, by their own time: name, calls, ms."""
    with torch.profiler.profile() as profile:
        step()
    found = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)[:30]
    return {"top": [(event.key, event.count, round(event.self_cpu_time_total / 1e3, 2)) for event in found]}


def memory_mib(what: str) -> float:
    """Return a line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))
