"""Training under fire: a checkpoint is there whole or not at all, and what is resumed equals what was not, bit for bit."""

import json
import os
import pickle
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first optimizer loads it: here once, and not in each of forty children

from mmdata.errors import ConfigError, RunError
from mmdata.failpoint import TRAINING_POINTS
from mmdata.trainer import train
from mmdata.trainer.checkpoint import latest, open_checkpoint
from mmdata.trainer.log import TIMED
from tests.bomb import Bomb
from tests.corpus import make_corpus
from tests.fire.mounts import mounted, needs_mounts
from tests.fire.seeds import GAUNTLET
from tests.trainer.common import config

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("shapes"), num=48, val=0.2)


def losses(out: Path) -> list[str]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [repr({key: value for key, value in record.items() if key not in TIMED}) for record in records]


def trained(corpus: str, out: Path, steps: int, every: int, failpoint: str | None = None) -> int:
    """Train in a child of this process, which has torch already; return its exit code."""
    child = get_context("fork").Process(target=_train, args=(corpus, out, steps, every, failpoint))
    child.start()
    child.join(300)
    assert child.exitcode is not None, "training does not end"
    return child.exitcode


def _train(corpus: str, out: Path, steps: int, every: int, failpoint: str | None) -> None:
    if failpoint is not None:
        os.environ["FAILPOINT"] = failpoint
    torch.set_num_threads(1)
    optim = {"steps": steps, "rows": 2, "micro_rows": 1, "warmup": 5, "lr": 3e-3}
    train(config(corpus=corpus, optim=optim, checkpoint_every=every, eval_every=steps, keep={"last": 1, "best": 0}), out)


@pytest.fixture(scope="module")
def whole(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("whole")
    assert trained(shapes, out, 4, 2) == 0
    found = latest(out)
    assert found is not None
    return found.state


@pytest.mark.fault("L08")
@pytest.mark.parametrize("point", TRAINING_POINTS)
def test_L08_killed_at_each_step_of_a_save_the_latest_whole_one_loads(
    shapes: str, whole: dict[str, object], tmp_path: Path, point: str
) -> None:
    # Of the second save: files of tensors are three a save, and there is none to remove before.
    nth = {"weights": 4, "drop": 1}.get(point.partition("-")[2], 2)
    assert trained(shapes, tmp_path, 4, 2, f"{point}:{nth}:kill") == -signal.SIGKILL
    found = latest(tmp_path)
    assert found is not None
    there = point in {"after-rename", "before-drop", "after-drop"}
    assert found.step == (4 if there else 2)
    assert trained(shapes, tmp_path, 4, 2) == 0
    again = latest(tmp_path)
    assert again is not None
    assert again.state == whole
    assert there or not list(tmp_path.glob(".tmp-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=1600k") as disk:
        yield disk


@needs_mounts
@pytest.mark.fault("L09")
def test_L09_a_full_disk_leaves_the_checkpoint_before_and_says_so(shapes: str, small_disk: Path) -> None:
    settings = config(corpus=shapes, optim={"steps": 40, "rows": 2, "micro_rows": 1, "warmup": 5, "lr": 3e-3}, checkpoint_every=1)
    with pytest.raises(RunError, match=r"step-\d+: the checkpoint cannot be written: .*[Nn]o space") as caught:
        train(settings, small_disk)
    assert "make room on the disk" in str(caught.value)
    found = latest(small_disk)
    assert found is not None
    assert found.step >= 1
    assert not list(small_disk.glob(".tmp-*"))


@pytest.mark.fault("L14")
def test_L14_steps_are_bit_equal_twice_and_resumed(shapes: str, tmp_path: Path) -> None:
    num, stops = (200, (37, 100, 199)) if GAUNTLET else (40, (27,))  # an epoch is 20 steps
    first = tmp_path / "first"
    assert trained(shapes, first, num, num) == 0
    whole, state = losses(first), latest(first)
    assert len(whole) == num
    assert state is not None
    for stop in (num, *stops):  # the first is not stopped
        out = tmp_path / f"at-{stop}"
        if stop < num:
            assert trained(shapes, out, num, stop, "after-rename:1:kill") == -signal.SIGKILL
        assert trained(shapes, out, num, stop) == 0
        again = latest(out)
        assert losses(out) == whole
        assert again is not None
        assert again.state["files"] == state.state["files"]


@pytest.mark.fault("L18")
def test_L18_a_checkpoint_is_never_unpickled(shapes: str, tmp_path: Path) -> None:
    out, marker = tmp_path / "out", tmp_path / "marker"
    settings = config(corpus=shapes, optim={"steps": 1, "rows": 2, "micro_rows": 1, "warmup": 1, "lr": 1e-3}, checkpoint_every=1)
    result = train(settings, out)
    for name in ("model.safetensors", "optim.safetensors", ".metadata", "state.json"):
        path = result.checkpoint / name
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(pickle.dumps(Bomb(marker)))
        if name == ".metadata":
            open_checkpoint(result.checkpoint).model()
        else:
            with pytest.raises(ConfigError, match=r"missing or damaged|not a checkpoint"):
                open_checkpoint(result.checkpoint)
        if kept is not None:
            path.write_bytes(kept)
    assert not marker.exists()
