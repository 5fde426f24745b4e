"""The benchmarks of deduping run at small sizes, check what they find, and say what their pages say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.dedupe_data import hex_of, planted
from benchmarks.dedupe_quality import matched
from benchmarks.dedupe_semantic import products_of
from mmdata.dedupe.cosine import numpy_screen, tiles


def test_the_quick_form_runs_all_sides_and_says_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.dedupe", "--quick", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    names = [line["name"] for line in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))]
    assert names == ["perceptual_2e4_r4", "perceptual_2e4_r8", "growth_1e4", "growth_2e4", "exact_1e5"]
    assert "the pairs of 3,000 hashes are those of brute force" in done.stdout
    assert "Ours drops the 9,025 copies" in done.stdout


def test_a_threshold_lets_no_more_pass_than_it_may() -> None:
    """Of ten false pairs two may pass: those at 3 and 4. Where the third is at 4 too, only the one at 3."""
    assert matched(np.array([9.0, 3, 4, 7, 8, 9, 9, 9, 9, 9]), 0.2) == 4
    assert matched(np.array([9.0, 3, 4, 4, 8, 9, 9, 9, 9, 9]), 0.2) == 3


def test_copies_are_planted_at_the_distances_that_are_told() -> None:
    made = planted(20_000)
    assert (np.bitwise_count(made.hashes[made.left] ^ made.hashes[made.right]) == made.bits).all()
    assert set(made.bits.tolist()) == set(range(9))
    assert hex_of(np.array([7, 8, 7]), 1).to_pylist()[0::2] == hex_of(np.array([7, 7]), 1).to_pylist()
    assert hex_of(np.array([7]), 1) != hex_of(np.array([7]), 2)


def test_the_tiles_of_the_products_hold_each_pair_once() -> None:
    assert sum(products_of(*tile) for tile in tiles(10_000, numpy_screen())) == 10_000 * 9_999 // 2
