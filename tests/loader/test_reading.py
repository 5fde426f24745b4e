"""Reading: every byte verified, troubles tried again, damage named, a budget kept, a cache within its limit."""

import io
import json
import pickle
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from mmdata.errors import ConfigError, RunError
from mmdata.loader import Cache, Loader, Options, Sample, read_sample
from mmdata.shards import Corpus, open_corpus
from mmdata.shards.members import TAR_BLOCK
from tests.bomb import Bomb
from tests.fire.damage import edit_index
from tests.loader.web import serving

ONCE = Options(batch_size=8, epochs=1)


def ids(loader: Loader[Any]) -> list[str]:
    with loader:
        return [sample.sample_id for batch in loader for sample in batch.items]


def changed(**options: Any) -> Options:  # noqa: ANN401
    from dataclasses import replace

    return replace(ONCE, **options)


def break_shard(url: str, byte: int) -> str:
    """Change one byte of the first shard and return the shard's name."""
    shard = Path(url) / open_corpus(url).shards[0]
    data = bytearray(shard.read_bytes())
    data[byte] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    return shard.name


def test_samples_are_what_was_stored(corpus: str) -> None:
    opened = open_corpus(corpus)
    with Loader(opened, options=ONCE) as loader:
        for batch in loader:
            for sample in batch.items:
                assert sample.members == opened.read(sample.index)
                image, text = sample.blocks
                assert image.image is not None
                assert image.image.shape == (32, 32, 3)
                assert text.text == sample.meta["caption"] == sample.texts[0]
                assert sample.sample_id == sample.meta["sample_id"]


def test_a_damaged_shard_is_named(corpus: str) -> None:
    name = break_shard(corpus, 600)
    with pytest.raises(RunError, match=rf"{name}: sample 0 at byte 0 is not what was written"):
        open_corpus(corpus).read(0)
    with pytest.raises(RunError, match=rf"{name}: sample 0 at byte 0 is not what was written"):
        ids(Loader(corpus, options=ONCE))


def test_a_step_that_cannot_be_read_stays_the_next_one(corpus: str) -> None:
    with Loader(corpus, options=ONCE) as loader:
        whole = [batch.draws for batch in loader]
    name = break_shard(corpus, 600)
    with Loader(corpus, options=ONCE) as loader:
        given, errors = [], set()
        for _ in range(10):
            try:
                given.append(next(loader).draws)
            except RunError as error:
                errors.add(str(error))
        assert given == whole[: len(given)]
        assert loader.step == len(given)
        assert len(errors) == 1
        assert f"{name}: sample 0 at byte 0" in errors.pop()


@pytest.mark.fault("L13")
def test_with_a_budget_a_damaged_sample_is_left_out_and_nothing_shifts(corpus: str) -> None:
    with Loader(corpus, options=ONCE) as loader:
        whole = [batch.draws for batch in loader]
    name = break_shard(corpus, 600)
    for threads in (0, 3):
        with Loader(corpus, options=changed(bad_samples=1, threads=threads)) as loader:
            batches = list(loader)
        assert [batch.draws for batch in batches] == whole
        bad = [message for batch in batches for message in batch.bad]
        assert len(bad) == 1
        assert f"{name}: sample 0" in bad[0]
        assert sum(len(batch) for batch in batches) == 39
        assert [sum(len(row) for row in batch.rows) for batch in batches] == [len(batch) for batch in batches]
        assert loader.stats().bad == 1


@pytest.mark.fault("L13")
def test_a_shard_that_goes_missing_is_named(corpus: str) -> None:
    opened = open_corpus(corpus)
    name = opened.shards[1]
    with Loader(opened, options=changed(threads=0, batch_size=1)) as loader:
        (Path(corpus) / name).unlink()
        with pytest.raises(RunError, match=rf"{name}: sample \d+ at byte \d+ cannot be read: the shard is missing"):
            list(loader)
    with (
        Loader(opened, options=changed(bad_samples=5)) as loader,
        pytest.raises(RunError, match="the shard is missing"),
    ):
        list(loader)


def test_a_sample_that_cannot_be_decoded_is_named(corpus: str) -> None:
    name = break_shard(corpus, int(open_corpus(corpus).blocks_of(0)[0]["offset"]))
    length = int(open_corpus(corpus).samples[0]["length"]) * TAR_BLOCK
    xxh3 = xxhash.xxh3_64_intdigest((Path(corpus) / name).read_bytes()[:length])
    edit_index(Path(corpus), "samples", lambda samples: samples["xxh3"].__setitem__(0, xxh3), sealed=True)
    with pytest.raises(RunError, match=rf"{name}: sample 0 at byte 0 cannot be decoded: not an image of a known format"):
        _ = read_sample(open_corpus(corpus), 0).blocks
    with pytest.raises(RunError, match=rf"{name}: sample 0 at byte 0 cannot be decoded"):
        ids(Loader(corpus, options=ONCE))


def test_an_edited_manifest_is_refused(corpus: str) -> None:
    manifest = Path(corpus) / "corpus.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"samples": 40', '"samples": 41', 1), encoding="utf-8")
    with pytest.raises(RunError, match="does not match its own digest"):
        Loader(corpus)


def test_a_transform_that_fails_names_its_sample(corpus: str) -> None:
    def broken(sample: Sample, random: np.random.Generator) -> int:
        raise ValueError(f"no {random.integers(1, 2)}")

    with (
        Loader(corpus, options=changed(bad_samples=99), transform=broken) as loader,
        pytest.raises(ValueError, match="no 1") as caught,
    ):
        next(loader)
    assert "in the transform of" in caught.value.__notes__[0]
    assert ".tar: sample" in caught.value.__notes__[0]


@pytest.mark.parametrize("shuffle", ["samples", "blocks", "none"])
def test_over_http_the_stream_is_the_same(corpus: str, shuffle: Any) -> None:  # noqa: ANN401
    options = changed(shuffle=shuffle, block=4)
    local = ids(Loader(corpus, options=options))
    with serving(Path(corpus)) as (server, url):
        server.faults = ["503", "wrong", "503"]
        assert ids(Loader(url, options=options)) == local
        assert server.faults == []
        reads = [size for name, size in server.ranges if name.endswith(".tar")]
    if shuffle != "samples":
        # Neighbours are asked for together: ten blocks, two of them cut by a border of shards, three ends, and what was ill.
        assert len(reads) <= 10 + 2 + 4 + 3 * 5


def test_what_stays_wrong_over_http_is_an_error_that_says_so(corpus: str) -> None:
    with serving(Path(corpus)) as (server, url):
        server.faults = ["wrong"] * 1000
        with pytest.raises(RunError, match=rf"{url}/train-\d+.tar: sample \d+ at byte \d+ cannot be trusted: the shard's end"):
            ids(Loader(url, options=changed(threads=0, batch_size=1)))


def test_a_cache_keeps_its_limit_and_saves_requests(corpus: str, tmp_path: Path) -> None:
    opened = open_corpus(corpus)
    sizes = [shard.bytes for shard in opened.manifest.shards]
    local = ids(Loader(corpus, options=ONCE))
    with serving(Path(corpus)) as (server, url):
        for limit, most in ((sum(sizes), len(sizes)), (max(sizes) + 1, 1)):
            cache = Cache(tmp_path / f"cache-{limit}", limit)
            for _ in range(2):
                assert ids(Loader(url, options=changed(cache=cache))) == local
                held = [path.stat().st_size for path in cache.folder.glob("*.tar")]
                assert sum(held) <= limit
                assert len(held) <= most
        before = len(server.ranges)
        assert ids(Loader(url, options=changed(cache=Cache(tmp_path / f"cache-{sum(sizes)}", sum(sizes))))) == local
        assert [name for name, size in server.ranges[before:] if name.endswith(".tar") and size > 20_000] == []


def test_a_cached_shard_that_is_damaged_is_fetched_from_where_it_came(corpus: str, tmp_path: Path) -> None:
    local = ids(Loader(corpus, options=ONCE))
    with serving(Path(corpus)) as (_, url):
        cache = Cache(tmp_path / "cache", 1 << 30)
        ids(Loader(url, options=changed(cache=cache)))
        for path in cache.folder.glob("*.tar"):
            data = bytearray(path.read_bytes())
            data[700] ^= 1
            path.write_bytes(data)
        assert ids(Loader(url, options=changed(cache=cache))) == local


def test_threads_share_a_cache(corpus: str, tmp_path: Path) -> None:
    local = ids(Loader(corpus, options=ONCE))
    with serving(Path(corpus)) as (_, url):
        cache = Cache(tmp_path / "cache", max(shard.bytes for shard in open_corpus(corpus).manifest.shards) + 1)
        found: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda: found.append(ids(Loader(url, options=changed(cache=cache))))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [local] * 3


def test_a_cache_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a cache of 0 bytes"):
        Cache(tmp_path, 0)


def test_statistics_name_the_bottleneck(corpus: str) -> None:
    import time

    with Loader(corpus, options=changed(threads=1)) as loader:
        for _ in loader:
            pass
        stats = loader.stats()
    assert stats.samples == 40
    assert stats.batches == 5
    assert stats.bytes == sum(open_corpus(corpus).samples["length"].tolist()) * TAR_BLOCK
    assert stats.read_s > 0
    assert "40 samples" in stats.as_text()

    def slow(sample: Sample, random: np.random.Generator) -> int:
        time.sleep(0.01)
        return 0

    with Loader(corpus, options=changed(threads=1, decode=False), transform=slow) as held_up:
        list(held_up)
    assert held_up.stats().bottleneck == "transform"
    with Loader(corpus, options=changed(ahead=40, decode=False)) as loader:
        for _ in loader:
            time.sleep(0.1)
    assert loader.stats().bottleneck == "model"
    assert "the model is the bottleneck" in loader.stats().as_text()


@pytest.mark.fault("L18")
def test_nothing_in_a_shard_or_a_state_is_run(tmp_path: Path, corpus: str) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    evil = _with_members(corpus, {"pyd": bomb, "pickle": bomb, "pth": bomb, "npy": bomb})
    with Loader(evil, options=ONCE) as loader:
        for batch in loader:
            for sample in batch.items:
                assert sample.blocks[1].text
                if sample.index == 0:
                    assert sample.members["pickle"] == bomb
    with Loader(corpus) as loader, pytest.raises(ConfigError, match="not valid JSON"):
        loader.restore(bomb)
    assert not marker.exists()


def _with_members(url: str, more: dict[str, bytes]) -> Corpus:
    """Put members behind the first sample of the first shard, and index and manifest right."""
    opened = open_corpus(url)
    shard = Path(url) / opened.shards[0]
    data, end = shard.read_bytes(), int(opened.samples[0]["length"]) * TAR_BLOCK
    key = data[:100].rstrip(b"\0").decode().split(".")[0]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, body in more.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        added = buffer.getvalue()[: tar.offset]
    made = data[:end] + added + data[end:]
    made += b"\0" * (-len(made) % tarfile.RECORDSIZE)
    shard.unlink()
    shard.write_bytes(made)
    blocks = len(added) // TAR_BLOCK
    last = opened.manifest.shards[0].samples

    def edit(samples: np.ndarray) -> None:
        samples["length"][0] += blocks
        samples["start"][1:last] += blocks
        samples["xxh3"][0] = xxhash.xxh3_64_intdigest(made[: end + len(added)])

    edit_index(Path(url), "samples", edit, sealed=True)
    manifest = Path(url) / "corpus.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    facts["shards"][0]["bytes"] = len(made)
    from mmdata.shards.sealed import seal

    manifest.write_text(json.dumps(seal(facts)), encoding="utf-8")
    return open_corpus(url)


def test_captions_are_drawn_by_weight_and_by_the_samples_own_key(tmp_path: Path) -> None:
    corpus = captioned(tmp_path)
    given = {sample.index: sample.texts[0] for sample in _all(Loader(corpus, options=ONCE))}
    assert set(given.values()) == {"plain"}

    def drawn(threads: int, seed: int, **weights: float) -> list[str]:
        options = changed(threads=threads, captions=weights, epochs=30, decode=False, seed=seed)
        return [sample.texts[0] for sample in _all(Loader(corpus, options=options))]

    texts = drawn(0, 0, text=1.0, alt=3.0)
    assert texts == drawn(3, 0, text=1.0, alt=3.0)
    assert texts != drawn(0, 1, text=1.0, alt=3.0)
    share = np.mean([text.startswith("alt") for text in texts])
    assert 0.65 < share < 0.85
    assert {text for text in texts if text.startswith("alt")} == {"alt one", "alt two"}
    assert set(drawn(0, 0, other=1.0)) == {"plain"}


def _all(loader: Loader[Sample]) -> list[Sample]:
    with loader:
        return [sample for batch in loader for sample in batch.items]


def captioned(folder: Path) -> str:
    """Make a corpus whose samples have two further captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmdata.engine import Runner
    from mmdata.executors import InlineExecutor
    from mmdata.plan import Plan
    from mmdata.stages.download import Download
    from mmdata.stages.shards import Shards
    from mmdata.stages.sources import Catalog
    from tests.conftest import encode
    from tests.corpus import draw

    site = folder / "site"
    site.mkdir()
    for number in range(12):
        (site / f"{number}.png").write_bytes(encode(draw("red", "bar")))
    with serving(site) as (server, url):
        rows = {
            "url": [f"{url}/{number}.png" for number in range(12)],
            "text": ["plain"] * 12,
            "alt": [["alt one", "alt two"]] * 12,
        }
        pq.write_table(pa.table(rows), folder / "list.parquet")
        entry = "entries:\n  own: {files: [list.parquet], columns: {url: url, text: text, captions: [alt]}}\n"
        (folder / "catalog.yaml").write_text(entry, encoding="utf-8")
        source = Catalog(file=str(folder / "catalog.yaml"), entry="own")
        plan = Plan(name="captions", source=(source,), stages=(Download(image_size=32),), sink=Shards())
        allowed = (url.removeprefix("http://"),)
        result = Runner(plan, str(folder / "run"), allowed).execute(InlineExecutor(), quiet=True)
    assert server is not None
    assert result.corpus is not None
    return result.corpus
