"""One undisturbed run that the others are compared with."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mmdata.demo import DemoServer
from mmdata.engine import RunResult
from mmdata.executors import InlineExecutor
from tests.flow.small import corpus_digest, run_small, small_plan


@dataclass(frozen=True)
class Undisturbed:
    """A finished run."""

    home: Path
    run_dir: Path
    result: RunResult
    digest: str


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Undisturbed:
    """Run the small plan once, serially."""
    home = tmp_path_factory.mktemp("small")
    result = run_small(small_plan(home), home / "run", InlineExecutor(), server)
    return Undisturbed(home, home / "run", result, corpus_digest(home / "run"))
