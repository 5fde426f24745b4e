"""The instruments of the download benchmark measure what they say."""

import io
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.fidelity import CEILING_DB, psnr
from benchmarks.measure import measure
from benchmarks.web import CLEAN, DIRTY, NUM_HOSTS, RESET, SLOW_BODY, SLOW_HEAD, address, serving

# Leaves a child behind that works on after its parent's end.
_ORPHAN = """
import os, time
if not os.fork():
    end = time.process_time() + 0.5
    while time.process_time() < end: pass
    os._exit(0)
time.sleep(0.3)  # memory is looked at now and then
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    table = pa.table({"offset": [0, 10], "size": [10, 5], "kind": ["jpeg", "png"]})
    pq.write_table(table, tmp_path / "set.parquet")
    (tmp_path / "set.bin").write_bytes(b"0123456789abcde")
    return tmp_path / "set"


def test_an_orphan_counts_too() -> None:
    cost, _ = measure([sys.executable, "-c", _ORPHAN], 30)
    assert cost.ended
    assert cost.cpu_s > 0.4
    assert cost.peak_mib > 1


def test_what_does_not_end_is_stopped() -> None:
    cost, _ = measure([sys.executable, "-c", "import time; time.sleep(600)"], 1)
    assert not cost.ended
    assert cost.wall_s < 30


def test_the_web_answers_and_counts(images: Path) -> None:
    with serving(images) as web:
        with urllib.request.urlopen(web.url(NUM_HOSTS + 1, 2, CLEAN), timeout=10) as answer:
            assert answer.read() == b"abcde"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{address(7)}:{web.port}/robots.txt", timeout=10)
        host = next(host for host in range(NUM_HOSTS) if DIRTY.kind(host) == RESET)
        with pytest.raises(ConnectionResetError):
            urllib.request.urlopen(f"http://{address(host, RESET)}:{web.port}/0.jpg", timeout=10)
        stats = web.stats()
    assert (stats["good"], stats["robots"], stats["reset"]) == (1, 1, 1)


def test_one_row_in_ten_is_dead_and_one_in_twenty_a_tarpit(images: Path) -> None:
    with serving(images) as web:
        urls = [web.url(row, 2, DIRTY) for row in range(5000)]
    kinds = [int(url.split(".")[1]) for url in urls]
    tarpits = sum(kind in (SLOW_HEAD, SLOW_BODY) for kind in kinds)
    dead = sum(kind != 1 for kind in kinds) - tarpits + sum("gone" in url for url in urls)
    assert tarpits == 250
    assert 0.095 < dead / len(urls) < 0.105


def test_the_same_picture_is_as_good_as_it_gets() -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "PNG")
    assert psnr(buffer.getvalue(), buffer.getvalue()) == CEILING_DB
    worse = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(worse, "JPEG", quality=20)
    assert 20 < psnr(worse.getvalue(), buffer.getvalue()) < 45
