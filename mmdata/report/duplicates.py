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
from mmdata.stages.comparing import Comparing, references_of
from mmdata.stages.dedupe import Dedupe
from mmdata.storage import Store

_SHOWN = ("sample_id", "position", "url", "text", "media", PAYLOAD_COLUMN)
Name = tuple[str, int]  # sample_id, position
Keeper = tuple[str, int, bool]  # sample_id, position, and whether it is of a reference


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
    """A row that stayed, and some of the rows that it was kept for; `num` is how many there are.

    reference   what the earlier corpus or eval set is called that the row is of, if it is of one
    """

    keeper: Shown
    copies: list[Copy]
    num: int
    reference: str | None = None


def duplicate_groups(url: str, num_groups: int, num_copies: int = 12) -> list[CopyGroup]:
    """Return the largest groups of the newest finished generation, at most `num_copies` of the copies of each."""
    sizes = Counter[Keeper]()
    places: dict[str, str] = {}  # of the sample ids of references
    for view, fates in _fates(url):
        sizes.update(keeper for keeper in _keepers(view.plan, fates) if keeper is not None)
    chosen = dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:num_groups])
    keepers, copies = _rows_shown(url, chosen, num_copies)
    if past := {ident for ident, _, is_past in chosen if is_past}:
        places = _references_of(url, past)
        keepers |= {name: Shown(name[:2], None, None, None) for name in chosen if name[2]}
    return [
        CopyGroup(keepers[name], copies[name], num, places.get(name[0], "(gone since)") if name[2] else None)
        for name, num in chosen.items()
        if name in keepers
    ]


def _keepers(plan: Plan, fates: pa.Table) -> list[Keeper | None]:
    """Return for whom each row was dropped, null for those that were not dropped for another."""
    past = {step.index for step in plan.steps if isinstance(step.stage, Comparing)}
    columns = (fates.column(name).to_pylist() for name in ("keeper_id", "keeper_position", "stage"))
    return [None if ident is None else (ident, place, stage in past) for ident, place, stage in zip(*columns, strict=True)]


def _references_of(url: str, sample_ids: set[str]) -> dict[str, str]:
    """Return the name of the first reference of the run's plan that has each sample."""
    run, found = RunStore(url), dict[str, str]()
    try:
        references = references_of(load_generation(url, run.finished()[-1]).plan.stages)
    except MmdataError:  # they may have gone since
        return found
    asked = {bytes.fromhex(ident): ident for ident in sample_ids}
    wanted = np.frombuffer(b"".join(sorted(asked)), "V16")
    for one in references:
        for part in range(len(one.facts.parts)):
            ids = np.ascontiguousarray(one.ids(part)).view("V16").ravel()
            for ident in ids[np.isin(ids, wanted)]:
                found.setdefault(asked[bytes(ident)], one.name)
    return found


def _rows_shown(url: str, chosen: dict[Keeper, int], most: int) -> tuple[dict[Keeper, Shown], dict[Keeper, list[Copy]]]:
    keepers: dict[Keeper, Shown] = {}
    copies: dict[Keeper, list[Copy]] = {name: [] for name in chosen}
    wanted = pa.array([ident for ident, _, _ in chosen], pa.string())
    for view, every in _fates(url):
        space = int(every.column("space")[0].as_py())
        numbers = every.column(ROW).to_numpy()
        ids = view.columns({"sample_id": view.homes_in(space)["sample_id"]}, numbers, space).column("sample_id")
        named = pc.or_(pc.is_in(ids, wanted), pc.is_in(every.column("keeper_id"), wanted))
        fates = every.filter(named)
        rows = _seen(view, space, fates.column(ROW).to_numpy())
        told = fates.select(["reason", "stage", "value"]).to_pylist()
        for row, keeper, fate in zip(rows, _keepers(view.plan, fates), told, strict=True):
            if keeper in copies and len(copies[keeper]) < most:
                copies[keeper].append(Copy(row, fate["reason"], _way(view.plan, fate["stage"]), fate["value"]))
            if (own := (*row.name, False)) in copies and keeper is None:
                keepers.setdefault(own, row)
    # A keeper may itself have gone to a later stage's keeper: it is shown all the same.
    for group in copies.values():
        for copy in group:
            if (own := (*copy.row.name, False)) in copies:
                keepers.setdefault(own, copy.row)
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
    if isinstance(found, Comparing):
        return f"{found.name} {found.told()}"
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
        lines.append(f"{_named(group)} stays for {group.num:,}" + ("" if group.reference else f" · {_words(group.keeper)}"))
        lines += [
            f"  {copy.row.name[0]}:{copy.row.name[1]} {evidence(copy)} · {_words(copy.row)}" for copy in group.copies[:num_shown]
        ]
        if group.num > min(num_shown, len(group.copies)):
            lines.append(f"  and {group.num - min(num_shown, len(group.copies)):,} more")
    return "\n".join(lines)


def _named(group: CopyGroup) -> str:
    name = f"{group.keeper.name[0]}:{group.keeper.name[1]}"
    return name if group.reference is None else f"{name} of reference {group.reference}"


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
    cards = [] if group.reference else [_card(group.keeper, f"stays · {_named(group)}", store, jail)]
    cards += [_card(copy.row, evidence(copy), store, jail) for copy in group.copies]
    more = group.num - len(group.copies)
    tail = f"<p>{escape(f'and {more:,} more')}" if more else ""
    title = _named(group) if group.reference else _words(group.keeper)
    return Section(f"{group.num:,} {'copy' if group.num == 1 else 'copies'} of {title}", cards_html(cards) + tail)


def _card(row: Shown, why: str, store: Store, jail: Jail) -> Card:
    text = f"{why} · {_words(row)}"
    if row.payload is None:
        return Card(None, text, "no picture")
    try:
        return Card(thumbnail(jail.decode(fetch_payload(store, row.payload))), text)
    except (MmdataError, OSError) as error:
        return Card(None, f"{text} · not shown: {cut(str(error))}", "not shown")
