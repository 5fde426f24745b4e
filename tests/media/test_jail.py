"""One bad image costs only itself, and a decoder that was taken over can do nothing."""

import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmdata.errors import RecordError
from mmdata.media import Jail, Resize, Transcoded, transcode
from mmdata.media.image import FORMATS
from tests.conftest import encode
from tests.media.pictures import photo

RESIZE = Resize(image_size=48)
LINUX = sys.platform.startswith("linux")
FILTERED = LINUX and platform.machine() in ("x86_64", "aarch64")


class BadJail(Jail):
    """A jail whose decoder does what a body tells it to."""

    child = "tests.media.bad_child"


def told(text: str) -> bytes:
    return b"MAGIC " + text.encode()


def outcomes(results: list[Transcoded | RecordError]) -> list[str]:
    return [made.outcome if isinstance(made, RecordError) else "ok" for made in results]


def batch_with(text: str, place: int = 20, count: int = 64) -> list[bytes]:
    """A batch of good images, one of which is replaced by an order."""
    bodies = [encode(photo(80, 60, seed), "JPEG") for seed in range(count)]
    bodies[place] = told(text)
    return bodies


def test_a_batch_gives_what_single_calls_give_whatever_its_size() -> None:
    bodies = [encode(photo(80 + 3 * seed, 60, seed), kind) for seed in range(30) for kind in FORMATS]
    bodies[7] = b"junk"
    with Jail() as jail:
        together = jail.transcode_all(bodies, RESIZE)
        for number in (0, 1, 2, 149):
            assert together[number] == transcode(bodies[number], RESIZE)
        assert outcomes(together) == ["not_media" if number == 7 else "ok" for number in range(150)]
        assert jail.transcode_all([], RESIZE) == []


@pytest.mark.fault("D32")
def test_the_same_list_gives_the_same_bytes_in_any_order_and_in_two_jails() -> None:
    bodies = [encode(photo(300, 200, seed), "JPEG") for seed in range(24)]
    with Jail() as one, Jail() as two:
        first = one.transcode_all(bodies, RESIZE)
        again = two.transcode_all(bodies[::-1], RESIZE)[::-1]
        halves = one.transcode_all(bodies[:5], RESIZE) + two.transcode_all(bodies[5:], RESIZE)
    assert first == again == halves


@pytest.mark.fault("D26", "P08")
@pytest.mark.parametrize("order", ["segv", "exit 0", "exit 7"])
def test_a_crash_costs_one_image_of_64(order: str) -> None:
    with BadJail() as jail:
        found = outcomes(jail.transcode_all(batch_with(order), RESIZE))
    assert found == ["decoder_crashed" if number == 20 else "ok" for number in range(64)]


@pytest.mark.fault("D27")
def test_a_decoder_that_loops_costs_one_image_and_is_gone_in_time() -> None:
    with BadJail(deadline_s=1.0) as jail:
        jail.transcode(encode(photo(80, 60)), RESIZE)
        child, start = jail._child, time.monotonic()
        with pytest.raises(RecordError, match="not decoded within 1 s") as caught:
            jail.transcode(told("loop"), RESIZE)
        assert caught.value.outcome == "decoder_timeout"
        assert time.monotonic() - start < 6
        assert child is not None
        assert child.poll() is not None
        found = outcomes(jail.transcode_all(batch_with("loop", 3, 6), RESIZE))
    assert found == ["ok"] * 3 + ["decoder_timeout"] + ["ok"] * 2


@pytest.mark.fault("D27")
def test_a_decoder_that_takes_its_timer_off_is_ended_by_its_parent() -> None:
    with BadJail(deadline_s=1.0) as jail:
        start = time.monotonic()
        found = outcomes(jail.transcode_all(batch_with("stuck", 1, 3), RESIZE))
    assert found == ["ok", "decoder_timeout", "ok"]
    assert time.monotonic() - start < 30


@pytest.mark.fault("D28", "P07")
def test_a_decoder_that_allocates_4_gb_costs_one_image() -> None:
    with BadJail(memory_mib=256) as jail:
        found = outcomes(jail.transcode_all(batch_with("allocate 4096"), RESIZE))
    assert found == ["decoder_oom" if number == 20 else "ok" for number in range(64)]


@pytest.mark.fault("D28")
def test_a_decoder_that_the_kernel_kills_for_memory_is_named_so() -> None:
    with BadJail() as jail:
        found = outcomes(jail.transcode_all(batch_with("kill", 1, 3), RESIZE))
    # With the filter a process cannot even kill itself.
    assert found == ["ok", "decode_error" if FILTERED else "decoder_oom", "ok"]


@pytest.mark.fault("D29")
@pytest.mark.skipif(not LINUX, reason="the kernel part of the jail is Linux's")
def test_files_sockets_and_processes_are_denied(tmp_path: Path) -> None:
    secret, made = tmp_path / "secret", tmp_path / "made"
    secret.write_text("canary")
    with socket.create_server(("127.0.0.1", 0)) as canary, BadJail() as jail:
        canary.settimeout(0.2)
        orders = [
            f"open {secret}", f"write {made}", f"connect 127.0.0.1:{canary.getsockname()[1]}", "fork", f"execute {made}",
            "parent", "thread", "shrink",
        ]  # fmt: skip
        results = jail.transcode_all([told(order) for order in orders], RESIZE)
        with pytest.raises(TimeoutError):
            canary.accept()
    assert not any(isinstance(result, Transcoded) for result in results), results
    assert set(outcomes(results)) <= {"decode_error", "decoder_crashed"}
    assert not made.exists()


@pytest.mark.fault("D29")
@pytest.mark.skipif(not LINUX, reason="the kernel part of the jail is Linux's")
def test_the_locks_in_force_are_named(record_property: Callable[[str, object], None]) -> None:
    with Jail() as jail:
        jail.transcode(encode(photo(80, 60)), RESIZE)
        assert jail._child is not None
        status = Path(f"/proc/{jail._child.pid}/status").read_text(encoding="ascii")
    record_property("figure", f"in force: {', '.join(jail.held)}")
    assert {"limits", "no_new_privs"} <= set(jail.held)
    assert ("seccomp" in jail.held) == FILTERED == ("Seccomp:\t2" in status)
    assert "NoNewPrivs:\t1" in status


@pytest.mark.fault("D31")
@pytest.mark.parametrize("what", ["size", "head", "json", "deep", "list", "outcome", "keys", "sides"])
def test_a_lie_costs_the_image_it_was_told_about(what: str) -> None:
    with BadJail(deadline_s=5.0) as jail:
        found = outcomes(jail.transcode_all(batch_with(f"lie {what}", 2, 5), RESIZE))
    assert found == ["ok", "ok", "decode_error", "ok", "ok"]


@pytest.mark.fault("D31")
def test_a_decoder_that_writes_a_gigabyte_is_not_read() -> None:
    with BadJail(deadline_s=2.0) as jail:
        found = outcomes(jail.transcode_all(batch_with("shout", 1, 3), RESIZE))
    assert found[0] == found[2] == "ok"
    assert found[1] in ("decode_error", "decoder_timeout", "decoder_crashed")


@pytest.mark.fault("K04", "P13")
@pytest.mark.skipif(not LINUX, reason="counts what /proc shows")
def test_jails_give_back_descriptors_children_and_memory() -> None:
    def held() -> tuple[int, int]:
        shared = sum("mmdata-jail" in line for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines())
        return len(os.listdir("/proc/self/fd")), shared  # noqa: PTH208

    before = held()
    for _ in range(3):
        with BadJail() as jail:
            assert outcomes(jail.transcode_all(batch_with("segv", 1, 3), RESIZE)) == ["ok", "decoder_crashed", "ok"]
    assert held() == before


def test_large_results_give_their_pages_back() -> None:
    picture = np.full((5000, 6000, 3), 128, np.uint8)
    with Jail() as jail:
        assert jail.decode(encode(picture, "JPEG")).shape == picture.shape
        assert jail._arena is not None
        pages = os.fstat(jail._arena.fd).st_blocks * 512
    if LINUX:
        assert pages <= 24 << 20


def test_a_body_that_is_larger_than_any_may_be_is_refused() -> None:
    with Jail() as jail:
        results = jail.transcode_all([bytes(129 << 20), encode(photo(80, 60))], RESIZE)
    assert outcomes(results) == ["too_large", "ok"]
