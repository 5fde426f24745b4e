"""Two corpora of different sizes, and a damaged one."""

from pathlib import Path

import pytest

from tests.corpus import make_corpus


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two corpora by name, of 40 and 23 samples."""
    home = tmp_path_factory.mktemp("corpora")
    return {name: make_corpus(_folder(home / name), num=num) for name, num in (("a", 40), ("b", 23))}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A corpus of 40 samples that a test may damage."""
    return make_corpus(tmp_path, num=40)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
