"""Compiled towers give the same scores. torch takes half a minute to compile even a small model: `make gauntlet` runs this."""

from pathlib import Path

import numpy as np
import pytest

from mmdata.models import OpenClip
from tests.fire.seeds import GAUNTLET
from tests.scores.small import write_model


@pytest.mark.skipif(not GAUNTLET, reason="half a minute: make gauntlet")
def test_compiled_towers_give_the_same_scores(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    images = [np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8) for seed in range(5)]
    found = {}
    for compiled in (False, True):
        with OpenClip(model=f"local-dir:{folder}", batch=4, compile=compiled).open("cpu", 1) as towers:
            assert towers.profile["compiled"] is compiled
            found[compiled] = towers.score(images, ["a cat"] * 5)
    assert found[True] == pytest.approx(found[False], abs=1e-5)
