"""The loopback web, and img2dataset itself, run as its users run it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fit.web import Web, web

# Its packages look for newer releases of themselves and would log to a service: nothing leaves this machine.
QUIET = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="session")
def site() -> Iterator[Web]:
    """The loopback web."""
    with web() as server:
        yield server


# Packages that it would load and, here, not use: each of its three processes takes seconds for them.
_UNUSED = {name: f"raise ModuleNotFoundError('not used', name='{name}')" for name in ("torch", "ray")} | {"wandb": "run = None"}


def img2dataset(**options: object) -> None:
    """Run img2dataset itself with the given flags."""
    with tempfile.TemporaryDirectory() as lean:
        for name, text in _UNUSED.items():
            (Path(lean) / f"{name}.py").write_text(text, encoding="utf-8")
        _run(lean, options)


def _run(lean: str, options: dict[str, object]) -> None:
    flags = [f"--{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in options.items()]
    command = [sys.executable, "-W", "ignore", "-m", "img2dataset.main", *flags]
    env = {**os.environ, **QUIET, "PYTHONPATH": lean}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def write_list(folder: Path, rows: list[dict[str, object]], name: str = "list.jsonl") -> Path:
    """Write a JSON-lines list."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
