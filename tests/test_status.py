"""`mmdata status` and the metrics: what others can find out about a run."""

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mmdata.cli.main import main
from mmdata.clock import ManualClock
from mmdata.engine.metrics import prometheus_text, serve_metrics
from mmdata.errors import ConfigError
from mmdata.report.status import read_status, status_text, watch
from tests.toyrun import EPOCH_S, Run

SAMPLE = re.compile(r'^(mmdata_\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (-?[0-9.e+-]+)$')


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_status_is_told_from_the_run_folder_alone(run: Run) -> None:
    run.store.create("generations/1.json", b"{}")
    run.first(0)
    run.progress.launched(run.segment(1))
    run.progress.failed(run.segment(2), "disk gone")
    run.facts()
    reader = ManualClock(wall_now=EPOCH_S + 3.2)
    status = read_status(str(run.folder), reader)
    assert (status["at_work"], status["heard_s"]) == (True, 3.2)
    lines = status_text(str(run.folder), reader).splitlines()
    assert lines == [
        "plan toy over catalog:pairs",
        "running",
        "3% of 30 tasks, 6 s, >16 s left; last heard of ~3 s ago",
        "1 tasks in flight, 1.0 MiB",
        "",
        "stage        rows   of  done  reused  rows/s  busy  in flight   left",
        "source         10  ~40   25%       0     1.8   20%          1  ~16 s",
        "download       10  ~40   25%       0     1.8   80%          1  ~16 s  <- bottleneck",
        "keep            8  ~32   25%       0     1.5    0%          1  ~16 s",
        "dedupe          0         0%       0            0%          0",
        "keep 2          0         0%       0            0%          0",
        "sink shards     0         0%       0            0%          0",
        "",
        "dropped: http_4xx 2",
        "errors:",
        "  1 x disk gone",
        "generation 1: not finished; the same command resumes it",
    ]


def test_a_lease_that_ended_says_that_nobody_is_at_work(run: Run) -> None:
    run.facts()
    run.store.create("lease/1", b"{}")
    assert read_status(str(run.folder), run.clock)["at_work"]
    run.store.create("lease/1.end", b"")
    assert not read_status(str(run.folder), run.clock)["at_work"]
    assert "ended without a word" in status_text(str(run.folder), run.clock)


def test_status_of_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        status_text(str(tmp_path))


def test_a_watch_ends_with_the_run(run: Run) -> None:
    run.facts()
    frames = watch(str(run.folder), run.clock)
    assert "running" in next(frames)
    run.progress.end("done")
    assert "\ndone\n" in next(frames)
    assert list(frames) == []


def test_a_watch_ends_when_there_is_no_sign_of_life(run: Run) -> None:
    run.facts()
    frames = list(watch(str(run.folder), ManualClock()))
    assert len(frames) == 31  # every 2 s for a minute
    assert frames[-1].endswith("no sign of life for 60 s; if it is gone, the same command resumes it")


def call(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmdata", "status", *args])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0), *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_the_command_prints_json_and_prometheus(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(run.folder)
    assert "no progress is written there yet" in call([folder, "--prometheus"], capsys, monkeypatch)[2]
    run.first(0, {"\x1b[31mred": 1})
    run.facts()
    run.progress.end("done")
    code, out, _ = call([folder, "--json"], capsys, monkeypatch)
    assert (code, json.loads(out)["progress"]["state"]) == (0, "done")
    assert parsed(call([folder, "--prometheus"], capsys, monkeypatch)[1])['mmdata_run_state{run="toy",state="done"}'] == 1
    for flags in ([], ["--watch"]):
        code, out, _ = call([folder, *flags], capsys, monkeypatch)
        assert (code, "\x1b" in out) == (0, False)
        assert "download" in out
    code, _, err = call([folder, "--json", "--watch"], capsys, monkeypatch)
    assert (code, "exclude each other" in err) == (2, True)


def parsed(text: str) -> dict[str, float]:
    """Read the exposition format, line by line, as strictly as Prometheus does."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    described: dict[str, str] = {}
    family = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in described
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert (name, kind in ("counter", "gauge")) == (family, True)
            assert name.endswith("_total") == (kind == "counter")
            described[name] = kind
        else:
            match = SAMPLE.match(line)
            assert match is not None, line
            assert match[1] == family
            series = f"{match[1]}{{{match[2]}}}"
            assert series not in found
            found[series] = float(match[3])
    return found


def test_prometheus_gets_every_stage_and_outcome(run: Run) -> None:
    run.first(0, {'od"d\\one\n': 2})
    found = parsed(prometheus_text(run.facts()))
    assert found['mmdata_stage_rows_total{run="toy",stage="download"}'] == 10
    assert found['mmdata_stage_busy_seconds_total{run="toy",stage="download"}'] == 4
    assert found['mmdata_stage_bottleneck{run="toy",stage="download"}'] == 1
    assert found['mmdata_rows_dropped_total{run="toy",outcome="od\\"d\\\\one\\n"}'] == 2
    assert found['mmdata_last_update_timestamp_seconds{run="toy"}'] == EPOCH_S
    assert 'mmdata_stage_rows_expected{run="toy",stage="dedupe"}' not in found


def test_the_metrics_are_served_while_the_run_runs(run: Run) -> None:
    with serve_metrics(run.progress.facts, "127.0.0.1:0") as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", server.url)
        for tasks in (0, 1):
            with urllib.request.urlopen(server.url, timeout=5) as answer:
                assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert parsed(answer.read().decode())['mmdata_tasks_done_total{run="toy"}'] == tasks
            run.first(0)
            run.facts()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url.replace("/metrics", "/etc/passwd"), timeout=5)
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(server.url, data=b"x", timeout=5)
        url = server.url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_metrics_are_this_machines_alone_unless_a_host_is_given(run: Run) -> None:
    with serve_metrics(run.progress.facts, ":0") as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match="cannot listen on 127"):
            serve_metrics(run.progress.facts, f"127.0.0.1:{server.server_address[1]}").__enter__()


@pytest.mark.parametrize("address", ["9100x", "localhost", "127.0.0.1:70000", "127.0.0.1:-1", ""])
def test_an_address_that_is_none_is_refused(run: Run, address: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        serve_metrics(run.progress.facts, address).__enter__()
