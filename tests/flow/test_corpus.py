"""The corpus is what its readers expect."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mmdata.engine import RunStore
from mmdata.loader import read_sample
from mmdata.report.fates import fates
from mmdata.shards import open_corpus
from mmdata.storage import digest_file
from tests.flow.conftest import Undisturbed

MEMBER = re.compile(r"^[0-9a-z_]+(-[0-9]+)?(\.[0-9]+)?\.[a-z0-9]+$")


def test_members_have_our_names_in_order(undisturbed: Undisturbed) -> None:
    corpus = undisturbed.run_dir / "corpus"
    keys: list[str] = []
    for path in sorted(corpus.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert MEMBER.match(member.name), member.name
                assert member.mtime == 0
                keys.append(member.name.split(".")[0])
    assert keys == sorted(keys)


def test_the_manifest_says_what_is_there(undisturbed: Undisturbed) -> None:
    corpus = open_corpus(str(undisturbed.run_dir / "corpus"))
    facts = corpus.facts
    funnel = undisturbed.result.funnel
    assert facts["funnel"] == funnel
    assert len(corpus.samples) == facts["samples"]
    for shard in facts["shards"]:  # type: ignore[attr-defined]
        path = undisturbed.run_dir / "corpus" / shard["name"]
        assert path.stat().st_size == shard["bytes"]
        assert digest_file(path) == shard["sha256"]
    assert sum(corpus.samples["num_blocks"]) == len(corpus.blocks)
    sizes = json.loads((undisturbed.run_dir / "corpus/sizes.json").read_text(encoding="utf-8"))
    assert sum(sizes.values()) == facts["samples"]


def test_every_kept_row_is_in_the_corpus_with_its_own_text(undisturbed: Undisturbed) -> None:
    rows = fates(RunStore(str(undisturbed.run_dir)), ["sample_id", "text", "url", "document", "clip_score"]).to_pylist()
    kept = {row["sample_id"]: row for row in rows if row["reason"] is None and not row["document"]}
    corpus = open_corpus(str(undisturbed.run_dir / "corpus"))
    seen = set()
    for index in range(len(corpus.samples)):
        sample = read_sample(corpus, index)
        seen.add(sample.sample_id)
        if sample.sample_id in kept:
            row = kept[sample.sample_id]
            assert [block.kind for block in sample.blocks] == ["image", "text"]
            assert sample.blocks[1].text == row["text"] == sample.meta["caption"]
            assert sample.meta["url"] == row["url"]
            assert sample.meta["clip_score"] == row["clip_score"]
            height, width = sample.blocks[0].image.shape[:2]  # type: ignore[union-attr]
            assert (sample.meta["height"], sample.meta["width"]) == (height, width)
    assert seen == {row["sample_id"] for row in rows if row["reason"] is None}


def test_the_document_keeps_its_order(undisturbed: Undisturbed) -> None:
    corpus = open_corpus(str(undisturbed.run_dir / "corpus"))
    documents = [index for index in range(len(corpus.samples)) if corpus.samples[index]["num_blocks"] > 2]
    assert len(documents) == 1
    sample = read_sample(corpus, documents[0])
    assert [block.kind for block in sample.blocks] == ["text", "image"] * 4
    assert str(sample.blocks[0].text).startswith("A small sailing boat")
    assert all(isinstance(block.image, np.ndarray) for block in sample.blocks[1::2])


def test_webdataset_opens_it(undisturbed: Undisturbed) -> None:
    import webdataset

    shards = [str(path) for path in sorted((undisturbed.run_dir / "corpus").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    corpus = open_corpus(str(undisturbed.run_dir / "corpus"))
    assert [json.loads(sample["json"])["sample_id"] for sample in samples] == [
        corpus.sample_id(index) for index in range(len(corpus.samples))
    ]


@pytest.mark.filterwarnings("ignore")
def test_open_clips_reader_opens_it(undisturbed: Undisturbed) -> None:
    import argparse

    import open_clip
    from open_clip_train.data import get_wds_dataset

    from mmdata.models import TINY_CLIP_FOLDER

    name = f"local-dir:{TINY_CLIP_FOLDER}"
    _, _, preprocess = open_clip.create_model_and_transforms(name)
    shards = sorted(path.name for path in (undisturbed.run_dir / "corpus").glob("*.tar"))
    pairs = sum(sample["num_blocks"] == 2 for sample in open_corpus(str(undisturbed.run_dir / "corpus")).samples)
    args = argparse.Namespace(
        train_data=None, val_data="::".join(str(undisturbed.run_dir / "corpus" / shard) for shard in shards),
        val_num_samples=int(pairs), batch_size=4, workers=0, world_size=1, seed=0, distributed=False,
    )  # fmt: skip
    data = get_wds_dataset(args, preprocess, is_train=False, tokenizer=open_clip.get_tokenizer(name))
    num = sum(len(texts) for _, texts in data.dataloader)
    assert num == pairs


def test_the_download_folder_is_img2datasets_layout(undisturbed: Undisturbed) -> None:
    (folder,) = (undisturbed.run_dir / "payload").glob("*/download")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(f"{number:05d}{suffix}" for number in range(5) for suffix in (".tar", ".parquet", "_stats.json"))
    stats = [json.loads((folder / f"{number:05d}_stats.json").read_text(encoding="utf-8")) for number in range(5)]
    assert sum(each["successes"] for each in stats) > 40


def test_nothing_of_the_run_is_a_pickle(undisturbed: Undisturbed) -> None:
    suffixes = {path.suffix for path in undisturbed.run_dir.rglob("*") if path.is_file()}
    allowed = {".json", ".parquet", ".tar", ".arrow", ".npy", ".samples", ".blocks", ".sample_ids", ".beat", ".end", ""}
    assert suffixes <= allowed
    for path in Path(undisturbed.run_dir).rglob("*.npy"):
        np.load(path, allow_pickle=False)
