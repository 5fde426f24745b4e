"""Ranks: however many there are and whatever they share, it is the same training; they end together."""

import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mmdata.cli.train import command
from mmdata.errors import ConfigError, RunError
from mmdata.executors.gang import Work, environment, serve
from mmdata.executors.nodes import look, write_nonce
from mmdata.executors.ray import RayExecutor
from mmdata.trainer import TrainConfig, TrainResult, train
from mmdata.trainer.checkpoint import latest
from mmdata.trainer.dist import World, check_shares
from tests.trainer.ranks import WAIT_S, apart, ranks, records, small

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def alone(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train(small(shapes, 24), out)
    return out


@pytest.mark.parametrize(("parallel", "num"), [("ddp", 2), ("ddp", 4), ("fsdp", 4)])
def test_ranks_train_as_one_process(shapes: str, alone: Path, tmp_path: Path, parallel: str, num: int) -> None:
    ended = ranks(
        num,
        tmp_path,
        partial(
            train,
            small(shapes, 24, parallel=parallel, activation_checkpointing=parallel == "fsdp", optim={"micro_rows": 1}),
            tmp_path / "out",
        ),
    )
    assert ended.codes == [0] * num, ended.said
    ours, theirs = records(tmp_path / "out"), records(alone)
    assert len(ours) == 24
    assert apart(ours, theirs) < 1e-5
    assert [(r["tokens"], r["samples"], r["padding"]) for r in ours] == [
        (r["tokens"], r["samples"], r["padding"]) for r in theirs
    ]
    assert max(abs(a["grad_norm"] - b["grad_norm"]) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_a_training_that_other_numbers_of_ranks_go_on_with_is_the_same_in_float64(shapes: str, tmp_path: Path) -> None:
    def settings(parallel: str = "ddp", micro: int = 1) -> TrainConfig:
        optim = {"micro_rows": micro, "clip": 0.5}  # gradients are longer than that at first
        changes = {"precision": "float64", "checkpoint_every": 50, "keep": {"last": 4}, "parallel": parallel, "optim": optim}
        return small(shapes, 200, **changes)

    train(settings(micro=4), tmp_path / "alone")
    shutil.copytree(tmp_path / "alone", tmp_path / "out")  # as if it had ended after 50 steps
    for later in (100, 150, 200):
        shutil.rmtree(tmp_path / f"out/step-{later:06d}")
    stop = {"FAILPOINT": "after-rename:1:kill"}  # the first rank dies when its first checkpoint is there
    for parallel, num in (("ddp", 2), ("fsdp", 2)):
        ended = ranks(num, tmp_path, partial(train, settings(parallel), tmp_path / "out"), stop)
        assert ended.codes == [-signal.SIGKILL] + [1] * (num - 1), ended.said
        assert "the other ranks cannot be reached" in ended.said[1]
    ended = ranks(4, tmp_path, partial(train, settings("ddp"), tmp_path / "out"))
    assert ended.codes == [0] * 4, ended.said
    ours, theirs = records(tmp_path / "out"), records(tmp_path / "alone")
    assert len(ours) == 200
    assert apart(ours, theirs) < 1e-12
    found, expected = latest(tmp_path / "out"), latest(tmp_path / "alone")
    assert found is not None
    assert expected is not None
    for part in ("model", "ema", "optim"):
        tensors = found.tensors(part)
        assert all(bool((tensors[name] - value).abs().max() < 1e-11) for name, value in expected.tensors(part).items())


def test_what_is_not_finite_stops_all_ranks(shapes: str, tmp_path: Path) -> None:
    settings = small(shapes, 4, parallel="fsdp", checkpoint_every=1, optim={"lr": 1e30, "warmup": 0, "micro_rows": 2})
    ended = ranks(2, tmp_path, partial(train, settings, tmp_path / "out"))
    assert ended.codes == [1, 1]
    assert ended.said[0] == ended.said[1]
    assert "step 2: not finite: loss `text`" in ended.said[0]
    found = latest(tmp_path / "out")
    assert found is not None
    assert found.step == 1


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks_with_its_reason(shapes: str, tmp_path: Path) -> None:
    ended = ranks(
        2,
        tmp_path,
        partial(train, small(shapes, 4, optim={"micro_rows": 2}), tmp_path / "out"),
        {"FAILPOINT": "before-rename:1:raise"},
    )
    assert ended.codes == [1, 1]
    assert "step-000004: the checkpoint cannot be written" in ended.said[0]
    assert "rank 0: " in ended.said[1]
    assert "step-000004: the checkpoint cannot be written" in ended.said[1]


@pytest.mark.parametrize(
    ("optim", "num", "message"),
    [
        ({"rows": 4, "micro_rows": 4}, 2, r"each of 2 ranks has 2 of `optim.rows` 4: no multiple of `optim.micro_rows` 4"
         r"[\s\S]*set `optim.micro_rows` to 1 or 2, or `optim.rows` to a multiple of 8"),
        ({"rows": 6, "micro_rows": 1}, 4, r"`optim.rows` 6 cannot be shared by 4 ranks"
         r"[\s\S]*start 1, 2, 3 or 6 ranks, or set `optim.rows` to a multiple of 4, such as 8"),
    ],
)  # fmt: skip
def test_numbers_of_ranks_that_rows_cannot_be_shared_by_are_refused(optim: dict[str, int], num: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_shares(small(".", 4, optim=optim), num)
    with pytest.raises(ConfigError, match="`parallel: none` is for one process, and there are 2"):
        check_shares(small(".", 4, parallel="none"), 2)


def test_a_process_alone_is_a_world_of_one() -> None:
    world = World()
    assert world.first
    assert world.sum({"a": 1.5}) == {"a": 1.5}
    assert world.in_turn(lambda: "made") == "made"
    assert world.gather(lambda: 3) == [3]


def test_torchrun_trains_by_the_command_line(shapes: str, alone: Path, tmp_path: Path) -> None:
    settings = small(shapes, 24, parallel="fsdp", optim={"micro_rows": 2})
    (tmp_path / "c.yaml").write_text(settings.model_dump_json(), encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [sys.executable, *launch, "-m", "mmdata.cli", "train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 24: ") == 1  # one rank speaks for all
    assert apart(records(tmp_path / "out"), records(alone)) < 1e-5


def test_ray_trains_on_its_workers(shapes: str, alone: Path, tmp_path: Path, ray_executor: RayExecutor) -> None:
    beats: list[int] = []

    arguments = (small(shapes, 24, optim={"micro_rows": 2}), tmp_path / "out")
    result: TrainResult = ray_executor.launch(train, arguments, str(tmp_path / "out"), 0, lambda: beats.append(1))
    assert result.checkpoint == tmp_path / "out/step-000024"
    assert beats
    assert apart(records(tmp_path / "out"), records(alone)) < 1e-5


def test_errors_of_a_worker_are_values_that_keep_their_kind(shapes: str, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nonce(str(alone))
    for name in environment(0, 1, "", 0):
        monkeypatch.setenv(name, "")
    work = Work(train, (small(shapes, 24, seed=1), alone), str(alone), look(str(alone)))
    outcome = serve(work, environment(0, 1, "127.0.0.1", 1))
    assert isinstance(outcome, ConfigError)
    assert "was trained with another config: `seed` 0, now 1" in outcome.message
    outcome = serve(Work(train, (), str(alone), look(str(alone))), environment(0, 1, "127.0.0.1", 1))
    assert isinstance(outcome, RunError)
    assert outcome.message.startswith("rank 0: TypeError: ")


def test_workers_without_ray_are_told_of_torchrun(shapes: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(small(shapes, 24).model_dump_json(), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--workers is for --ray\s+hint: give --ray, or start `torchrun --nproc-per-node 2"):
        command(tmp_path / "c.yaml", tmp_path / "out", None, 2)
