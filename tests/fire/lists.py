"""Hostile list files: how the tests write them, read them and run plans over them."""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmdata.engine import Runner, RunResult
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.stages.sources import Catalog
from mmdata.stages.verbs import Sink, Source, Stage
from tests.conftest import write_yaml

# The demo's server has one picture under many hosts; each host is asked a few times a second.
IMAGES = [f"http://host-{number:02d}.demo.localhost/images/lighthouse-matthew-gates.jpg" for number in range(64)]

# Prints what code that runs in `main` came to, then the most memory that this process ever held.
_MEASURED = """
import sys, time
from pathlib import Path
{code}
started = time.monotonic()
came_to = main(*sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]
print(came_to, int(peak) / 1024, time.monotonic() - started)
"""


def entry(folder: Path, fields: str, partition_rows: int = 10_000, skip_unreadable: bool = False) -> Catalog:
    """Return a source of the one entry `x` with these fields."""
    file = write_yaml(folder, f"entries:\n  x: {{{fields}}}\n", "catalog.yaml")
    return Catalog(file=str(file), entry="x", partition_rows=partition_rows, skip_unreadable=skip_unreadable)


def write_lines(path: Path, records: Iterable[object]) -> None:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def rows_of(source: Source) -> list[dict[str, Any]]:
    """Return all rows of a source."""
    return [row for part in source.scan() for row in source.read(part).to_pylist()]


def run_plan(home: Path, source: Source, *stages: Stage, sink: Sink | None = None, allow: tuple[str, ...] = ()) -> RunResult:
    """Run a plan over a source, in this process."""
    plan = Plan(name="fire", source=(source,), stages=stages, sink=sink)
    return Runner(plan, str(home / "run"), allow).execute(InlineExecutor(), quiet=True)


def shard_samples(result: RunResult) -> list[dict[str, bytes]]:
    """Return the members of every sample, by suffix, straight from the tars; no name in them is anyone's but ours."""
    assert result.corpus is not None
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(Path(result.corpus).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert re.fullmatch(r"[0-9a-z_]+(-[0-9]+)?(\.[0-9]+)?\.[a-z0-9]+", member.name)
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(f"{path.name}/{key}", {})[suffix] = file.read()
    return list(samples.values())


def measured(code: str, *args: object, timeout_s: float = 300) -> tuple[str, float, float]:
    """Run code that defines `main` in a process of its own; return what it came to, its peak in MiB, and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED.format(code=code), *map(str, args)],
        capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    came_to, peak, seconds = done.stdout.splitlines()[-1].rsplit(" ", 2)
    return came_to, float(peak), float(seconds)
