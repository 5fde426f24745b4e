"""The atlas: objectives x sharing at equal training compute and data, several seeds, and what papers claim beside what is seen.

    {ar, transfusion, masked, dual} x {dense, moe, mot}

All cells are one base config with the keys of their objective and their sharing changed. Each trains for as many steps as its
budget of operations allows, which is that of the base's `optim.steps` steps of the dense transfusion cell; an expert is 1 / top_k
as wide as the dense layer, so that a token costs the same in all three. Every run is a process of its own (its peak memory is
its own), one thread each, and is not run again where it is finished.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mmdata.config import Model, build, read_yaml
from mmdata.errors import RunError
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.data import open_data
from mmdata.trainer.flops import step_flops
from mmdata.trainer.metrics import Estimate, student
from mmdata.trainer.model import Transformer

Objective = Literal["ar", "transfusion", "masked", "dual"]
Sharing = Literal["dense", "moe", "mot"]
PROBED = 8  # steps whose operations are counted, to know how many a step takes
UNDERSTANDING, GENERATION = "caption_exact", "image_nearest"
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "ar": {"text": {"objective": "ar"}, "image": {"objective": "ar", "repr": {"gen": "vq"}}, "mask": "causal"},
    "transfusion": {"text": {"objective": "ar"}, "image": {"objective": "flow"}, "mask": "span_bidir"},
    "masked": {"text": {"objective": "mdm"}, "image": {"objective": "mdm", "repr": {"gen": "vq"}}, "mask": "full"},
    "dual": {"text": {"objective": "mdm"}, "image": {"objective": "flow"}, "mask": "full"},
}


class AtlasConfig(Model):
    """An atlas.

    base        the training config of the cell transfusion, dense; `evaluate` must ask for samples
    codes       folder of the image tokenizer of the cells that predict codes
    seeds       runs of each cell            together  runs at a time, one thread each
    """

    base: TrainConfig
    codes: str
    seeds: Annotated[int, Field(ge=1)] = 3
    together: Annotated[int, Field(ge=1)] = 1
    objectives: tuple[Objective, ...] = ("ar", "transfusion", "masked", "dual")
    shares: tuple[Sharing, ...] = ("dense", "moe", "mot")
    experts: Annotated[int, Field(ge=1)] = 8
    top_k: Annotated[int, Field(ge=1)] = 2

    def cell(self, objective: str, share: str, seed: int = 0, steps: int | None = None) -> TrainConfig:
        """Return the config of a cell."""
        asked = self.base.model_dump(mode="json", exclude_unset=True)
        asked = _over(asked, _OBJECTIVES[objective])
        if "vq" in str(_OBJECTIVES[objective]):
            asked["image"] |= {"tokenizer": self.codes}
            asked["image"].pop("predict", None)
            asked.get("time", {}).pop("cond", None)
        params: dict[str, Any] = {"share": share}
        if share == "moe":
            params |= {"experts": self.experts, "top_k": self.top_k, "expert_ratio": 1 / self.top_k}
        asked = _over(asked, {"params": params, "seed": seed, "threads": 1, "name": f"{objective}-{share}-{seed}"})
        if steps is not None:
            asked = _over(asked, {"optim": {"steps": steps}})
        return TrainConfig.model_validate(asked)


@dataclass(frozen=True)
class CellRun:
    """What became of one run: what evaluation found, and what it took."""

    objective: str
    share: str
    seed: int
    steps: int
    figures: dict[str, float]
    flops: float
    samples: float
    seconds: float
    memory_mib: float
    parameters: int


@dataclass(frozen=True)
class Claim:
    """What a paper says of two cells at equal compute."""

    words: str
    source: str
    better: tuple[str, str]
    worse: tuple[str, str]
    figure: str


@dataclass(frozen=True)
class Seen:
    """A claim, and the difference that was seen: its mean over seeds, and an interval where there are several."""

    claim: Claim
    difference: Estimate

    @property
    def verdict(self) -> str:
        """Say whether the direction is the paper's, the other, or not to be told from these runs."""
        if self.difference.low > 0:
            return "as claimed"
        return "the other way" if self.difference.high < 0 else "not to be told"


_TRANSFUSION, _MOT, _MOMA, _UNIDISC = "arXiv 2408.11039", "arXiv 2411.04996", "arXiv 2407.21770", "arXiv 2503.20853"
CLAIMS = (
    Claim("images by diffusion beat codes, generating", _TRANSFUSION, ("transfusion", "dense"), ("ar", "dense"), GENERATION),
    Claim(
        "images by diffusion beat codes, understanding", _TRANSFUSION, ("transfusion", "dense"), ("ar", "dense"), UNDERSTANDING
    ),
    Claim("towers beat one tower, over codes", _MOT, ("ar", "mot"), ("ar", "dense"), GENERATION),
    Claim("towers beat one tower, with diffusion", _MOT, ("transfusion", "mot"), ("transfusion", "dense"), GENERATION),
    Claim("experts beat a dense layer, over codes", _MOMA, ("ar", "moe"), ("ar", "dense"), GENERATION),
    Claim("masks beat one by one, over codes", _UNIDISC, ("masked", "dense"), ("ar", "dense"), GENERATION),
)


def load_atlas(path: Path) -> AtlasConfig:
    """Read an atlas; every mistake names its line."""
    return build(AtlasConfig, read_yaml(path))


def run_atlas(atlas: AtlasConfig, out: Path, tell: Callable[[str], None]) -> Path:
    """Train and evaluate every cell; return the `atlas.json` that tells it. RunError when a run fails: those done stay."""
    out.mkdir(parents=True, exist_ok=True)
    steps = plan_steps(atlas)
    for (objective, share), number in steps.items():
        tell(f"{objective}, {share}: {number} steps")
    todo = [(*cell, seed, number) for seed in range(atlas.seeds) for cell, number in steps.items()]
    found: list[CellRun] = []
    with ThreadPoolExecutor(atlas.together) as pool:
        for run in pool.map(lambda one: _train(atlas, out, *one), todo):
            found.append(run)
            figures = ", ".join(f"{name} {run.figures[name]:.3f}" for name in _told(run))
            tell(f"{len(found)} of {len(todo)}: {run.objective}, {run.share}, seed {run.seed}: {figures}")
    path = out / "atlas.json"
    path.write_text(json.dumps({"name": atlas.base.name, **summary(found)}, indent=1), encoding="utf-8")
    return path


def plan_steps(atlas: AtlasConfig) -> dict[tuple[str, str], int]:
    """Return how many steps each cell trains, so that all take as many operations as the dense transfusion cell's."""
    cells = [(objective, share) for objective in atlas.objectives for share in atlas.shares]
    costs = {cell: _step_cost(atlas.cell(*cell)) for cell in {*cells, ("transfusion", "dense")}}
    budget = costs["transfusion", "dense"] * atlas.base.optim.steps
    return {cell: max(1, round(budget / costs[cell])) for cell in cells}


def claims_seen(runs: Sequence[CellRun], split: str = "val") -> list[Seen]:
    """Return each claim whose cells were run, with the difference seed by seed."""
    values = {(run.objective, run.share, run.seed): run.figures for run in runs}
    found = []
    for claim in CLAIMS:
        seeds = sorted({seed for *_, seed in values if {(*claim.better, seed), (*claim.worse, seed)} <= set(values)})
        name = f"{split}/{claim.figure}"
        pairs = [(values[(*claim.better, seed)].get(name), values[(*claim.worse, seed)].get(name)) for seed in seeds]
        apart = np.array([better - worse for better, worse in pairs if better is not None and worse is not None])
        if len(apart):
            found.append(Seen(claim, student(apart) if len(apart) > 1 else Estimate(float(apart[0]), -np.inf, np.inf, 1)))
    return found


def summary(runs: Sequence[CellRun]) -> dict[str, Any]:
    """Return cells with means over seeds, claims beside what was seen, and all runs, as plain values.

    A figure is [mean, low, high]: Student's interval over seeds; of one seed, the interval over the items it was asked.
    """
    by_cell: dict[tuple[str, str], list[CellRun]] = {}
    for run in runs:
        by_cell.setdefault((run.objective, run.share), []).append(run)
    cells = [
        {
            "objective": objective, "share": share, "seeds": len(group), "steps": group[0].steps, "figures": _figures(group),
            "flops": float(np.mean([run.flops for run in group])), "memory_mib": max(run.memory_mib for run in group),
            "samples_per_s": float(np.mean([run.samples / run.seconds for run in group])), "parameters": group[0].parameters,
        }
        for (objective, share), group in by_cell.items()
    ]  # fmt: skip
    claims = {split: [_claimed(found) for found in claims_seen(runs, split)] for split in ("val", "seen")}
    return {"cells": cells, "claims": claims, "runs": [asdict(run) for run in runs]}


def _figures(group: list[CellRun]) -> dict[str, list[float]]:
    found = {}
    for name in group[0].figures:
        values = [run.figures[name] for run in group if name in run.figures]
        if name.endswith(("/low", "/high", "/num")) or len(values) < len(group):
            continue
        if len(values) > 1:
            over = student(np.array(values))
            found[name] = [over.value, over.low, over.high]
        else:
            found[name] = [values[0], *(group[0].figures.get(f"{name}/{end}", values[0]) for end in ("low", "high"))]
    return found


def _claimed(found: Seen) -> dict[str, Any]:
    low, high = found.difference.low, found.difference.high
    ends = {"low": low, "high": high} if np.isfinite(low) else {"low": None, "high": None}
    claim = found.claim
    return {
        "words": claim.words, "source": claim.source, "figure": claim.figure, "value": found.difference.value, **ends,
        "verdict": found.verdict,
    }  # fmt: skip


def _step_cost(config: TrainConfig) -> float:
    """Return the mean operations of a step: of its first few, laid out as training will."""
    data = open_data(config)
    model = Transformer(config, data.encoders.sizes)
    with data.loader() as loader:
        batches = [data.batch([list(row) for row in batch.rows]) for batch, _ in zip(loader, range(PROBED), strict=False)]
    costs = [step_flops(model, batch.kinds, batch.predicted, batch.pairs) for batch in batches]
    return sum(costs) / len(costs)


def _train(atlas: AtlasConfig, out: Path, objective: str, share: str, seed: int, steps: int) -> CellRun:
    config = atlas.cell(objective, share, seed, steps)
    home = out / "runs" / config.name
    done = home / "cell.json"
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["digest"] == config.digest:
            return CellRun(**found["run"])
    home.mkdir(parents=True, exist_ok=True)
    path = home / "asked.json"
    path.write_text(config.model_dump_json(indent=1, exclude_unset=True), encoding="utf-8")
    memory_mib = _run(path, home)
    record = _last(home / "metrics.jsonl")
    figures = {name: value for name, value in record.items() if name.startswith(("val/", "seen/"))}
    run = CellRun(
        objective, share, seed, steps, figures, record["flops"], record["samples"], record["seconds"], memory_mib,
        int(json.loads((home / "status.json").read_text(encoding="utf-8"))["parameters"]),
    )  # fmt: skip
    done.write_text(json.dumps({"digest": config.digest, "run": asdict(run)}), encoding="utf-8")
    return run


def _run(config: Path, home: Path) -> float:
    """Train in a process of its own; return its peak memory in MiB."""
    command = [sys.executable, "-m", "mmdata.cli", "train", str(config), "--out", str(home)]
    with (home / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = (home / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-3:]
        raise RunError(f"{home.name}: ended with {process.returncode}: {' '.join(tail)}", hint=f"read {home / 'log.txt'}")
    return float(usage.ru_maxrss) / 1024


def _last(metrics: Path) -> dict[str, Any]:
    """Return the last line of a log, with figures of its last evaluation, and the seconds of all steps."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {name: value for line in lines for name, value in line.items()}
    return found | {"seconds": sum(line["seconds"] for line in lines)}


def _told(run: CellRun) -> list[str]:
    wanted = [f"{split}/{name}" for split in ("val", "seen") for name in (UNDERSTANDING, GENERATION)]
    return [name for name in wanted if name in run.figures]


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in changes.items():
        old = found.get(key)
        found[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found
