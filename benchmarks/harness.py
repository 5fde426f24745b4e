"""What every benchmark shares: peers in environments of their own, alternating runs, one table, one JSON, one page.

A result is an object with `name, ours, peer, peer_name, peer_version, ratio, limit, share_of_limit, unit, runs, range`;
`ours`, `peer` and `limit` are medians. A peer that does not install is null, with its error beside it.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers"


@dataclass(frozen=True)
class Result:
    """One line of a result page; times are medians of `runs` alternating runs."""

    name: str
    ours: float
    peer: float | None
    peer_name: str | None
    peer_version: str | None
    ratio: float | None
    limit: float | None
    share_of_limit: float | None
    unit: str
    runs: int
    range: tuple[float, float]
    error: str | None = None


@dataclass(frozen=True)
class Peer:
    """A peer: its name, and a function that runs it once and returns (value, version)."""

    name: str
    run: Callable[[], tuple[float, str]]


def peer_python(name: str) -> Path:
    """Return the interpreter of a peer's own environment, made from `peers/NAME.txt` when it is not there.

    A file whose first line is `# --no-deps` names all that is needed of itself; with `--ours` behind it, what it does not name
    is taken from our own environment.
    """
    home = PEERS / name
    needed = HERE / "peers" / f"{name}.txt"
    python = home / "bin" / "python"
    if not (home / ".done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        head = needed.read_text(encoding="utf-8").partition("\n")[0]
        alone = ["--no-deps"] if head.startswith("# --no-deps") else []
        if head.startswith("# --no-deps --ours"):
            own = next(home.glob("lib/python*/site-packages"))
            (own / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "install", "--quiet", *alone, "-r", str(needed)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        (home / ".done").touch()
    return python


def compare(
    name: str, ours: Callable[[], float], peer: Peer | None, limit: Callable[[], float] | None, runs: int, unit: str = "s"
) -> Result:
    """Run ours, the peer and the limit in turn; lower is better."""
    mine: list[float] = []
    theirs: list[float] = []
    limits: list[float] = []
    version = error = None
    for _ in range(runs):
        mine.append(ours())
        if peer is not None and error is None:
            try:
                value, version = peer.run()
                theirs.append(value)
            except (subprocess.SubprocessError, OSError, ValueError) as problem:
                error = f"{type(problem).__name__}: {getattr(problem, 'stderr', '') or problem}"[-500:]
        if limit is not None:
            limits.append(limit())
    return summary(name, (mine, theirs, limits), (peer.name if peer else None, version), unit, error)


def summary(
    name: str,
    values: tuple[list[float], list[float], list[float]],
    peer: tuple[str | None, str | None],
    unit: str,
    error: str | None = None,
) -> Result:
    """Make the line of values taken in turn (ours, the peer's, the limit's), and print it; lower is better."""
    mine, theirs, limits = values
    median = statistics.median(mine)
    other = statistics.median(theirs) if theirs else None
    floor = statistics.median(limits) if limits else None
    result = Result(
        name, median, other, peer[0], peer[1], other / median if other else None, floor,
        floor / median if floor else None, unit, len(mine), (min(mine), max(mine)), error,
    )  # fmt: skip
    sys.stdout.write(line(result) + "\n")
    sys.stdout.flush()
    return result


def line(result: Result) -> str:
    """Return a result as a line of the table."""
    peer = "-" if result.peer is None else f"{result.peer:.3g}"
    ratio = "-" if result.ratio is None else f"{result.ratio:.2f}x"
    share = "-" if result.share_of_limit is None else f"{result.share_of_limit:.0%}"
    low, high = result.range
    name = f"{result.peer_name or ''} {result.peer_version or ''}".strip()
    mine = f"{result.name:<28}{result.ours:>10.4g} {result.unit:<6}({low:.3g}..{high:.3g})"
    return f"{mine}  {name} {peer}  {ratio}  of limit {share}"


def arguments(description: str) -> argparse.Namespace:
    """Read `--quick` and `--json FILE`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer runs and sizes; never committed")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args()


def publish(name: str, results: list[Result], options: argparse.Namespace, notes: str) -> None:
    """Write the JSON and, after a full run, the result page."""
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    if options.quick:
        return
    page = HERE / "results" / f"{name}.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(_page(name, results, notes), encoding="utf-8")


def _page(name: str, results: list[Result], notes: str) -> str:
    head = "| name | ours (median) | range | peer | ratio (peer / ours) | limit | share of limit | runs |\n" + "|---" * 8 + "|"
    rows = [
        f"| {r.name} | {r.ours:.4g} {r.unit} | {r.range[0]:.4g} to {r.range[1]:.4g} | "
        + (f"{r.peer_name} {r.peer_version}: {r.peer:.4g} {r.unit}" if r.peer is not None else (r.error or "-"))
        + f" | {'-' if r.ratio is None else f'{r.ratio:.2f}'} | {'-' if r.limit is None else f'{r.limit:.4g} {r.unit}'} | "
        + f"{'-' if r.share_of_limit is None else f'{r.share_of_limit:.0%}'} | {r.runs} |"
        for r in results
    ]
    return "\n".join([f"# {name}", "", stamp(name), "", head, *rows, "", notes.strip(), ""])


def stamp(name: str) -> str:
    """Say by what, when, from which commit and where a page was made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    made = f"Made by `python -m benchmarks.{name}` on {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}"
    return f"{made}, {machine}, 2 shared cores."
