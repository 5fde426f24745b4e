"""TensorBoard shows what the log says, also after a resume; without the extra there is an error that names it."""

import sys
from pathlib import Path

import pytest

from mmdata.errors import ConfigError
from mmdata.trainer.tensorboard import TensorBoard


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_what_is_logged_is_shown(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        for step in (1, 2, 3):
            board.write({"step": step, "loss/text": step / 4, "lr": 0.5, "mfu": float("nan")})
    assert read(tmp_path) == {"loss/text": [(1, 0.25), (2, 0.5), (3, 0.75)], "lr": [(1, 0.5), (2, 0.5), (3, 0.5)]}


def test_a_resumed_run_hides_what_it_does_again(tmp_path: Path) -> None:
    for first, value in ((0, 1.0), (2, 8.0)):
        with TensorBoard(tmp_path, first) as board:
            for step in range(first + 1, 5):
                board.write({"step": step, "lr": value})
    assert read(tmp_path) == {"lr": [(1, 1.0), (2, 1.0), (3, 8.0), (4, 8.0)]}


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.utils.tensorboard", "torch.utils.tensorboard.writer"):
        monkeypatch.setitem(sys.modules, name, None)  # how Python itself marks what cannot be imported
    with pytest.raises(ConfigError, match=r"TensorBoard is not installed\n.*mmdata\[train\]"):
        TensorBoard(tmp_path)
