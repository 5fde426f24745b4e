"""Fingerprints of pictures, and what `dedupe` makes of them in a run."""

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdata.dedupe import alike_verdicts, bucket_of
from mmdata.dedupe.alike import Things, hash_items, hashes_in, judge
from mmdata.dedupe.exact import hashes_of, normal_url, values_of
from mmdata.dedupe.hamming import collapse, near_values
from mmdata.engine import Runner
from mmdata.engine.task import Executor
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor, ProcessExecutor
from mmdata.media.phash import pdq, phash
from mmdata.plan import Plan
from mmdata.report.duplicates import duplicate_groups, groups_text, write_groups
from mmdata.report.table import plan_text
from mmdata.schema import PARTITION, ROW
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.fingerprint import Fingerprint
from mmdata.stages.likeness import Hashes
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from tests.conftest import encode

HELD = """
import sys, pyarrow as pa, polars
from mmdata.dedupe import alike
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.likeness import Hashes
held = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
rows = pa.ipc.open_file(pa.memory_map(sys.argv[1])).read_all()

def dropped(rows):
    found = None
    for each in Dedupe(likeness=Hashes(radius=2, any_chance=True)).passes()[1:]:
        found = each.work(rows, found, 0, 1)
    return found.num_rows

dropped(rows.slice(0, 5000))  # what libraries load when they first work is not the rows'
before = held()
print(dropped(rows), held() - before)
"""


def picture(seed: int, side: int = 96) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def table_of(hashes: pa.Array, **columns: list[object]) -> pa.Table:
    num = len(hashes)
    base = {PARTITION: pa.array([0] * num, pa.int64()), ROW: pa.array(range(num), pa.int64())}
    ids = {"sample_id": [f"{place:032x}" for place in range(num)], "position": pa.array([0] * num, pa.int32())}
    return pa.table({**base, **ids, "hash": hashes, **columns})


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@pytest.mark.parametrize("side", [64, 200, 700])
def test_phash_has_imagehash_bits(side: int) -> None:
    for seed in range(5):
        image = picture(seed, side)
        assert f"{phash(image):016x}" == str(imagehash.phash(Image.fromarray(image)))


def test_hashes_stay_near_through_scaling_and_far_between_pictures() -> None:
    for seed in range(5):
        image, other = picture(seed, 600), picture(seed + 100, 600)
        half = cv2.resize(image, (300, 300), interpolation=cv2.INTER_AREA)
        assert (phash(image) ^ phash(half)).bit_count() <= 4
        assert distance(pdq(image), pdq(half)) <= 16
        assert distance(pdq(image), pdq(other)) > 80
        assert int(pdq(image), 16).bit_count() == 128


def test_alike_rows_name_keeper_and_distance() -> None:
    hashes = pa.array([0b0, 0b1, 0b0, 0xFFFF << 40, 0b11], pa.uint64())
    verdicts = alike_verdicts(table_of(hashes, score=[0.1, 0.9, 0.2, 0.0, 0.3]), "hash", 1, ["score"])
    told = [(row[ROW], row["reason"], int(row["keeper_id"], 16), row["value"]) for row in verdicts.to_pylist()]
    assert told == [(0, "near_duplicate", 1, 1.0), (2, "near_duplicate", 1, 1.0), (4, "near_duplicate", 1, 1.0)]
    # 0 and 11 are two bits apart: where the row between them is not the best, the far one founds its own group.
    verdicts = alike_verdicts(table_of(hashes, score=[0.9, 0.1, 0.2, 0.0, 0.3]), "hash", 1, ["score"])
    assert [(row[ROW], int(row["keeper_id"], 16), row["value"]) for row in verdicts.to_pylist()] == [(1, 0, 1.0), (2, 0, 0.0)]


def test_pdq_has_the_published_bits() -> None:
    # What ThreatExchange's own code (package pdqhash 0.2.8) says of these pixels.
    assert pdq(picture(3, 400)) == "70e04fab85049d52caf278e15855cf1e08c6efb1e544306ea7b96dc1554beec5"
    assert pdq(picture(4, 90)) == "8485400f0b5f0f3f1e0d14053ee04d5f7ae5ecb5a185d34ad31afbb0fbe087c5"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 63), min_size=1, max_size=40), st.integers(0, 3))
def test_hashes_that_are_equal_count_as_one_and_lists_of_one_as_themselves(values: list[int], radius: int) -> None:
    plain = alike_verdicts(table_of(pa.array(values, pa.uint64())), "hash", radius, [])
    listed = alike_verdicts(table_of(pa.array([[value] for value in values], pa.list_(pa.uint64()))), "hash", radius, [])
    wide = [f"{value:064x}" for value in values]
    assert plain.equals(listed)
    assert plain.equals(alike_verdicts(table_of(pa.array(wide)), "hash", radius, []))
    gone = set(plain.column(ROW).to_pylist())
    left = [value for place, value in enumerate(values) if place not in gone]
    assert alike_verdicts(table_of(pa.array(left, pa.uint64())), "hash", radius, []).num_rows == 0
    for row in plain.to_pylist():
        keeper = int(row["keeper_id"], 16)
        assert keeper not in gone
        assert (values[keeper] ^ values[row[ROW]]).bit_count() == row["value"] <= radius


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=30))
def test_a_value_has_one_hash_wherever_it_stands(texts: list[str]) -> None:
    hashes = hashes_of(pa.chunked_array([pa.array(["x", *texts], pa.string())[1:], pa.array(texts, pa.string())], pa.string()))
    assert np.array_equal(hashes[: len(texts)], hashes[len(texts) :])
    assert len(set(hashes.tolist())) == len(set(texts))


def test_buckets_of_digests_are_even() -> None:
    digests = pa.chunked_array([[hashlib.sha256(bytes([a, b])).hexdigest() for a in range(64) for b in range(100)]])
    counts = np.bincount(bucket_of(digests, 64), minlength=64)
    assert counts.min() > 60
    assert counts.max() < 145


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("HTTP://A.example:80/x?q=1#top", "https://a.example/x?q=1"), ("https://a.example/", "https://a.example"),
        ("https://a.example:8443/X", "https://a.example:8443/X"), ("ftp://A/x", "ftp://A/x"), ("http://[", "http://["),
    ],
)  # fmt: skip
def test_urls_are_compared_by_the_stated_rules(url: str, same: str) -> None:
    assert normal_url(url) == same


def test_captions_are_compared_folded() -> None:
    table = pa.table({"text": [" A  Red\t\uff33quare ", None]})
    assert values_of(table, "folded(text)").to_pylist() == ["a red square", None]


def test_documents_are_alike_by_the_share_of_their_pictures() -> None:
    """Two samples of three pictures that share two, one that shares one, and text blocks without a picture."""
    a, b, c, d, e = (1 << place * 8 for place in range(1, 6))
    hashes = pa.array([a, b, c, None, a, b | 1, d, None, c, e, None], pa.uint64())
    table = table_of(hashes).set_column(2, "sample_id", pa.array([*"AAAABBBBCCC"]))
    things = Things(np.array([0] * 4 + [1] * 4 + [2] * 3), np.arange(11))
    pairs = near_values(collapse(hashes_in(table.column("hash"))[0]).values_UW, 1)
    assert judge(table, things, hash_items(table, "hash", things), pairs, 0.5).column(ROW).to_pylist() == [
        4,
        5,
        6,
        7,
    ]  # 2 of 4 pictures
    assert judge(table, things, hash_items(table, "hash", things), pairs, 0.51).num_rows == 0
    loose = judge(table, things, hash_items(table, "hash", things), pairs, 0.2)  # 1 of 4
    assert loose.column(ROW).to_pylist() == [4, 5, 6, 7, 8, 9, 10]
    assert set(loose.column("keeper_id").to_pylist()) == {"A"}
    assert loose.column("value").to_pylist() == [0.5] * 4 + [0.75] * 3


def test_many_equal_lists_make_no_pairs_of_their_own() -> None:
    """A placeholder in 30,000 rows, with two equal views: their pairs would be two thousand millions."""
    num = 30_000
    table = table_of(pa.array([[7, 7 << 20]] * num + [[7, 1 << 50], [3 << 40]], pa.list_(pa.uint64())))
    things = Things(np.arange(num + 2), np.arange(num + 2)[::-1].copy())
    said = judge(table, things, hash_items(table, "hash", things), near_values(np.array([7, 7 << 20, 3 << 40], np.uint64), 0))
    assert said.num_rows == num
    assert set(said.column("keeper_id").to_pylist()) == {f"{num:032x}"}
    strict = judge(table, things, hash_items(table, "hash", things), near_values(np.array([7], np.uint64), 0), 0.9)
    assert (strict.num_rows, set(strict.column("keeper_id").to_pylist())) == (num - 1, {f"{num - 1:032x}"})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=4), max_size=14), st.sampled_from([None, 0.3, 0.5, 1.0]), st.integers(0, 2))
def test_lists_are_alike_as_comparing_them_one_by_one_says(lists: list[list[int]], share: float | None, radius: int) -> None:
    table = table_of(pa.array(lists, pa.list_(pa.uint64())))
    things = Things(np.arange(len(lists)), np.arange(len(lists)))
    pairs = near_values(collapse(hashes_in(table.column("hash"))[0]).values_UW, radius)
    said = judge(table, things, hash_items(table, "hash", things), pairs, share)
    stays: list[int] = []
    for row, mine in enumerate(lists):
        if not any(alike(set(mine), set(lists[kept]), share, radius) for kept in stays):
            stays.append(row)
    assert sorted(said.column(ROW).to_pylist()) == [row for row in range(len(lists)) if row not in stays]


def alike(one: set[int], other: set[int], share: float | None, radius: int) -> bool:
    met = [(a, b) for a in one for b in other if (a ^ b).bit_count() <= radius]
    if not met or share is None:
        return bool(met)
    matched = min(len({a for a, _ in met}), len({b for _, b in met}))
    return matched / (len(one) + len(other) - matched) >= share


def test_videos_are_alike_by_the_share_of_their_frames() -> None:
    frames = pa.array([[1 << 8, 1 << 16, 1 << 24], [1 << 16, 1 << 24 | 1], [1 << 8], [], None], pa.list_(pa.uint64()))
    table = table_of(frames)
    pairs = near_values(collapse(hashes_in(table.column("hash"))[0]).values_UW, 1)
    things = Things(np.arange(5), np.arange(5))
    assert judge(table, things, hash_items(table, "hash", things), pairs, 0.6).column(ROW).to_pylist() == [1]
    assert judge(table, things, hash_items(table, "hash", things), pairs).column(ROW).to_pylist() == [
        1,
        2,
    ]  # one like frame is enough


def folder_of_copies(folder: Path) -> Folder:
    folder.mkdir()
    for number in range(6):
        image = picture(number % 3, 96 if number < 3 else 80)
        (folder / f"{number}.png").write_bytes(encode(image if number < 5 else np.ascontiguousarray(image[:, ::-1])))
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    return Folder(path=str(folder), partition_rows=2)


def run(home: Path, source: Folder, executor: Executor, *stages: Dedupe) -> Runner:
    hashed = (Measure(), Fingerprint(kinds=("phash", "pdq", "pixels"), views=("flip",)))
    plan = Plan(name="alike", source=(source,), stages=(*hashed, *stages), sink=Shards(samples=3))
    runner = Runner(plan, str(home))
    runner.execute(executor, quiet=True)
    return runner


def test_a_run_keeps_the_largest_of_pictures_that_look_alike_on_every_executor(tmp_path: Path) -> None:
    source = folder_of_copies(tmp_path / "i")
    stages = (
        Dedupe(likeness=Hashes(column="pdq", radius=31), keep=("area",)),
        Dedupe(likeness=Hashes(column="phash_views", radius=6, any_chance=True), keep=("area",)),
    )
    run(tmp_path / "a", source, InlineExecutor(), *stages)
    processes = ProcessExecutor(2)
    try:
        run(tmp_path / "b", source, processes, *stages)
    finally:
        processes.close()
    files = [sorted((tmp_path / name).glob("passes/*/[123]/*.arrow")) for name in "ab"]
    assert len(files[0]) >= 10  # two stages: values, pairs in three parts, verdicts
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    groups = duplicate_groups(str(tmp_path / "a"), 10)
    told = {(group.keeper.text, copy.row.text, copy.by) for group in groups for copy in group.copies}
    assert told == {
        ("picture 0", "picture 3", "dedupe pdq within 31"), ("picture 1", "picture 4", "dedupe pdq within 31"),
        ("picture 2", "picture 5", "dedupe phash_views within 6"),
    }  # fmt: skip
    assert "near_duplicate by dedupe pdq within 31, distance" in groups_text(groups, 3)
    write_groups(tmp_path / "g.html", str(tmp_path / "a"), groups)
    assert (tmp_path / "g.html").read_text(encoding="utf-8").count("data:image/jpeg") == 6


@pytest.mark.parametrize(("by", "match"), [
    ("normal(width)", r"`by: normal\(width\)` cannot compare `width`, which is int32[\s\S]*are of texts"),
    ("phash_views", r"`by: phash_views` cannot compare `phash_views`, which is list[\s\S]*`likeness`"),
])  # fmt: skip
def test_columns_that_cannot_be_equal_are_refused_before_the_run(tmp_path: Path, by: str, match: str) -> None:
    plan = Plan(
        name="x", source=(folder_of_copies(tmp_path / "i"),), stages=(Measure(), Fingerprint(views=("flip",)), Dedupe(by=by))
    )
    with pytest.raises(ConfigError, match=match):
        plan.check()


def test_zero_has_one_bucket_and_hex_two_cases() -> None:
    assert len(set(bucket_of(pa.chunked_array([[0.0, -0.0]]), 64).tolist())) == 1
    upper, lower = (hashes_in(pa.chunked_array([[text]]))[0].tolist() for text in ("00FF" * 4, "00ff" * 4))
    assert upper == lower


def test_a_likeness_that_chance_alone_gives_is_refused() -> None:
    way = Hashes(column="phash", radius=12)
    with pytest.raises(ConfigError, match=r"of 100,000,000 rows, 23 are within 12 of 64 bits[\s\S]*hint: take a smaller radius"):
        way.chance(10**8, pa.uint64())
    assert Hashes(column="pdq", radius=31).chance(10**9, pa.string()) < 1e-9
    with pytest.raises(ConfigError, match=r"likeness compares hashes, but `phash` is double"):
        Dedupe(likeness=way).check({"phash": pa.field("phash", pa.float64())})


def test_a_plan_says_what_chance_gives(tmp_path: Path) -> None:
    source = folder_of_copies(tmp_path / "i")
    plan = Plan(name="alike", source=(source,), stages=(Fingerprint(), Dedupe(likeness=Hashes(radius=4))))
    said = "dedupe by phash within 4: of 6 rows, 0 MiB in its largest task, 1.8e-13 look like a row by chance"
    assert said in plan_text(plan)
    risky = Plan(name="alike", source=(source,), stages=(Fingerprint(), Dedupe(likeness=Hashes(radius=30))))
    with pytest.raises(ConfigError, match=r"of 6 rows, 1.8 are within 30 of 64 bits of a row by chance"):
        plan_text(risky)
    with pytest.raises(ConfigError, match=r"of 6 rows, 1.8 are within 30 of 64 bits of a row by chance"):
        Runner(risky, str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    assert not (tmp_path / "run" / "generations").exists()  # nothing was begun


def test_a_task_holds_what_the_plan_says(tmp_path: Path) -> None:
    """In a process of its own: the rows lie in a file, as a pass would read them."""
    num, way = 300_000, Hashes(radius=2, any_chance=True)
    hashes = np.random.default_rng(1).integers(0, 1 << 64, num, dtype=np.uint64)
    hashes[: num // 10] = hashes[-(num // 10) :] ^ np.uint64(1)
    rows = Dedupe(likeness=way)._prepare(table_of(pa.array(hashes, pa.uint64())).rename_columns({"hash": "phash"}))
    with pa.ipc.new_file(str(tmp_path / "rows.arrow"), rows.schema) as file:
        file.write_table(rows)
    done = subprocess.run([sys.executable, "-c", HELD, str(tmp_path / "rows.arrow")], capture_output=True, text=True, check=True)
    dropped, held = map(int, done.stdout.split())
    assert dropped == num // 10
    assert held <= way.memory_mib(num, pa.uint64()) + 32  # what allocators keep of what was freed
