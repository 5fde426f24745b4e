"""Input that training cannot use is refused before it starts: what, where, and what to do."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from mmdata.errors import ConfigError
from mmdata.shards import index_folder
from mmdata.trainer import train
from mmdata.trainer.checkpoint import open_checkpoint
from mmdata.trainer.use import Generator
from mmdata.trainer.vision import make_tokenizer
from mmdata.trainer.vision.config import KmeansSpec, PatchesSpec
from tests.conftest import encode
from tests.corpus import draw, make_corpus
from tests.trainer.common import codebook, config

CODES = {"objective": "ar", "repr": {"gen": "vq"}}


def foreign(folder: Path, **members: bytes) -> str:
    """Write a tar of four samples with these members, and index it."""
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "00000.tar")) as tar:
        for number in range(4):
            tar.write({"__key__": f"{number:06d}", **members})
    index_folder(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"txt": b"a red square"}, r"no image in it: text alone\n.*pairs or documents"),
        ({"png": encode(draw("red", "bar"))}, r"no text in it: image alone"),
    ],
)
def test_a_corpus_without_what_is_trained_on(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    corpus = foreign(tmp_path / "tars", **members)
    with pytest.raises(ConfigError, match=message):
        train(config(corpus=corpus), tmp_path / "out")
    assert not list((tmp_path / "out").glob("step-*"))


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, num=6)
    with pytest.raises(ConfigError, match=r"no samples of split `trian`; it has train"):
        train(config(corpus=corpus, split="trian"), tmp_path / "out")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({**CODES, "tokenizer": "none"}, r"none/tokenizer.json: .*not the folder of an image tokenizer"),
        ({"repr": {"gen": "vae"}, "tokenizer": "codes"}, r"makes codes, and `image.repr.gen: vae` needs the other"),
        ({**CODES, "tokenizer": "patches"}, r"makes numbers, and `image.repr.gen: vq` needs the other"),
        ({**CODES, "tokenizer": "codes", "size": 10}, r"a token is 4 pixels wide; `image.size` 10 is no"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_does_not_fit(tmp_path: Path, image: dict[str, Any], message: str) -> None:
    corpus = make_corpus(tmp_path, num=6)
    make_tokenizer(PatchesSpec(kind="patches", factor=4)).save(tmp_path / "patches")
    codebook(tmp_path).rename(tmp_path / "codes")
    asked = config(corpus=corpus, image=image | {"tokenizer": str(tmp_path / image["tokenizer"])}, mask="causal")
    with pytest.raises(ConfigError, match=message):
        train(asked, tmp_path / "out")


def test_a_training_goes_on_with_its_own_image_tokenizer_alone(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, num=8)

    def asked(folder: Path, steps: int) -> Any:  # noqa: ANN401 - a config
        image = {**CODES, "tokenizer": str(folder)}
        optim = {"steps": steps, "rows": 2, "micro_rows": 2, "warmup": 1, "schedule": "constant"}
        return config(corpus=corpus, image=image, mask="causal", optim=optim)

    train(asked(codebook(tmp_path), 2), tmp_path / "out")
    other = make_tokenizer(KmeansSpec(kind="kmeans", factor=4, codes=16))
    other.load_state_dict({"codebook_KP": torch.rand(16, 48)})
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"image encoders"):
        train(asked(tmp_path / "other", 2), tmp_path / "out")
    # The checkpoint holds the one it was trained with, wherever the folder has gone.
    shutil.rmtree(tmp_path / "codebook")
    generator = Generator.load(open_checkpoint(tmp_path / "out" / "step-000002"))
    assert generator.images(["a red bar"])[0].shape == (8, 8, 3)
    assert isinstance(generator.captions([draw("red", "bar")])[0], str)
