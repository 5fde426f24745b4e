"""What the tests share: the demo's server, one Ray cluster, and small real images."""

import io
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdata import failpoint
from mmdata.demo import DemoServer, serving
from mmdata.engine import Executor

# The stages of another package, found by its entry points: here and, by the environment, in every worker.
PLUGIN = str(Path(__file__).parent / "fire/plugin")
sys.path.insert(0, PLUGIN)
os.environ["PYTHONPATH"] = os.pathsep.join([PLUGIN, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAILPOINT", raising=False)
    failpoint.reset()


@pytest.fixture(scope="session")
def server() -> Iterator[DemoServer]:
    """The demo's server on loopback."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def ray_executor() -> Iterator[Executor]:
    """One Ray cluster for all tests; it takes seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from mmdata.executors import open_executor

    executor = open_executor("ray", workers=2)
    yield executor
    executor.close()


@pytest.fixture
def gradient() -> np.ndarray:
    """A picture whose every pixel says where it is, (60, 90, 3) uint8."""
    y, x = np.mgrid[0:60, 0:90]
    return np.stack([x * 2, y * 4, (x + y)], -1).astype(np.uint8)


def encode(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Encode pixels in a format."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def write_yaml(folder: Path, text: str, name: str = "plan.yaml") -> Path:
    """Write a YAML file and return its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Write what each test of a fault came to, for the gauntlet's page."""
    report = (yield).get_result()
    out = os.environ.get("MMDATA_GAUNTLET_OUT")
    faults = [ident for mark in item.iter_markers("fault") for ident in mark.args]
    if out is None or not faults or (report.when != "call" and report.passed):
        return
    figures = [value for name, value in item.user_properties if name == "figure"]
    line = {"test": item.nodeid, "faults": faults, "outcome": report.outcome, "seconds": report.duration, "figures": figures}
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
