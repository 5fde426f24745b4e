"""`mmdata train`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmdata.cli.options import say, tell

if TYPE_CHECKING:
    from mmdata.trainer import TrainConfig, TrainResult


def command(
    config: Annotated[Path, typer.Argument(help="A training config, as YAML", metavar="CONFIG")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and metrics.jsonl")],
    ray: Annotated[str | None, typer.Option(help="Train on Ray: `local`, or a cluster's address", metavar="ADDRESS")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ranks on Ray; on one machine without it, use torchrun")] = 1,
) -> None:
    """Train the bundled model. The same command again resumes from the last checkpoint."""
    from mmdata.errors import ConfigError
    from mmdata.trainer import load_config, train

    if ray is None and workers > 1:
        hint = f"give --ray, or start `torchrun --nproc-per-node {workers} -m mmdata.cli train ...`"
        raise ConfigError("--workers is for --ray", hint=hint)
    loaded = load_config(config)
    result = train(loaded, out) if ray is None else _on_ray(loaded, out, ray, workers)
    if result.rank == 0:
        say(f"step {result.step}: {result.checkpoint}")


def _on_ray(config: "TrainConfig", out: Path, address: str, workers: int) -> "TrainResult":
    from mmdata.executors.ray import RayExecutor
    from mmdata.trainer import check_shares, train

    check_shares(config, workers)
    # Workers have folders of their own.
    corpus = config.corpus if "://" in config.corpus else str(Path(config.corpus).absolute())
    arguments = (config.model_copy(update={"corpus": corpus}), out.absolute())
    gpus = {"cpu": 0, "cuda": 1}.get(config.device)
    executor = RayExecutor(workers, None if address == "local" else address)
    try:
        result: TrainResult = executor.launch(train, arguments, str(out.absolute()), gpus, _Watch(out / "status.json"))
        return result
    finally:
        executor.close()


class _Watch:
    """Tells how far training is whenever its `status.json` has changed."""

    def __init__(self, path: Path) -> None:
        self.path, self.told = path, ""

    def __call__(self) -> None:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text != self.told:
            self.told, status = text, json.loads(text)
            tell("train: step {step} of {of}, {tokens_per_s:,.0f} tokens/s, {seconds_left:.0f} s left".format(**status))
