"""What a run says of itself: rows, rates, what is to come, what fails; on a terminal, in a log and in `status.json`."""

from pathlib import Path

import pytest

from mmdata.engine.facts import Facts, StageFacts
from mmdata.engine.progress import summary
from tests.toyrun import EPOCH_S, Run, Terminal, first_record, second_record


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_stage_says_rows_rates_and_what_is_to_come(run: Run) -> None:
    run.first(0)
    run.first(1)
    download = run.stage("download")
    assert (download["rows"], download["computed"], download["reused"]) == (20, 20, 0)
    assert (download["expected"], download["share"]) == (40, 0.5)  # 20 rows in 2 of 4 partitions
    assert (download["busy_s"], download["rows_per_busy_s"]) == (8.0, 2.5)
    assert download["busy_left_s"] == 8.0  # 20 rows at 2.5 a busy second
    assert download["rows_per_s"] == pytest.approx(20 / 10.5, abs=1e-3)  # 2 x 5 s, and half a second to look
    assert download["busy_share"] == 0.8


def test_the_bottleneck_is_the_stage_with_most_work_left(run: Run) -> None:
    assert (run.facts()["bottleneck"], run.facts()["seconds_left"]) == (None, None)
    run.first(0)
    facts = run.facts()
    assert facts["bottleneck"] == "download"
    assert facts["seconds_left"] == pytest.approx(6.5 * 15 / 5, abs=0.1)  # 5 busy seconds took 6.5, and 15 are to go
    assert facts["seconds_left_at_least"]  # dedupe and the sink have not been measured


def test_equal_stage_names_are_numbered(run: Run) -> None:
    assert [stage["stage"] for stage in run.facts()["stages"]] == [
        "source", "download", "keep", "dedupe", "keep 2", "sink shards",
    ]  # fmt: skip


def test_what_was_there_before_is_reused_and_has_no_rate(run: Run) -> None:
    run.progress.done(run.segment(0), first_record(), None)
    run.work(run.segment(1), first_record(computed=4), {0: 2.0})
    facts, download = run.facts(), run.stage("download")
    assert (facts["tasks"]["done"], facts["tasks"]["reused"]) == (2, 1)
    assert (download["rows"], download["computed"], download["reused"]) == (20, 4, 16)
    assert download["rows_per_busy_s"] == 2.0


def test_the_newest_record_of_a_partition_replaces_the_former(run: Run) -> None:
    run.first(0, {"http_4xx": 2, "too_small": 1})
    run.first(1, {"http_4xx": 1})
    for unit in range(2):
        run.progress.done(run.scatter(unit), {}, None)
    run.work(run.segment(0, 1), second_record({"http_4xx": 2, "too_small": 1, "duplicate": 3}), {3: 1.0})
    assert run.facts()["outcomes"] == {"http_4xx": 3, "duplicate": 3, "too_small": 1}


def test_tasks_in_flight_are_counted_for_each_of_their_stages(run: Run) -> None:
    run.progress.launched(run.segment(0))
    run.progress.launched(run.segment(1))
    facts = run.facts()
    assert {stage["stage"]: stage["in_flight"] for stage in facts["stages"] if stage["in_flight"]} == {
        "source": 2, "download": 2, "keep": 2,
    }  # fmt: skip
    assert (facts["tasks"]["in_flight"], facts["bytes_in_flight"]) == (2, 2 << 20)
    run.progress.done(run.segment(0), first_record(), None)
    run.progress.launched(run.segment(0, 1))
    assert {stage["stage"]: stage["in_flight"] for stage in run.facts()["stages"]} == {
        "source": 1, "download": 1, "keep": 1, "dedupe": 1, "keep 2": 1, "sink shards": 0,
    }  # fmt: skip


def test_passes_are_counted_in_tasks(run: Run) -> None:
    for unit in range(4):
        run.first(unit)
    run.work(run.scatter(0), {}, {2: 1.0})
    dedupe = run.stage("dedupe")
    assert (dedupe["rows"], dedupe["tasks"], dedupe["share"], dedupe["expected"]) == (8, 1, None, None)
    for unit in range(4):
        run.work(run.segment(unit, 1), second_record({"duplicate": 3}), {3: 1.0})
    assert run.stage("dedupe")["share"] == 1.0
    run.progress.total = 13  # the sink's three tasks are left after 9, and one is done now
    run.work(run.scatter(0, step=4), {}, {4: 6.0})
    sink = run.stage("sink shards")
    assert (sink["share"], sink["busy_left_s"]) == (0.25, 18.0)
    assert run.facts()["bottleneck"] == "sink shards"


def test_a_partition_that_was_given_up_is_not_waited_for(run: Run) -> None:
    for unit in range(3):
        run.first(unit)
    run.progress.launched(run.segment(3))
    run.progress.failed(run.segment(3), "disk gone", again=False)
    facts, download = run.facts(), run.stage("download")
    assert (facts["tasks"]["failed"], facts["tasks"]["given_up"], facts["tasks"]["in_flight"]) == (1, 1, 0)
    assert (download["share"], download["expected"], download["busy_left_s"]) == (1.0, 30, 0.0)
    assert facts["errors"] == [{"message": "disk gone", "count": 1, "given_up": 1}]


def test_drops_of_a_partition_that_was_given_up_do_not_count(run: Run) -> None:
    run.first(0, {"http_4xx": 3})
    run.first(1, {"http_4xx": 1})
    run.progress.failed(run.segment(0, 1), "disk gone", again=False)
    assert run.facts()["outcomes"] == {"http_4xx": 1}


def test_a_later_segment_may_be_found_finished_first(run: Run) -> None:
    run.progress.launched(run.segment(0))
    run.progress.done(run.segment(0, 1), second_record({"http_4xx": 2, "duplicate": 3}), None)
    run.progress.done(run.segment(0), first_record(), None)
    assert run.facts()["outcomes"] == {"duplicate": 3, "http_4xx": 2}


def test_5000_equal_errors_are_one_line(run: Run) -> None:
    for unit in range(5000):
        ident = f"{unit * 2_654_435_761 % (1 << 48):012x}"
        message = f"download, partition {unit}: OSError: 10.0.{unit % 256}.{unit % 7} did not answer for tasks/{ident}.json"
        run.progress.failed(run.segment(unit), message, again=unit % 2 == 0)
    assert summary(run.facts()).endswith("errors: 5,000 x download, partition #: OSError: # did not answer for...")
    run.progress.end("done with failures")
    lines = [line for line in run.stream.getvalue().splitlines() if "did not answer" in line]
    assert lines == [
        "  5,000 x download, partition #: OSError: # did not answer for tasks/#.json (2,500 given up)",
    ]
    assert len(run.saved()["errors"]) == 1


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("no file /a/b1", "no file /a/b2", "no file /a/#"),
        ("key deadbeefcafe", "key 0123456789ab", "key #"),
        ("id 9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", "id aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "id #"),
        ("took 0x1f after 1.25 s", "took 0x2a after 3 s", "took # after # s"),
        ("two\n  lines 1", "two lines 2", "two lines #"),
    ],
)
def test_what_varies_in_errors_is_left_out(run: Run, one: str, other: str, shown: str) -> None:
    run.progress.failed(run.segment(0), one)
    run.progress.failed(run.segment(1), other)
    assert run.facts()["errors"] == [{"message": shown, "count": 2, "given_up": 0}]


def test_numbers_stay_where_they_are_the_same_in_all_errors(run: Run) -> None:
    for _ in range(2):
        run.progress.failed(run.segment(0), "HTTP 503 from store")
    run.progress.failed(run.segment(0), "permission denied")
    assert [error["message"] for error in run.facts()["errors"]] == ["HTTP 503 from store", "permission denied"]


def test_a_million_different_errors_do_not_fill_the_memory(run: Run) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    for first in letters:
        for second in letters:
            for third in "xyz":
                run.progress.failed(run.segment(0), f"{first} {second} {third}")
    assert run.facts()["errors"][0] == {"message": "errors of other kinds", "count": 26 * 26 * 3 - 1000, "given_up": 0}


def test_without_a_terminal_a_line_comes_every_ten_seconds(run: Run) -> None:
    run.progress.launched(run.segment(0))
    for _ in range(50):  # 25 s
        run.clock.sleep(0.5)
        run.progress.show()
    assert run.stream.getvalue().splitlines() == [
        "toy:   0% of 30 tasks, 10 s · 1 in flight (1.0 MiB) · slowest source, 0 rows/s",
        "toy:   0% of 30 tasks, 20 s · 1 in flight (1.0 MiB) · slowest source, 0 rows/s",
    ]


def test_on_a_terminal_one_line_is_redrawn_and_never_wraps(tmp_path: Path) -> None:
    run = Run(tmp_path, stream=Terminal())
    run.first(0, {"\x1b[2Jbad": 5})
    run.progress.failed(run.segment(1), "x" * 300)
    run.facts()
    run.progress.end("done with failures")
    text = run.stream.getvalue()
    live, final = text.split("\r\033[K")[1:]
    assert live.startswith("toy:   3% of 30 tasks, 6 s, >16 s left · bottleneck download, 2 rows/s · errors")
    assert len(live) == 79
    assert "\n" not in live
    assert "\x1b" not in live + final
    assert final.startswith("toy:   3% of 30 tasks, 6 s · slowest download")


def test_status_json_is_written_every_two_seconds_and_at_the_end(run: Run) -> None:
    seen = []
    for _ in range(12):  # 0.5 s each
        run.facts()
        seen.append(run.saved()["seconds"])
    assert seen == [0.5] * 4 + [2.5] * 4 + [4.5] * 4
    run.progress.end("stopped", "the disk is full")
    facts = run.saved()
    assert (facts["state"], facts["why"], facts["seconds"]) == ("stopped", "the disk is full", 6.0)
    assert (facts["updated_wall"], facts["format"]) == (EPOCH_S, 1)
    assert set(facts) == set(Facts.__annotations__)
    assert all(set(stage) == set(StageFacts.__annotations__) for stage in facts["stages"])
