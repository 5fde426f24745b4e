"""Which rows a run dropped as copies, and of which: groups with their evidence, as text and as contact sheets.

Decided here: a group is a keeper and the rows that name it. The largest groups come first; of the others only their number
is told. The fates of all partitions are read once to find the groups, and once more for the texts and pictures of those shown.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.runstore import RunStore, load_generation
from mmdata.engine.state import State
from mmdata.engine.view import PartitionView
from mmdata.errors import ConfigError, MmdataError, printable
from mmdata.media import Jail
from mmdata.plan import Plan
from mmdata.report.inspect_page import cut, thumbnail
from mmdata.report.page import Card, Section, cards_html, write_page
from mmdata.schema import PAYLOAD_COLUMN, ROW
from mmdata.shards.payloads import fetch_payload
from mmdata.stages.dedupe import Dedupe
from mmdata.storage import Store

_SHOWN = ("sample_id", "position", "url", "text", "media", PAYLOAD_COLUMN)
Name = tuple[str, int]  # sample_id, position


@dataclass(frozen=True)
class Shown:
    """A row as people see it."""

    name: Name
    text: str | None
    url: str | None
    payload: dict[str, Any] | None


@dataclass(frozen=True)
class Copy:
    """A dropped row, why, by which stage's comparison, and how far it is from its keeper (null: the stage measures none)."""

    row: Shown
    reason: str
    by: str
    value: float | None


@dataclass(frozen=True)
class CopyGroup:
    """A row that stayed, and some of the rows that it was kept for; `num` is how many there are."""

    keeper: Shown
    copies: list[Copy]
    num: int


def duplicate_groups(url: str, num_groups: int, num_copies: int = 12) -> list[CopyGroup]:
    """Return the largest groups of the newest finished generation, at most `num_copies` of the copies of each."""
    sizes = Counter[Name]()
    for _, fates in _fates(url):
        named = [*zip(fates.column("keeper_id").to_pylist(), fates.column("keeper_position").to_pylist(), strict=True)]
        sizes.update(keeper for keeper in named if keeper[0] is not None)
    chosen = dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:num_groups])
    keepers, copies = _rows_shown(url, chosen, num_copies)
    return [CopyGroup(keepers[name], copies[name], num) for name, num in chosen.items() if name in keepers]


def _rows_shown(url: str, chosen: dict[Name, int], most: int) -> tuple[dict[Name, Shown], dict[Name, list[Copy]]]:
    keepers: dict[Name, Shown] = {}
    copies: dict[Name, list[Copy]] = {name: [] for name in chosen}
    wanted = pa.array([ident for ident, _ in chosen], pa.string())
    for view, every in _fates(url):
        space = int(every.column("space")[0].as_py())
        numbers = every.column(ROW).to_numpy()
        ids = view.columns({"sample_id": view.homes_in(space)["sample_id"]}, numbers, space).column("sample_id")
        named = pc.or_(pc.is_in(ids, wanted), pc.is_in(every.column("keeper_id"), wanted))
        fates = every.filter(named)
        rows = _seen(view, space, fates.column(ROW).to_numpy())
        for row, fate in zip(
            rows, fates.select(["reason", "stage", "keeper_id", "keeper_position", "value"]).to_pylist(), strict=True
        ):
            keeper = (fate["keeper_id"], fate["keeper_position"])
            if keeper in copies and len(copies[keeper]) < most:
                copies[keeper].append(Copy(row, fate["reason"], _way(view.plan, fate["stage"]), fate["value"]))
            if row.name in copies and fate["keeper_id"] is None:
                keepers.setdefault(row.name, row)
    # A keeper may itself have gone to a later stage's keeper: it is shown all the same.
    for group in copies.values():
        for copy in group:
            if copy.row.name in copies:
                keepers.setdefault(copy.row.name, copy.row)
    return keepers, copies


def _fates(url: str) -> Iterator[tuple[PartitionView, pa.Table]]:
    """Yield the fates of the rows of each partition that was not given up, a row space at a time."""
    run = RunStore(url)
    numbers = run.finished()
    if not numbers:
        raise ConfigError(f"{url}: no finished generation", hint="give the --run-dir of a run that has ended")
    generation, keys = load_generation(url, numbers[-1]), run.keys(numbers[-1])
    for partition, head in zip(generation.partitions, run.manifest(numbers[-1])["heads"], strict=True):
        record = None if head is None else run.record(head)
        if record is None:
            continue
        fates = State.from_bytes(run.state_of(record)).table()
        for space in sorted(set(fates.column("space").to_pylist())):
            yield PartitionView(run, generation.plan, keys, partition), fates.filter(pc.equal(fates.column("space"), space))


def _seen(view: PartitionView, space: int, rows: np.ndarray) -> list[Shown]:
    homes = view.homes_in(space)
    wanted = {name: homes[name] for name in _SHOWN if name in homes and name != PAYLOAD_COLUMN}
    table = view.columns(wanted, rows, space).to_pylist()
    payloads: list[dict[str, Any] | None] = [None] * len(rows)
    if PAYLOAD_COLUMN in homes and len(rows):
        home = homes[PAYLOAD_COLUMN]
        there = rows[~np.isin(rows, view.held(home).missing(rows))] if view.home_space(home) == space else rows[:0]
        held = dict(
            zip(
                there.tolist(), view.columns({PAYLOAD_COLUMN: home}, there, space).column(PAYLOAD_COLUMN).to_pylist(), strict=True
            )
        )
        payloads = [held.get(int(row)) for row in rows]
    return [
        Shown((row["sample_id"], row["position"]), row.get("text"), row.get("url"), payload)
        for row, payload in zip(table, payloads, strict=True)
    ]


def _way(plan: Plan, stage: int) -> str:
    """Return the stage that dropped a row, with what it compares."""
    found = plan.steps[stage].stage
    if not isinstance(found, Dedupe):
        return found.name
    if found.way is not None:
        return f"dedupe {found.way}"
    return f"dedupe {found.by if isinstance(found.by, str) else ', '.join(found.by)}"


def groups_text(groups: list[CopyGroup], num_shown: int) -> str:
    """Return groups as text, at most `num_shown` copies of each."""
    if not groups:
        return "no row was dropped in favour of another"
    lines = []
    for group in groups:
        lines.append(f"{group.keeper.name[0]}:{group.keeper.name[1]} stays for {group.num:,} · {_words(group.keeper)}")
        lines += [
            f"  {copy.row.name[0]}:{copy.row.name[1]} {evidence(copy)} · {_words(copy.row)}" for copy in group.copies[:num_shown]
        ]
        if group.num > min(num_shown, len(group.copies)):
            lines.append(f"  and {group.num - min(num_shown, len(group.copies)):,} more")
    return "\n".join(lines)


def evidence(copy: Copy) -> str:
    """Return why a row went."""
    near = copy.reason.startswith("near")
    value = "" if copy.value is None else f", {'distance' if near else 'value'} {copy.value:g}"
    return f"{copy.reason} by {copy.by}{value}"


def _words(row: Shown) -> str:
    text = "(no text)" if row.text is None else printable(row.text).replace("\n", " ")
    return cut(text)


def write_groups(path: Path, url: str, groups: list[CopyGroup]) -> None:
    """Write groups as a page of contact sheets: the row that stays first, then its copies."""
    store = RunStore(url).store
    with Jail() as jail:
        sections = [_section(group, store, jail) for group in groups]
    write_page(path, "duplicates", sections or [Section("none", "<p>no row was dropped in favour of another")])


def _section(group: CopyGroup, store: Store, jail: Jail) -> Section:
    name, position = group.keeper.name
    cards = [_card(group.keeper, f"stays · {name}:{position}", store, jail)]
    cards += [_card(copy.row, evidence(copy), store, jail) for copy in group.copies]
    more = group.num - len(group.copies)
    tail = f"<p>{escape(f'and {more:,} more')}" if more else ""
    return Section(f"{group.num:,} {'copy' if group.num == 1 else 'copies'} of {_words(group.keeper)}", cards_html(cards) + tail)


def _card(row: Shown, why: str, store: Store, jail: Jail) -> Card:
    text = f"{why} · {_words(row)}"
    if row.payload is None:
        return Card(None, text, "no picture")
    try:
        return Card(thumbnail(jail.decode(fetch_payload(store, row.payload))), text)
    except (MmdataError, OSError) as error:
        return Card(None, f"{text} · not shown: {cut(str(error))}", "not shown")
