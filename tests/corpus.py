"""Make a small corpus by running a plan over a folder of real images; no network, no model."""

from pathlib import Path

import numpy as np

from mmdata.engine import Runner
from mmdata.executors import InlineExecutor
from mmdata.loader import keyed
from mmdata.plan import Plan
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from tests.conftest import encode

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "black": (10, 10, 10)}
SHAPES = ("square", "bar")


def draw(color: str, shape: str) -> np.ndarray:
    """Draw a coloured shape on white, (32, 32, 3) uint8."""
    image = np.full((32, 32, 3), 255, np.uint8)
    image[8:24, (8 if shape == "square" else 14) : (24 if shape == "square" else 18)] = COLORS[color]
    return image


def make_corpus(folder: Path, num: int, val: float = 0.0) -> str:
    """Write `num` images with captions, run the plan, and return the corpus's folder."""
    source = folder / "images"
    source.mkdir()
    random = keyed("corpus")
    for number in range(num):
        color, shape = str(random.choice(list(COLORS))), str(random.choice(SHAPES))
        (source / f"{number:04d}.png").write_bytes(encode(draw(color, shape)))
        (source / f"{number:04d}.txt").write_text(f"a {color} {shape}", encoding="utf-8")
    sink = Shards(samples=max(4, num // 3), splits={"val": val} if val else {})
    plan = Plan(name="shapes", source=(Folder(path=str(source)),), stages=(Measure(),), sink=sink)
    result = Runner(plan, str(folder / "run")).execute(InlineExecutor(), quiet=True)
    assert result.corpus is not None
    return result.corpus
