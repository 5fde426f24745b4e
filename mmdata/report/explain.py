"""Why a sample is in or out: every column, verdict and record of it."""

import json
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mmdata.engine.keys import SOURCE
from mmdata.engine.runstore import Generation, Partition, RunStore, load_generation
from mmdata.engine.state import CHILD_BITS, State
from mmdata.engine.view import PartitionView, lent_names
from mmdata.errors import ConfigError, printable
from mmdata.schema import ROW

_STATE = ("reason", "stage", "keeper_id", "keeper_position", "value")


def explain(url: str, sample_id: str) -> str:
    """Return all that the newest finished generation knows of a sample, as text."""
    run = RunStore(url)
    numbers = run.finished()
    if not numbers:
        raise ConfigError(f"{url}: no finished generation", hint="give the --run-dir of a run that has ended")
    generation = load_generation(url, numbers[-1])
    heads = run.manifest(numbers[-1])["heads"]
    keys = run.keys(generation.number)
    found: list[str] = []
    for partition, head in zip(generation.partitions, heads, strict=True):
        if head is not None:  # else the partition was given up
            found += _in_partition(PartitionView(run, generation.plan, keys, partition), generation, head, sample_id)
    if not found:
        raise ConfigError(f"no sample `{sample_id}` in {url}", hint="ids are 32 hex digits, as in a sample's JSON")
    return "\n\n".join(found)


def _in_partition(view: PartitionView, generation: Generation, head: str, sample_id: str) -> list[str]:
    record = view.run.record(head)
    assert record is not None
    fates = State.from_bytes(view.run.state_of(record)).table()
    texts = []
    for space in range(len(set(fates.column("space").to_pylist()))):
        rows = fates.filter(pc.equal(fates.column("space"), space))
        numbers = rows.column(ROW).to_numpy()
        home = {"sample_id": view.homes_in(space)["sample_id"]}
        ids = view.columns(home, numbers, space).column("sample_id").to_pylist()
        for place, ident in enumerate(ids):
            if ident.startswith(sample_id):
                fate = {name: rows.column(name)[place].as_py() for name in _STATE}
                texts.append(_row_text(view, generation.partitions.index(view.partition), space, numbers[place], fate, record))
    return texts


def _row_text(view: PartitionView, unit: int, space: int, row: int, fate: dict[str, Any], record: dict[str, Any]) -> str:
    partition: Partition = view.partition
    values = _columns(view, space, np.asarray([row]))
    steps = {-2: "source"} | {step.index: step.stage.name for step in view.plan.steps}
    lines = [f"sample {values.get('sample_id')} · partition {partition.ident} ({unit}), row space {space}, row {row}"]
    lines.append(f"  list file {partition.part.file or '(folder)'}, rows {partition.part.start}..{partition.part.stop}")
    lines += [f"  {name:<18} {_short(value)}" for name, value in values.items()]
    if fate["reason"] is None:
        lines.append("  fate               kept")
    else:
        extra = "" if fate["value"] is None else f", value {fate['value']:.4f}"
        keeper = "" if fate["keeper_id"] is None else f", in favour of {fate['keeper_id']}:{fate['keeper_position']}"
        lines.append(f"  fate               {fate['reason']} by {steps[fate['stage']]}{extra}{keeper}")
    current: dict[str, Any] | None = record
    while current is not None:
        lines.append(f"  record             {current['key']} ({current['label']})")
        current = view.run.record(current["before"]) if current["before"] else None
    return "\n".join(lines)


def _columns(view: PartitionView, space: int, row: np.ndarray) -> dict[str, Any]:
    """Return every column that is held for one row, those of its ancestors included; not those that a source lends."""
    values: dict[str, Any] = {}
    for name, home in view.homes_in(space).items():
        if home == SOURCE and name in lent_names(view.plan):
            continue
        ancestor = row >> (CHILD_BITS * (space - view.home_space(home)))
        held = view.held(home)
        if held.pieces and not len(held.missing(ancestor)):
            values[name] = held.take(ancestor, [name]).column(0)[0].as_py()
    return values


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = printable(text).replace("\n", " ")
    return plain if len(plain) <= 200 else plain[:200] + "…"
