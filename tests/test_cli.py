"""The command line: light to start, errors for people, exit codes that tell the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdata.cli.main import app, main
from mmdata.demo import DemoServer
from tests.conftest import write_yaml
from tests.fire.runs import write_site
from tests.flow.small import write_small

ROOT = Path(__file__).parent.parent


def call(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmdata", *args])
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_starting_is_light() -> None:
    code = (
        "import sys; from mmdata.cli.main import app; from typer.testing import CliRunner; "
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0, r.output; "
        "print(sorted({'ray', 'torch', 'polars', 'open_clip', 'httptools'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_has_help() -> None:
    from typer.testing import CliRunner

    for name in (
        "run",
        "plan",
        "status",
        "explain",
        "duplicates",
        "sweep",
        "verify",
        "inspect",
        "export",
        "img2dataset",
        "gc",
        "tokenizer",
        "train",
        "train-report",
        "sample",
        "demo",
        "schema",
        "index",
        "reshard",
    ):
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0, name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "nowhere.yaml", "--run-dir", "r"], "nowhere.yaml: no such file"),
        (["run", "plan.yaml", "--run-dir", "r", "--executor", "rey"], "no executor is called `rey`"),
        (["run", "plan.yaml", "--run-dir", "r", "--allow", "here"], "not an allowance"),
        (["plan", "typo.yaml"], "typo.yaml:2: a plan has no key `sourse`"),
        (["status", "empty"], "empty: not a run folder"),
        (["explain", "empty", "ab"], "no finished generation"),
        (["train", "typo.yaml", "--out", "o"], "typo.yaml"),
        (["train-report", "empty"], "empty: no training run has logged here"),
        (["sample", "empty"], "nothing to sample from"),
        (["sample", "empty", "--caption", "x"], "empty: not a checkpoint"),
        (["schema", "plans"], "no schema is called `plans`"),
    ],
)
def test_mistakes_exit_with_2_and_a_word(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path)
    write_yaml(tmp_path, "name: x\nsourse: y\n", "typo.yaml")
    monkeypatch.chdir(tmp_path)
    code, _, err = call(args, capsys, monkeypatch)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "r").exists()


def test_plan_prints_what_runs_together(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = call(["plan", "pipelines/demo.yaml"], capsys, monkeypatch)
    assert code == 0
    assert "segment 3 (a worker that keeps its model)" in out
    assert "payload, image  ->  width, height" in out


def test_dry_run_prints_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = call(["run", "plan.yaml", "--run-dir", "r", "--dry-run"], capsys, monkeypatch)
    assert code == 0
    assert "download         computed" in err
    assert not (tmp_path / "r").exists()


def test_run_prints_the_funnel(
    tmp_path: Path, server: DemoServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    args = ["run", "plan.yaml", "--run-dir", "r", "--executor", "serial", "--until", "download", "--allow", server.allow[0]]
    code, out, err = call(args, capsys, monkeypatch)
    assert code == 0, err
    assert "http_4xx" in out
    assert "rows/s" in err
    status = json.loads((tmp_path / "r/status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["share"]) == ("done", 1.0)


@pytest.mark.parametrize("what", ["plan", "train", "catalog"])
def test_schema_is_json_schema(what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call(["schema", what], capsys, monkeypatch)
    assert code == 0
    assert json.loads(out)["type"] == "object"


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a small tmpfs needs root on Linux")
def test_a_full_disk_is_said_and_is_not_half_done(tmp_path: Path, server: DemoServer) -> None:
    site = write_site(tmp_path, server)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], check=True)
    try:
        full = site.run(executor="serial", run_dir="disk/run")
        assert full.returncode == 1
        assert "the disk is full" in full.stderr
        assert "run the same command again" in full.stderr
        assert not (disk / "run/manifest").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        freed = site.run(executor="serial", run_dir="disk/run")
        assert freed.returncode == 0, freed.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)
