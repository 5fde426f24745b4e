"""The corpus of shapes: 64 pictures that differ, eight combinations of known words held out, the same bytes every time."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmdata.demo.shapes import held_out, nearest_template, templates, write_shapes
from mmdata.errors import ConfigError, RunError
from mmdata.loader import keyed, read_sample
from mmdata.shards import open_corpus, verify


@pytest.mark.parametrize("size", [12, 16, 32])
def test_no_two_pictures_are_alike(size: int) -> None:
    images, captions = templates(size)
    assert images.shape == (64, size, size, 3)
    assert len(set(captions)) == len({image.tobytes() for image in images}) == 64
    assert {len(caption.split()) for caption in captions} == {3}
    noisy = np.clip(images + keyed("noise", size).normal(0, 12, images.shape), 0, 255).astype(np.uint8)
    assert nearest_template(noisy).tolist() == list(range(64))


def test_every_word_and_pair_of_words_is_seen_in_training() -> None:
    _, captions = templates()
    held, seen = ({captions[n] for n in range(64) if (n in held_out()) is is_held} for is_held in (True, False))
    assert (len(held), len(seen)) == (8, 56)
    assert set(Counter(word for caption in held for word in caption.split()).values()) == {2}
    pairs = {tuple(words[:at] + words[at + 1 :]) for words in (caption.split() for caption in seen) for at in range(3)}
    assert len(pairs) == 3 * 16


def test_the_corpus_is_a_corpus(tmp_path: Path) -> None:
    url = write_shapes(tmp_path, size=16, copies=3)
    assert not verify(url).problems
    corpus, (images, captions) = open_corpus(url), templates(16)
    found: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
    for number, facts in enumerate(corpus.samples):
        sample = read_sample(corpus, number)
        (image,) = [block.image for block in sample.blocks if block.image is not None]
        (text,) = [block.text for block in sample.blocks if block.text is not None]
        combination = captions.index(text)
        assert np.array_equal(image, images[combination])
        assert sample.meta["combination"] == combination
        found[corpus.splits[facts["split"]]][text] += 1
    assert found["val"] == Counter(captions[number] for number in held_out())
    assert found["train"] == Counter(dict.fromkeys(captions, 3) | dict.fromkeys(found["val"], 0)) + Counter()


def test_the_same_arguments_give_the_same_bytes_and_others_another_folder(tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    urls = [write_shapes(tmp_path / name, copies=2) for name in ("a", "b", "a")]
    assert urls[0] == urls[2]
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with pytest.raises(RunError, match="exists with other bytes"):
        write_shapes(tmp_path / "a", copies=3)


def test_a_size_that_cannot_be_drawn_is_refused() -> None:
    for size in (8, 14):
        with pytest.raises(ConfigError, match=f"shapes of {size} px cannot be drawn alike in each quadrant"):
            templates(size)
