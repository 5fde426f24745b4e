"""The benchmarks of deduping run at small sizes, check what they find, and say what their pages say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_the_quick_form_runs_all_sides_and_says_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.dedupe", "--quick", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    names = [line["name"] for line in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))]
    assert names == ["perceptual_2e4_r4", "perceptual_2e4_r8", "growth_1e4", "growth_2e4", "exact_1e5"]
    assert "the pairs of 3,000 hashes are those of brute force" in done.stdout
    assert "Ours drops the 9,025 copies" in done.stdout
