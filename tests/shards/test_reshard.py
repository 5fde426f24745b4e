"""A subset of a corpus is a corpus: the same members, repeats as copies, and the same bytes each time."""

import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.cli.main import main
from mmdata.errors import ConfigError, RunError
from mmdata.shards import KINDS, Corpus, counter, index_folder, open_corpus, reshard_corpus, verify
from mmdata.shards.corpus import ID_DTYPE
from mmdata.shards.subset import match, turns
from tests.corpus import make_corpus
from tests.shards.tars import pairs, pictures, seen_by_webdataset, write_tar


def save(path: Path, ids: list[tuple[int, int]]) -> Path:
    np.save(path, np.array(ids, ID_DTYPE))
    return path


def halves(sample_id: str) -> tuple[int, int]:
    return int(sample_id[:16], 16), int(sample_id[16:], 16)


def texts(corpus: Corpus) -> list[str]:
    return [corpus.read(index)["txt"].decode() for index in range(len(corpus.samples))]


def test_members_are_copied_and_repeats_are_copies(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=12, val=0.3)
    source = open_corpus(url)
    wanted = {0: 1, 3: 3, 7: 1, 11: 2}
    ids = [halves(source.sample_id(index)) for index, times in wanted.items() for _ in range(times)]
    subset = save(tmp_path / "subset.npy", [*reversed(ids), (1, 2), (1, 2), (3, 4)])
    done = reshard_corpus(url, subset, str(tmp_path / "out"), samples=3)
    assert (done.samples, done.distinct, done.missing) == (7, 6, 2)
    made = open_corpus(str(tmp_path / "out"))
    order = [index for index in wanted for _ in range(wanted[index])]
    assert [made.sample_id(index) for index in range(7)] == [source.sample_id(index) for index in order]
    assert [made.read(index) for index in range(7)] == [source.read(index) for index in order]
    assert made.splits == source.splits
    assert made.samples["split"].tolist() == source.samples["split"][order].tolist()
    for name in ("kind", "suffix", "position", "size", "height", "width", "characters"):
        was = np.concatenate([source.blocks_of(index)[name] for index in order])
        assert made.blocks[name].tolist() == was.tolist(), name
    assert verify(str(tmp_path / "out")).whole
    assert made.digest == done.digest
    assert made.facts["reshard"] == {
        "corpus": source.digest, "subset": made.facts["reshard"]["subset"], "uid": False, "samples": 3, "max_mib": 1024,  # type: ignore[index]
        "ids": 10, "distinct": 6, "missing": 2,
    }  # fmt: skip
    assert made.trusted == source.trusted


def test_blocks_point_at_the_same_bytes(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [
        ("x/a.2.jpg", pictures(2)[0]), ("x/a.10.jpg", pictures(2)[1]), ("x/a.txt", b"both"), ("x/b.txt", b"alone"),
    ], tarfile.PAX_FORMAT, mtime="1.5")  # fmt: skip
    index_folder(str(tmp_path))
    source = open_corpus(str(tmp_path))
    subset = save(tmp_path / "s.npy", [halves(source.sample_id(index)) for index in (0, 1)])
    reshard_corpus(str(tmp_path), subset, str(tmp_path / "out"))
    made = open_corpus(str(tmp_path / "out"))
    data = (tmp_path / "out/train-00000.tar").read_bytes()
    found = []
    for index, sample in enumerate(made.samples):
        for block in made.blocks_of(index):
            at = int(sample["start"]) * 512 + int(block["offset"])
            found.append((KINDS[block["kind"]], int(block["position"]), data[at : at + int(block["size"])]))
    assert found == [
        ("image", 0, pictures(2)[0]), ("image", 1, pictures(2)[1]), ("text", 2, b"both"), ("text", 0, b"alone"),
    ]  # fmt: skip
    assert made.facts["cautions"] == ["the corpus that this was copied from had no checksums"]
    assert verify(str(tmp_path / "out")).whole


def test_keys_are_ids_and_turns_and_webdataset_reads_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(3))
    index_folder(str(tmp_path))
    source = open_corpus(str(tmp_path))
    first, last = source.sample_id(0), source.sample_id(2)
    subset = save(tmp_path / "s.npy", [halves(last), halves(first), halves(last)])
    reshard_corpus(str(tmp_path), subset, str(tmp_path / "out"))
    seen = seen_by_webdataset(tmp_path / "out/train-00000.tar")
    assert [key for key, _ in seen] == [f"{first}-0", f"{last}-0", f"{last}-1"]
    assert [members for _, members in seen] == [source.read(0), source.read(2), source.read(2)]


def test_uids_of_datacomps_shards(tmp_path: Path) -> None:
    home = tmp_path / "pool"
    home.mkdir()
    write_tar(home / "00000000.tar", pairs(3))
    write_tar(home / "00000001.tar", pairs(3, first=3))
    index_folder(str(home))
    subset = save(tmp_path / "s.npy", sorted([(0, 4), (0, 1), (0, 4), (0, 99)]))
    with pytest.raises(ConfigError, match=r"none of its 4 ids is a sample's of .*\n  hint: .*`--uid` reads them"):
        reshard_corpus(str(home), subset, str(tmp_path / "out"))
    done = reshard_corpus(str(home), subset, str(tmp_path / "out"), uid=True)
    assert (done.samples, done.distinct, done.missing) == (3, 3, 1)
    made = open_corpus(str(tmp_path / "out"))
    assert texts(made) == ["picture 1", "picture 4", "picture 4"]
    assert [made.sample_id(index) for index in range(3)] == [f"{number:032x}" for number in (1, 4, 4)]
    with pytest.raises(ConfigError, match=r"none of its 1 ids .*\n  hint: is it another pool's"):
        reshard_corpus(str(home), save(tmp_path / "t.npy", [(9, 9)]), str(tmp_path / "out2"), uid=True)


def test_a_sample_without_a_uid_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*pairs(1), ("b.json", b'{"uid": "short"}')])
    index_folder(str(tmp_path))
    with pytest.raises(RunError, match=r"0.tar: sample 1 at byte \d+ has no json with a `uid` of 32 hex digits"):
        reshard_corpus(str(tmp_path), save(tmp_path / "s.npy", [(0, 0)]), str(tmp_path / "out"), uid=True)


def test_one_id_of_two_samples_brings_both_under_keys_of_their_own(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [
        (f"{key}.{suffix}", data) for key in "abc" for suffix, data in
        (("json", b'{"uid": "%032x"}' % (key != "b")), ("txt", key.encode()))
    ])  # fmt: skip
    index_folder(str(tmp_path))
    reshard_corpus(str(tmp_path), save(tmp_path / "s.npy", [(0, 1), (0, 1)]), str(tmp_path / "out"), uid=True)
    assert texts(open_corpus(str(tmp_path / "out"))) == ["a", "a", "c", "c"]
    keys = [key for key, _ in seen_by_webdataset(tmp_path / "out/train-00000.tar")]
    assert keys == [f"{1:032x}-{turn}" for turn in range(4)]


def test_borders_follow_from_sizes_and_bytes_from_the_input(tmp_path: Path) -> None:
    for name in ("0.tar", "val-0.tar"):
        write_tar(tmp_path / name, pairs(20))
    index_folder(str(tmp_path), checksums=True)
    source = open_corpus(str(tmp_path))
    ids = [halves(source.sample_id(index)) for index in range(40)]
    folders = []
    for number, order in enumerate((ids * 9, sorted(ids * 9))):
        subset = save(tmp_path / f"{number}.npy", order)
        folders.append(tmp_path / f"out{number}")
        reshard_corpus(str(tmp_path), subset, str(folders[-1]), max_mib=1)
    tars = [{path.name: path.read_bytes() for path in folder.rglob("*.tar")} for folder in folders]
    assert tars[0] == tars[1]
    assert len(tars[0]) > 3
    assert all(len(data) <= 1 << 20 for data in tars[0].values())
    assert {name.partition("-")[0] for name in tars[0]} == {"train", "val"}
    again = tmp_path / "again"
    reshard_corpus(str(tmp_path), tmp_path / "0.npy", str(again), max_mib=1)
    files = {path.relative_to(folders[0]): path.read_bytes() for path in folders[0].rglob("*") if path.is_file()}
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == files


def test_what_a_killed_call_left_is_met_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(6))
    index_folder(str(tmp_path))
    source, out = open_corpus(str(tmp_path)), tmp_path / "out"
    subset = save(tmp_path / "s.npy", [halves(source.sample_id(index)) for index in range(6)])
    reshard_corpus(str(tmp_path), subset, str(out), samples=2)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"there is a corpus here already"):
        reshard_corpus(str(tmp_path), subset, str(out), samples=2)
    for name in ("corpus.json", "wids.json", "train-00002.tar"):
        (out / name).unlink()
    reshard_corpus(str(tmp_path), subset, str(out), samples=2)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
    (out / "corpus.json").unlink()
    with pytest.raises(ConfigError, match=r"train-00000.tar exists with other bytes"):
        reshard_corpus(str(tmp_path), subset, str(out), samples=3)


def test_a_damaged_sample_is_named_and_nothing_is_finished(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(2))
    index_folder(str(tmp_path), checksums=True)
    source = open_corpus(str(tmp_path))
    subset = save(tmp_path / "s.npy", [halves(source.sample_id(index)) for index in range(2)])
    data = bytearray(path.read_bytes())
    at = int(source.samples["start"][1]) * 512 + 700
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"0.tar: sample 1 at byte \d+ is not what was written"):
        reshard_corpus(str(tmp_path), subset, str(tmp_path / "out"))
    assert not (tmp_path / "out/corpus.json").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 17, "17 bytes are no whole number of ids"),
        (b"\x93NUMPY\x01\x00junk", "cannot be read as a subset"),
    ],
)
def test_a_file_that_is_no_subset_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(1))
    index_folder(str(tmp_path))
    (tmp_path / "s.npy").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        reshard_corpus(str(tmp_path), tmp_path / "s.npy", str(tmp_path / "out"))
    np.save(tmp_path / "s.npy", np.zeros((2, 2)))
    with pytest.raises(ConfigError, match=r"holds 2 dimensions of float64\n  hint: a subset is a `.npy` of dtype `u8,u8`"):
        reshard_corpus(str(tmp_path), tmp_path / "s.npy", str(tmp_path / "out"))


def test_records_without_a_numpy_header_are_a_subset_too(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(2))
    index_folder(str(tmp_path))
    np.array([halves(open_corpus(str(tmp_path)).sample_id(1))], ID_DTYPE).tofile(tmp_path / "s.npy")
    assert reshard_corpus(str(tmp_path), tmp_path / "s.npy", str(tmp_path / "out")).samples == 1


def test_members_that_the_writer_would_lose_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a._mask.png", b"1"), ("b." + "c" * 90, b"2")], tarfile.GNU_FORMAT)
    index_folder(str(tmp_path))
    source = open_corpus(str(tmp_path))
    for index, member in enumerate(("_mask.png", "c" * 90)):
        subset = save(tmp_path / "s.npy", [halves(source.sample_id(index))])
        with pytest.raises(RunError, match=rf"sample {index} .* has a member `{member}`, which a plain header cannot name"):
            reshard_corpus(str(tmp_path), subset, str(tmp_path / "out"))


IDS = st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.sampled_from([0, 1, 5, 2**64 - 1]))


@settings(deadline=None)
@given(st.lists(IDS, max_size=40), st.lists(IDS, max_size=40))
def test_matching_counts_what_a_counter_counts(ids: list[tuple[int, int]], subset: list[tuple[int, int]]) -> None:
    matched = match(np.array(ids, ID_DTYPE), np.array(subset, ID_DTYPE))
    counts = Counter(subset)
    assert matched.copies.tolist() == [counts[pair] for pair in ids]
    assert (matched.distinct, matched.missing) == (len(counts), len(counts.keys() - set(ids)))
    assert turns(np.array(ids, ID_DTYPE)).tolist() == [ids[:place].count(pair) for place, pair in enumerate(ids)]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "TICK_S", 0.0)
    write_tar(tmp_path / "0.tar", pairs(3))
    index_folder(str(tmp_path))
    subset, out = save(tmp_path / "s.npy", [(0, 2), (0, 2), (7, 7)]), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["mmdata", "reshard", str(tmp_path), str(subset), str(out), "--uid", "--samples", "1"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    captured = capsys.readouterr()
    assert captured.err == "".join(
        f"{now} of {total} {what}\n" for what, total in (("uids read", 3), ("samples written", 2)) for now in range(1, total + 1)
    )
    assert captured.out == f"2 samples in 2 shards: {out}\n1 of 2 ids found, 1 not in the corpus\n"
    assert json.loads((out / "sizes.json").read_bytes()) == {"train-00000.tar": 1, "train-00001.tar": 1}
