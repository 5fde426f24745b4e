"""Ranks for tests: children of this process, which has torch already, with the variables that torchrun would set."""

import json
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer loads it: here once, and not in each child

from mmdata.errors import MmdataError
from mmdata.trainer import TrainConfig
from mmdata.trainer.log import TIMED

WAIT_S = 120.0


def small(corpus: str, steps: int, **changes: Any) -> TrainConfig:  # noqa: ANN401 - what a config holds
    """Return the config of a training run of milliseconds a step, in a step of four rows."""
    optim = {"steps": steps, "rows": 4, "micro_rows": 4, "warmup": 5, "lr": 3e-3} | changes.pop("optim", {})
    base = {
        "name": "t", "corpus": corpus, "image": {"size": 8, "patch": 4}, "model": {"width": 48, "layers": 1, "heads": 2},
        "layout": {"row_tokens": 40}, "text": {"vocab": 300}, "threads": 1, "optim": optim, "eval_every": steps,
        "checkpoint_every": steps,
    }  # fmt: skip
    return TrainConfig.model_validate(base | changes)


def records(out: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics, without what time says."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def apart(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Return how far losses are apart at most, training's and the evaluation's."""
    assert [set(record) for record in ours] == [set(record) for record in theirs]
    return max(abs(a[key] - b[key]) for a, b in zip(ours, theirs, strict=True) for key in a if key.startswith(("loss/", "val/")))


@dataclass(frozen=True)
class Ended:
    """How ranks ended: their exit codes, and what each said."""

    codes: list[int | None]
    said: list[str]


def ranks(num: int, folder: Path, act: Callable[[], object], environ: Mapping[str, str] | None = None) -> Ended:
    """Call `act` on each of `num` ranks and wait for them; those that do not end are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(environ or {})}
    said = [folder / f"said-{rank}.txt" for rank in range(num)]
    children = [
        get_context("fork").Process(target=_rank, args=({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, said[rank], act))
        for rank in range(num)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(WAIT_S)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
    return Ended([child.exitcode for child in children], [path.read_text() if path.exists() else "" for path in said])


def _rank(environ: dict[str, str], said: Path, act: Callable[[], object]) -> None:
    os.environ.update(environ)
    torch.set_num_threads(1)
    try:
        act()
    except MmdataError as error:
        said.write_text(str(error))
        raise SystemExit(error.exit_code) from None
    except Exception:
        said.write_text(traceback.format_exc())
        raise
