"""Images are read, decoded and prepared ahead of the stage that scores them, in threads, and within bounds."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.engine import pictures
from mmdata.engine.pictures import Picture, Pictures
from mmdata.errors import RecordError
from mmdata.media import Jails
from mmdata.models import HashTowers, ScorerSpec
from mmdata.stages.clip_score import ClipScore
from mmdata.storage import digest_file, open_store
from tests.conftest import encode
from tests.scores.small import plan_of, run, write_images


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def refs_of(folder: Path, num: int) -> list[dict[str, Any]]:
    """Return references to `num` pictures in a folder, each of 3,072 bytes of pixels."""
    found = []
    for number in range(num):
        path = folder / f"{number}.png"
        path.write_bytes(encode(np.full((32, 32, 3), number, np.uint8)))
        found.append({"set": str(folder), "tar": path.name, "offset": 0, "size": path.stat().st_size,
                      "sha256": digest_file(path), "trusted": True})  # fmt: skip
    return found


def test_images_are_made_in_other_threads_before_anybody_asks(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    made_by: list[str] = []
    made = threading.Event()

    def prepare(image: np.ndarray) -> np.ndarray:
        made_by.append(threading.current_thread().name)
        made.set()
        return image[:1]

    refs = refs_of(tmp_path, 2)
    ahead = Pictures(open_store(str(tmp_path)), Jails(), threads, True, {7: prepare}, bare=True)
    ahead.begin([0], refs[:1])
    assert made.wait(10)
    first, second = ahead.get([0, 1], refs)
    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert first.image is None  # nobody needs more than what was prepared
    assert (first.prepared[7] == 0).all()
    assert (second.prepared[7] == 1).all()
    assert made_by[0] != threading.current_thread().name == made_by[1]


def test_what_is_ahead_is_bounded_and_the_rest_is_made_when_asked(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two pictures of 3,072 bytes: two threads may each begin one more before the first two count."""
    monkeypatch.setattr(pictures, "MAX_BYTES", 2 * 3072 - 1)
    refs = refs_of(tmp_path, 12)
    ahead = Pictures(open_store(str(tmp_path)), Jails(), threads, True)
    ahead.begin(range(12), refs)
    threads.shutdown(wait=True)
    assert 2 * 3072 <= ahead._bytes <= 3 * 3072
    found = ahead.get(range(12), refs)
    assert [int(item.image[0, 0, 0]) for item in found if isinstance(item, Picture) and item.image is not None] == list(range(12))
    assert ahead._bytes == 0
    ahead.forget(range(12))


def test_what_was_not_begun_is_not_made_when_an_attempt_breaks_off(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    made: list[int] = []

    def prepare(image: np.ndarray) -> np.ndarray:
        begun.set()
        assert go_on.wait(10)
        made.append(int(image[0, 0, 0]))
        return image

    with ThreadPoolExecutor(1) as one:
        ahead = Pictures(open_store(str(tmp_path)), Jails(), one, True, {7: prepare})
        ahead.begin(range(6), refs_of(tmp_path, 6))
        assert begun.wait(10)
        ahead.close()
        go_on.set()
    assert made == [0]
    assert ahead._bytes == 0


def test_a_picture_that_cannot_be_decoded_is_its_rows_error(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    refs = refs_of(tmp_path, 1)
    (tmp_path / "0.png").write_bytes(b"no picture at all")
    refs[0] |= {"size": 17, "sha256": digest_file(tmp_path / "0.png")}
    ahead = Pictures(open_store(str(tmp_path)), Jails(), threads, True)
    ahead.begin([0], refs)
    (found,) = ahead.get([0], refs)
    assert isinstance(found, RecordError)
    assert found.outcome == "not_media"


def test_a_run_prepares_ahead_of_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    own = HashTowers.prepare

    def prepare(towers: HashTowers, image: np.ndarray) -> np.ndarray:
        names.add(threading.current_thread().name)
        return own(towers, image)

    monkeypatch.setattr(HashTowers, "prepare", prepare)
    run(plan_of(write_images(tmp_path / "images", 5), ClipScore(scorer=ScorerSpec(fake=True)), sink=False), tmp_path / "run")
    assert names == {"decode_0"}
