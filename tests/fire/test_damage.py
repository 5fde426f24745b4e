"""What happens to a finished corpus on a disk: bits flip, files are cut, lost, renamed, edited, mixed up.

`verify` and the loader both find it and name the file; the loader names the sample too, because that is what it reads.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.engine import Runner
from mmdata.errors import RunError
from mmdata.executors import InlineExecutor
from mmdata.loader import keyed
from mmdata.plan import Plan
from mmdata.shards import open_corpus, verify
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from tests.corpus import make_corpus
from tests.fire.damage import (
    NUM,
    Run,
    call,
    edit_index,
    flip,
    loaders_error,
    problems,
    reseal,
    sample_at,
    webdataset_notices,
    write,
)
from tests.fire.seeds import seeds

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("damage")
    first = Path(make_corpus(home, NUM))
    sink = Shards(samples=NUM // 3, seed=1)
    plan = Plan(name="shapes", source=(Folder(path=str(home / "images")),), stages=(Measure(),), sink=sink)
    result = Runner(plan, str(home / "run")).execute(InlineExecutor(), quiet=True)
    assert result.corpus is not None
    return Run(home / "run", first, Path(result.corpus))


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run folder, to be damaged."""
    home = tmp_path / "run"
    shutil.copytree(made.home, home, symlinks=True)
    return Run(home, home / made.first.relative_to(made.home), home / made.second.relative_to(made.home))


@pytest.mark.fault("W24")
def test_W24_a_flipped_bit_is_found_by_both_wherever_it_is(run: Run, record_property: Record) -> None:
    corpus, at_end, all_seeds = open_corpus(str(run.first)), 0, seeds(20, 200)
    sizes = [shard.bytes for shard in corpus.manifest.shards]
    for seed in all_seeds:
        random = keyed("W24", seed)
        place, bit = int(random.integers(sum(sizes))), int(random.integers(8))
        shard = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
        byte = place - sum(sizes[:shard])
        name, sample = corpus.shards[shard], sample_at(corpus, shard, byte)
        at_end += sample is None
        flip(run.first / name, byte, bit)
        ((file, what),) = problems(run.first)
        assert file == name
        assert what.endswith("only the end of the archive" if sample is None else f"damaged: sample {sample}")
        said = str(loaders_error(run.first))
        assert f"{name}: sample" in said
        assert "the shard's end" in said if sample is None else f": sample {sample} at byte" in said
        flip(run.first / name, byte, bit)
    assert problems(run.first) == []
    assert loaders_error(run.first) is None
    share = f"{len(all_seeds)}/{len(all_seeds)}"
    record_property("figure", f"{share} flips named by verify, {share} by the loader ({at_end} behind the last sample)")


@pytest.mark.fault("W24")
def test_W24_the_end_of_an_archive_counts_too(run: Run) -> None:
    corpus = open_corpus(str(run.first))
    flip(run.first / corpus.shards[1], corpus.manifest.shards[1].bytes - 1)
    assert problems(run.first)[0][1].endswith("damaged: no sample, only the end of the archive")
    with pytest.raises(RunError, match=rf"{corpus.shards[1]}: sample \d+ at byte 0 cannot be trusted: the shard's end"):
        corpus.read(int(corpus.first_samples[1]))


@pytest.mark.fault("W25")
def test_W25_a_cut_shard_is_found_by_both_wherever_the_cut_is(run: Run, record_property: Record) -> None:
    corpus = open_corpus(str(run.first))
    path, whole = run.first / corpus.shards[0], (run.first / corpus.shards[0]).read_bytes()
    last = int(corpus.first_samples[1]) - 1
    start, block = int(corpus.samples[last]["start"]) * 512, corpus.blocks_of(last)[0]
    second_member = start + int(block["offset"]) + -(-int(block["size"]) // 512) * 512
    cuts = {"at a sample": start, "at a member": second_member, "inside a member": start + 700, "at 0": 0}
    noticed = 0
    for cut in cuts.values():
        write(path, whole[:cut])
        ((file, what),) = problems(run.first)
        assert (file, what.split(";")[0]) == (path.name, f"{cut:,} bytes, the manifest says {len(whole):,}")
        assert f"{path.name}: sample" in str(loaders_error(run.first))
        with pytest.raises(RunError, match=rf"{path.name}: sample 0 .* the shard has {cut:,} bytes"):
            open_corpus(str(run.first)).read(0)
        noticed += webdataset_notices(path)
    record_property("figure", f"4/4 cuts found by verify, 4/4 by the loader, {noticed}/4 by webdataset's reader")


@pytest.mark.fault("W25")
def test_W25_a_shard_that_is_cut_while_it_is_read_is_named(run: Run) -> None:
    corpus = open_corpus(str(run.first))
    corpus.read(0)
    write(run.first / corpus.shards[0], b"")
    with pytest.raises(RunError, match=rf"{corpus.shards[0]}: sample 1 at byte \d+ .*0 of \d+ bytes"):
        corpus.read(1)


@pytest.mark.fault("W27")
@pytest.mark.parametrize("renamed", [False, True])
def test_W27_a_missing_shard_is_an_error(
    run: Run, renamed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = open_corpus(str(run.first)).shards[1]
    if renamed:
        (run.first / name).rename(run.first / "other.tar")
    else:
        (run.first / name).unlink()
    assert problems(run.first) == [(name, "missing")]
    said = str(loaders_error(run.first))
    assert f"{name}: sample" in said
    assert "the shard is missing" in said
    code, text = call(["verify", str(run.first)], capsys, monkeypatch)
    assert code == 1
    assert f"{name}: missing (copy it again" in text
    assert ("other.tar: not in the manifest" in text) == renamed


@pytest.mark.fault("W27")
def test_W27_an_unlisted_shard_is_ignored_and_reported(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(run.first / "train-00000.tar", run.first / "train-00009.tar")
    assert verify(str(run.first)).unlisted == ("train-00009.tar",)
    assert loaders_error(run.first) is None
    code, text = call(["verify", str(run.first)], capsys, monkeypatch)
    assert code == 0
    assert "train-00009.tar: not in the manifest, so nothing reads it" in text
    assert "whole: 4 shards, 40 samples" in text


@pytest.mark.fault("W28")
def test_W28_a_cut_manifest_is_refused(run: Run, record_property: Record) -> None:
    path = run.first / "corpus.json"
    whole = path.read_bytes()
    cuts = range(0, len(whole) - 1, 64)
    for cut in cuts:
        write(path, whole[:cut])
        assert [file for file, _ in problems(run.first)] == ["corpus.json"]
        assert "corpus.json: not valid JSON" in str(loaders_error(run.first))
    record_property("figure", f"{len(cuts)}/{len(cuts)} cuts of the manifest refused")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.fault("W28")
@pytest.mark.parametrize(
    "text", [b"[]", b"7", b"null", b'"{}"', b"{}", b'{"digest": "\\ud800"}', b'{"a": "\\ud800"}', b"\xff", DEEP]
)
def test_W28_a_file_that_is_no_manifest_is_refused(
    run: Run, text: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run.first / "corpus.json", text)
    assert "corpus.json: " in str(loaders_error(run.first))
    code, said = call(["verify", str(run.first)], capsys, monkeypatch)
    assert code == 1
    assert said.startswith("corpus.json: ")


@pytest.mark.fault("W28")
def test_W28_an_edited_manifest_is_refused(run: Run) -> None:
    path = run.first / "corpus.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"samples": 40', '"samples": 41', 1), encoding="utf-8")
    assert problems(run.first) == [("corpus.json", "does not match its own digest; it was edited or damaged")]
    assert "does not match its own digest" in str(loaders_error(run.first))


@pytest.mark.fault("W28")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("shards"), "`shards` is required"),
        (lambda facts: facts["shards"][1].pop("sha256"), "`shards.1.sha256` is required"),
        (lambda facts: facts["shards"][0].update(name="../x.tar"), "`../x.tar` is no name of a shard"),
        (lambda facts: facts["shards"][0].update(name="/etc/x.tar"), "`/etc/x.tar` is no name of a shard"),
        (lambda facts: facts["shards"][0].update(name="s3://x/y.tar"), "`s3://x/y.tar` is no name of a shard"),
        (lambda facts: facts["shards"][0].update(name="train-00001.tar"), "a shard is listed twice"),
        (lambda facts: facts["shards"][0].update(samples="13"), "`shards.0.samples`: Input should be a valid integer"),
        (lambda facts: facts["index"].update({"../x.npy": "0" * 64}), "`index` does not list"),
        (lambda facts: facts.update(shards=7), "`shards`: Input should be a valid list"),
        (lambda facts: facts.update(samples=41), "the shards' samples do not add up to 41"),
        (lambda facts: facts.update(version=2), "of version 2, not 1"),
    ],
)
def test_W28_a_sealed_manifest_with_wrong_facts_is_refused(
    run: Run, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    reseal(run.first, change)
    ((file, what),) = problems(run.first)
    assert (file, message in what) == ("corpus.json", True)
    assert f"corpus.json: {what}" in str(loaders_error(run.first))


@pytest.mark.fault("W28")
def test_W28_the_generation_before_a_damaged_one_is_still_readable(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(["verify", str(run.home)], capsys, monkeypatch)[0] == 0
    write(run.second / "corpus.json", (run.second / "corpus.json").read_bytes()[:-100])
    code, text = call(["verify", str(run.home)], capsys, monkeypatch)
    assert code == 1
    assert "corpus.json: not valid JSON" in text
    assert loaders_error(run.second) is not None
    assert loaders_error(run.first) is None
    assert call(["verify", str(run.first)], capsys, monkeypatch)[0] == 0
    write(run.home / "manifest/2.json", b'{"corpus"')
    code, text = call(["verify", str(run.home)], capsys, monkeypatch)
    assert code == 1
    assert "manifest/2.json is damaged" in text
    assert loaders_error(run.first) is None


@pytest.mark.fault("W29")
@pytest.mark.parametrize("name", ["samples", "blocks", "sample_ids"])
def test_W29_an_index_of_another_corpus_is_refused(run: Run, name: str) -> None:
    other = run.second / f"index/{name}.npy"
    assert other.stat().st_size == (run.first / f"index/{name}.npy").stat().st_size
    write(run.first / f"index/{name}.npy", other.read_bytes())
    assert problems(run.first) == [(f"index/{name}.npy", "its SHA-256 is not the manifest's")]
    assert f"index/{name}.npy: its SHA-256 is not the manifest's" in str(loaders_error(run.first))


@pytest.mark.fault("W29")
def test_W29_an_edited_index_is_refused(run: Run) -> None:
    edit_index(run.first, "samples", lambda samples: samples["xxh3"].__setitem__(5, 7), sealed=False)
    assert problems(run.first) == [("index/samples.npy", "its SHA-256 is not the manifest's")]
    assert "index/samples.npy: its SHA-256 is not the manifest's" in str(loaders_error(run.first))
    (run.first / "index/samples.npy").unlink()
    assert problems(run.first) == [("index/samples.npy", "missing")]
    assert "index/samples.npy: missing" in str(loaders_error(run.first))


@pytest.mark.fault("W29")
def test_W29_when_index_and_tar_disagree_the_tar_is_right(run: Run) -> None:
    edit_index(run.first, "samples", lambda samples: samples["xxh3"].__setitem__(20, 7), sealed=True)
    shard = open_corpus(str(run.first)).shards[1]
    (problem,) = verify(str(run.first)).problems
    assert (problem.file, problem.what) == (shard, "index and tar disagree about sample 20")
    assert problem.hint.startswith("the tar is right and the index is not")
    assert f"{shard}: sample 20 at byte" in str(loaders_error(run.first))


@pytest.mark.fault("W29")
@pytest.mark.parametrize(("field", "value"), [("start", 1), ("length", 1), ("shard", 3), ("split", 1), ("first_block", 0)])
def test_W29_an_index_that_does_not_describe_the_shards_is_wrong(run: Run, field: str, value: int) -> None:
    edit_index(run.first, "samples", lambda samples: samples[field].__setitem__(5, value), sealed=True)
    assert problems(run.first) == [("index/samples.npy", "does not describe the shards that the manifest lists")]


@pytest.mark.fault("W29")
def test_W29_another_valid_tar_in_a_shards_place_is_found(run: Run) -> None:
    name = open_corpus(str(run.first)).shards[0]
    path = run.first / name
    whole, other = path.read_bytes(), (run.second / name).read_bytes()
    assert len(other) == len(whole)
    write(path, other)
    ((file, what),) = problems(run.first)
    assert file == name
    assert what.startswith("its SHA-256 is not the manifest's; damaged: samples 0, 1, 2, 3, 4 and ")
    assert f"{name}: sample" in str(loaders_error(run.first))
    # One caption is another of the same length; every header is as it was.
    write(path, whole.replace(b"a red square", b"a tan square", 1))
    ((file, what),) = problems(run.first)
    assert (file, what.startswith("its SHA-256 is not the manifest's; damaged: sample")) == (name, True)
    assert "is not what was written" in str(loaders_error(run.first))
    assert not webdataset_notices(path)


@pytest.mark.fault("W29")
def test_W29_what_other_readers_use_is_checked_too(run: Run) -> None:
    write(run.first / "sizes.json", b'{"train-00000.tar": 3}')
    (run.first / "wids.json").unlink()
    assert problems(run.first) == [("sizes.json", "does not list the manifest's shards"), ("wids.json", "missing")]
    assert loaders_error(run.first) is None
