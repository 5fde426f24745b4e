"""What an object store can do to one object: whatever it answers, the name has one owner, and reading back says who."""

import os
import random
import secrets
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mmdata.errors import RunError
from mmdata.storage import Faults, FaultyObjectStore, ObjectStore, open_store
from mmdata.storage.faulty import PASSING
from tests.fire.conftest import BUCKET, Line, create_at_last
from tests.fire.seeds import seeds

DATA = random.Random(0).randbytes(3_000_000)
OTHER = DATA[:-1] + b"!"
SENDING = [kind for kind in PASSING if kind.startswith("create-")]


class Patient(FaultyObjectStore):
    """Tries again at once, as the trouble is in memory."""

    waits_s = (0.0, 0.0, 0.0)


@pytest.mark.fault("W17")
@pytest.mark.parametrize("kind", SENDING)
@pytest.mark.parametrize("how", ["create", "create_from"])
def test_a_create_whose_answer_is_bad_is_settled_by_reading_back(kind: str, how: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    faults = Faults(nth={kind: 1})
    store = Patient(f"memory://{tmp_path.name}", faults)
    assert store.create("a/name", DATA) if how == "create" else store.create_from("a/name", source)
    assert faults.struck == {kind: 1}
    assert store.read("a/name") == DATA
    assert not store.create("a/name", OTHER)
    source.write_bytes(OTHER)
    assert not store.create_from("a/name", source)


@pytest.mark.fault("W17")
@pytest.mark.parametrize("kind", ["create-409", "create-412", "create-cut"])
def test_a_store_that_never_takes_an_object_ends_the_create(kind: str, tmp_path: Path) -> None:
    faults = Faults(probability=1, kinds=[kind])
    store = Patient(f"memory://{tmp_path.name}", faults)
    with pytest.raises(OSError, match=r"Conflict|Precondition|reset"):
        store.create("name", DATA)
    assert faults.calls["create"] == 4
    assert not store.exists("name")
    with pytest.raises(RunError, match="cannot be written"):
        store.probe()


@pytest.mark.fault("W17")
def test_nothing_but_a_listing_depends_on_listings(tmp_path: Path) -> None:
    store = Patient(f"memory://{tmp_path.name}", Faults(probability=1, kinds=["list-stale"]))
    assert store.create("a/name", DATA)
    assert store.list("a") == []
    assert store.exists("a/name")
    assert store.create("a/name", DATA)
    assert not store.create("a/name", OTHER)
    store.delete("a/name")
    assert not store.exists("a/name")


@pytest.mark.fault("W17", "W33")
@pytest.mark.parametrize("seed", seeds(4, 100))
def test_one_of_many_writers_wins_whatever_the_answers(seed: int, tmp_path: Path) -> None:
    store = Patient(f"memory://{tmp_path.name}", Faults(seed, 0.3, set(PASSING) - {"create-slow", "read-slow"}))
    claims = [secrets.token_bytes(16) for _ in range(4)]
    for name in map(str, range(20)):
        won = [claim for claim in claims if create_at_last(store, name, claim)]
        assert [store.fs.inner.cat_file(f"{store.root}/{name}")] == won


@pytest.mark.fault("W17")
@pytest.mark.parametrize("attempts", ["1", "3"], ids=["once", "client tries again"])
@pytest.mark.parametrize("trouble", ["409", "412", "500", "500 after", "lost", "cut", "slow"])
def test_s3_settles_a_create(trouble: str, attempts: str, s3: Line, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    store = open_store(s3_url)
    hit = s3.meddle("PUT", trouble)
    assert store.create("a/name", b"mine")
    assert hit.hits == 1
    assert store.read("a/name") == b"mine"
    assert not store.create("a/name", b"else")


@pytest.mark.fault("W17")
@pytest.mark.parametrize("trouble", ["lost", "404 after"])
def test_s3_settles_a_create_in_parts(trouble: str, s3: Line, s3_url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    os.truncate(source, 105 << 20)  # s3fs sends parts of 50 MiB
    hit = s3.meddle("POST", trouble, where="uploadId")
    store = open_store(s3_url)
    assert store.create_from("a/name", source)
    assert (hit.hits, store.size("a/name")) == (1, 105 << 20)
    with source.open("rb+") as file:
        file.write(b"!")
    assert not store.create_from("a/name", source)


@pytest.mark.fault("W17")
@pytest.mark.usefixtures("s3")
def test_parts_that_were_never_completed_are_nothing(s3_url: str) -> None:
    store = ObjectStore(s3_url)
    key = f"{store.root.removeprefix(BUCKET + '/')}/a/name"
    upload = store.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)["UploadId"]
    store.fs.call_s3("upload_part", Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20))
    assert not store.exists("a/name")
    assert store.list("a") == []
    assert store.create("a/name", b"mine")
    store.fs.call_s3("abort_multipart_upload", Bucket=BUCKET, Key=key, UploadId=upload)
    assert store.read("a/name") == b"mine"


@pytest.mark.fault("W17")
def test_s3_reads_lists_and_deletes(s3: Line, s3_url: str) -> None:
    store = open_store(s3_url)
    store.probe()
    assert store.list("") == []
    for number in range(5):
        assert store.create(f"a/{number}/x", DATA[:1000])
    s3.seen.clear()
    assert store.read_range("a/1/x", 10, 5) == DATA[10:15]
    assert s3.seen == [("GET", "bytes=10-14")]
    assert (store.read_range("a/1/x", 0, 0), store.size("a/1/x")) == (b"", 1000)
    for offset in (998, 5000):
        with pytest.raises(RunError, match="cut short"):
            store.read_range("a/1/x", offset, 5)
    s3.meddle("GET", "cut")
    assert store.read("a/2/x") == DATA[:1000]
    assert store.list("a") == ["0", "1", "2", "3", "4"]
    other = ObjectStore(s3_url)
    assert other.create("a/5", b"")
    assert (other.create("a/5", b""), other.create("a/5", b"1"), other.read("a/5")) == (True, False, b"")
    assert store.list("a")[-1] == "5", "no listing is kept"
    store.sub("a").delete("5")
    store.delete("a")
    store.delete("a")
    assert not other.exists("a/0/x")
    assert other.list("a") == []


@pytest.mark.fault("W17")
@pytest.mark.usefixtures("s3")
def test_s3_has_one_winner(s3_url: str) -> None:
    store, won = open_store(s3_url), list[int]()

    def claim(number: int) -> None:
        if store.create("name", bytes([number])):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(store.create, "name", bytes(won)).result(30)
        assert not pool.submit(store.create, "name", b"late").result(30)
    assert store.read("name") == bytes(won)
    assert len(won) == 1


@pytest.mark.fault("W17")
@pytest.mark.usefixtures("s3")
def test_an_s3_that_cannot_be_written_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "waits_s", (0.0,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(RunError, match=r"nowhere/run cannot be written: (.|\n)*check that the bucket exists"):
        open_store("s3://nowhere/run").probe()


@pytest.mark.fault("W17")
def test_an_s3_that_is_not_there_is_an_error_and_not_an_empty_folder(
    s3: Line, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore, "waits_s", (0.0,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store(s3_url)
    for act in (lambda: store.exists("a"), lambda: store.list("a"), lambda: store.create("a", b""), lambda: store.delete("a")):
        with pytest.raises(OSError, match="Could not connect"):
            act()
    assert not s3.meddling
