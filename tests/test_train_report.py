"""The report of a training run: what the log says, of a run that still writes, of one with half of the keys, of a long one."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdata.cli.main import main
from mmdata.demo.shapes import templates
from mmdata.errors import ConfigError
from mmdata.report.axes import Axis, steps_axis, values_axis
from mmdata.report.training import POINTS, Curve, read_training
from mmdata.report.training_page import write_training
from mmdata.report.training_text import training_text
from tests.test_inspect import safe_page

CONFIG = {
    "name": "shapes", "corpus": "runs/shapes/corpus", "text": {"objective": "ar"}, "image": {"objective": "flow", "size": 12},
    "params": {"share": "moe"}, "model": {"layers": 4, "width": 128}, "optim": {"steps": 50},
}  # fmt: skip


def record(step: int) -> dict[str, float]:
    found = {"step": step, "tokens": 100 * step, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1e4, "mfu": 0.4, "ema_gap": 0.1}
    found |= {"loss/text": 5 * math.exp(-step), "loss/text/web": 2.0, "loss/latents": 0.5, "loss/latents/t0": 0.25}
    found |= {f"load/image/{expert}": 0.25 for expert in range(4)}
    if step % 10 == 0:
        found |= {"val/text": 0.75, "val/exact": 0.5, "val/exact/low": 0.25, "val/exact/high": 0.75, "val/exact/num": 8}
        found |= {"val/cider": 3.5}
    return found


def write_run(home: Path, num: int = 40, tail: str = "") -> Path:
    lines = [json.dumps(record(step)) for step in range(1, num + 1)]
    (home / "metrics.jsonl").write_text("\n".join(lines) + "\n" + tail, encoding="utf-8")
    return home


def add_samples(home: Path, steps: tuple[int, ...]) -> None:
    images, captions = templates(16)
    for step in steps:
        folder = home / f"samples/step-{step:06d}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(images[number]).save(folder / f"{number}.png")
        (folder / "captions.json").write_text(json.dumps({"0.png": captions[0], "1.png": "<b>bold</b> \u202eturned"}))


def call(args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["mmdata", "train-report", *args])
    with pytest.raises(SystemExit, match="0"):
        main()
    return capsys.readouterr().out


def test_a_whole_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "status.json").write_text(json.dumps({"of": 50, "seconds_left": 12.5, "parameters": 720_000}))
    add_samples(tmp_path, (10, 20, 30, 40, 50, 60))
    found = read_training(tmp_path)
    write_training(tmp_path / "page.html", found)
    page = safe_page(tmp_path / "page.html", 4 * 3)
    for text in (
        "text ar, image flow, weights moe", "4 layers, 128 width, images of 12 px, corpus runs/shapes/corpus",
        "720,000 parameters", "step 40 of 50, 4,000 tokens, about 12 s left when it last said", "0.25 to 0.75",
        "held out text 0.75", "text by source", "latents by time or mask ratio", "image: share of 4 experts", "tokens a second",
        "norm of the gradient", "ema_gap", "Generated at step 60", "Generated at step 10", "square left-top dark",
        "<b>bold</b> turned",
    ):  # fmt: skip
        assert text in page.text, text
    assert "Generated at step 30" in page.text
    assert "Generated at step 20" not in page.text


def test_a_run_that_still_writes(tmp_path: Path) -> None:
    whole = training_text(read_training(write_run(tmp_path, 5)))
    (tmp_path / "config.json").write_text('{"name": "half')
    (tmp_path / "samples/step-000005").mkdir(parents=True)
    (tmp_path / "samples/step-000005/0.png").write_bytes(b"\x89PNG half")
    found = read_training(write_run(tmp_path, 5, '{"step": 6, "loss/te'))
    assert training_text(found) == whole
    assert found.unread == 0
    write_training(tmp_path / "page.html", found)
    assert "not decoded" in safe_page(tmp_path / "page.html", 0).text


def test_lines_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    found = read_training(
        write_run(tmp_path, 3, '[1]\n{"loss/text": 1}\nnull\n{"step": 4, "loss/text": NaN, "lr": true, "x": "y"}\n')
    )
    assert (found.lines, found.unread) == (4, 3)
    assert found.curves["loss/text"].last[0] == 3
    assert "caution: 3 lines of the log cannot be read and are not shown" in training_text(found)


def test_one_key_is_enough(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/text": 0.0}\n')
    write_training(tmp_path / "page.html", read_training(tmp_path))
    text = safe_page(tmp_path / "page.html", 0).text
    assert "Losses" in text
    assert "Evaluation" not in text


def test_an_empty_log_is_a_run_at_step_0(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    found = read_training(tmp_path)
    write_training(tmp_path / "page.html", found)
    assert "step 0" in training_text(found)


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training run has logged here"):
        read_training(tmp_path)


def test_a_long_run_is_averaged_and_loses_nothing(tmp_path: Path) -> None:
    curve, values = Curve(), np.random.default_rng(0).random(10_000)
    for step, value in enumerate(values):
        curve.add(step, value)
    points = curve.points
    assert POINTS <= len(points) <= 2 * POINTS
    assert curve.width == 32
    assert [value for _, value in points[:-1]] == pytest.approx(values[: 32 * (len(points) - 1)].reshape(-1, 32).mean(1))
    assert curve.last == (9999, values[-1])


def test_a_resumed_run_counts_from_where_it_went_back() -> None:
    curve = Curve()
    for step, value in [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0), (3, 2.0), (4, 2.0)]:
        curve.add(step, value)
    assert curve.points == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_axes_are_round_and_hold_what_they_show() -> None:
    for values in ([0.0, 0.93], [5.2, 5.4], [-3.0, 8.0], [2e-6, 7.0], [4.0, 4.0], [0.0, 0.0], [1e30, 1e32], [0.0123, 0.0124]):
        axis = values_axis(values)
        assert axis.low <= min(values) + 1e-12
        assert axis.high >= max(values) - 1e-12
        assert 0 <= axis.place(min(values)) <= axis.place(max(values)) <= 1
        assert 1 <= len(axis.ticks()) <= 8
        assert all(0 <= place <= 1 for place, _ in axis.ticks())
    assert values_axis([0.0, 0.93]) == Axis(0.0, 1.0)
    assert [word for _, word in values_axis([2e-6, 7.0]).ticks()][:2] == ["1e-05", "0.0001"]
    assert steps_axis([]) == Axis(0.0, 1.0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    text = call([str(tmp_path), "--html", str(tmp_path / "page.html")], monkeypatch, capsys)
    assert "exact       0.5   0.25 to 0.75   8      0.5    40" in text
    safe_page(tmp_path / "page.html", 0)
    facts = json.loads(call([str(tmp_path), "--json"], monkeypatch, capsys))
    assert facts["last"]["val/exact"] == 0.5
    assert facts["steps"]["lr"] == 40
