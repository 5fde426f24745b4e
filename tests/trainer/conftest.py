"""What the trainer's tests share: one thread, and a corpus of drawn shapes, once a file."""

import pytest
import torch

from tests.corpus import make_corpus


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("shapes"), num=48, val=0.2)
