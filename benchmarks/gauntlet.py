"""The long chaos run: every fault with all its seeds, and the page that says what survived.

    python -m benchmarks.gauntlet [TEST FILES]

runs the tests that carry a fault's id, with all seeds, and writes `benchmarks/results/gauntlet.md` from what they said. With
files only these are run, and the others keep what they said last. `--page` only writes the page.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fire.matrix import ROWS

HERE = Path(__file__).parent
RAW = HERE / "results/gauntlet.jsonl"
PAGE = HERE / "results/gauntlet.md"
PACKAGES = ("pyarrow", "ray", "s3fs", "moto", "webdataset")
_KILLS = re.compile(r"(\d+)/(\d+) kills byte-identical")

LONG = ["tests/fire", "tests/loader", "tests/scores/test_compiled.py"]


@dataclass
class Row:
    """What the tests of one fault came to."""

    survived: int = 0
    injected: int = 0
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)


def run(tests: list[str]) -> int:
    """Run the tests of faults, all or those given; what they say takes the place of what they said before."""
    fresh = RAW.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    env = {**os.environ, "MMDATA_GAUNTLET": "1", "MMDATA_GAUNTLET_OUT": str(fresh)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(tests or LONG)]
    code = subprocess.run(command, env=env, check=False).returncode
    found = {result["test"]: result for path in (RAW, fresh) if path.exists() for result in read(path)} if tests else {}
    found |= {result["test"]: {**result, "commit": commit()} for result in read(fresh)}
    RAW.write_text("".join(json.dumps(found[test]) + "\n" for test in sorted(found)), encoding="utf-8")
    fresh.unlink()
    return code


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def rows(results: list[dict[str, Any]]) -> dict[str, Row]:
    found: dict[str, Row] = defaultdict(Row)
    for result in results:
        for ident in result["faults"]:
            row = found[ident]
            row.injected += 1
            row.survived += result["outcome"] == "passed"
            row.seconds += float(result["seconds"])
            row.figures += [str(figure) for figure in result["figures"] if figure not in row.figures]
    return found


def page(results: list[dict[str, Any]]) -> str:
    found = rows(results)
    survived = sum(result["outcome"] == "passed" for result in results)
    kills = [_KILLS.search(str(figure)) for result in results for figure in result["figures"]]
    pairs = [(int(match[1]), int(match[2])) for match in kills if match]
    seconds = sum(float(result["seconds"]) for result in results)
    lines = [
        "# The gauntlet", "",
        "Written by `make gauntlet` from its own results; `gauntlet.jsonl` beside it is what the tests said.", "",
        *(f"- {line}" for line in facts(results, seconds)),
        f"- faults survived / injected: {survived} / {len(results)} (a test with its seed is one injection)",
        f"- kill points that ended byte-identical / tried: {sum(a for a, _ in pairs)} / {sum(b for _, b in pairs)}",
        "- rows lost 0, duplicated 0, unaccounted 0 in every survived one: each compares bytes or ids with an undisturbed run, "
        "and asserts rows in + made by splits = kept + dropped + split",
        "", "| id | fault | survived / injected | s | figures |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for ident, title in ROWS.items():
        row = found.get(ident, Row())
        lines.append(f"| {ident} | {title} | {row.survived} / {row.injected} | {row.seconds:.0f} | {_figures(row.figures)} |")
    failed = [str(result["test"]) for result in results if result["outcome"] != "passed"]
    if failed:
        lines += ["", "## Not survived", "", *(f"- `{test}`" for test in failed)]
    return "\n".join([*lines, "", *NOT_CLAIMED, ""])


NOT_CLAIMED = (
    "**Not claimed:** power loss on real disks (the order of syncs is modelled, W35), clusters beyond one machine, S3 other than",
    "moto's server, macOS. W05 and W09 are the steps of W04 and W07 at other objects; one fail-point serves both.",
)


def facts(results: list[dict[str, Any]], seconds: float) -> list[str]:
    commits = ", ".join(sorted({result["commit"] for result in results}))
    return [
        f"date {time.strftime('%Y-%m-%d')}, commit {commits}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"tests took {seconds / 60:.0f} min",
    ]


def _figures(figures: list[str], most: int = 4) -> str:
    shown = "; ".join(figures[:most])
    return shown if len(figures) <= most else f"{shown}; and {len(figures) - most} more"


def main() -> None:
    extra = [arg for arg in sys.argv[1:] if arg != "--page"]
    code = 0 if "--page" in sys.argv[1:] else run(extra)
    results = read(RAW)
    PAGE.write_text(page(results), encoding="utf-8")
    sys.stderr.write(f"{PAGE}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
