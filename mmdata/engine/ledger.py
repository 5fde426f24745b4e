"""The ledger: every row ends in exactly one named outcome.

The law, asserted after every task: rows in + rows made by splits = kept + dropped by reason + split.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmdata.engine.state import State
from mmdata.errors import RunError
from mmdata.plan import Budget
from mmdata.schema import SPLIT


class Ledger:
    """The newest record of every partition, without what only workers need, and totals kept as records come in."""

    def __init__(self) -> None:
        self.heads: dict[int, dict[str, Any]] = {}
        self.dropped: Counter[str] = Counter()
        self.settled = 0

    def settle(self, unit: int, record: dict[str, Any]) -> None:
        """Let a record be the newest of its partition."""
        self._count(self.heads.get(unit), -1)
        self._count(record, 1)
        self.heads[unit] = {name: value for name, value in record.items() if name not in ("digests", "steps")}

    def forget(self, unit: int) -> None:
        """Take out a partition that is given up: none of its rows is in this generation."""
        self._count(self.heads.pop(unit, None), -1)

    def check(self, budget: Budget) -> None:
        """Raise RunError when more rows were dropped than the budget allows."""
        dropped, limit = sum(self.dropped.values()), budget.dropped_share
        if self.settled >= budget.after_rows and dropped > limit * self.settled:
            most = ", ".join(f"{reason} {num:,}" for reason, num in self.dropped.most_common(3))
            raise RunError(
                f"budget: {dropped:,} of {self.settled:,} rows were dropped ({dropped / self.settled:.1%}), more than "
                f"{limit:.1%}; most: {most}",
                hint="mend the cause and run the same command, or raise `budget: {dropped_share: ...}` in the plan",
            )

    def _count(self, record: dict[str, Any] | None, sign: int) -> None:
        if record is not None:
            for reason, num in record["dropped"].items():
                self.dropped[reason] += sign * num
            self.settled += sign * (record["kept"] + sum(record["dropped"].values()))


def account(state: State) -> dict[str, Any]:
    """Count the fates of a partition and assert the law."""
    spaces = state.spaces()
    by_stage: list[tuple[int, str, int]] = [(stage, reason, num) for (stage, reason), num in state.counts().items()]
    counts = {
        "rows_in": spaces.get(0, 0),
        "made_by_splits": sum(spaces.values()) - spaces.get(0, 0),
        "kept": len(state.alive),
        "dropped": _sum((reason, num) for _, reason, num in by_stage if reason != SPLIT),
        "split": sum(num for _, reason, num in by_stage if reason == SPLIT),
        "by_stage": by_stage,
    }
    check_law(counts)
    return counts


def check_law(counts: dict[str, Any]) -> None:
    """Raise RunError unless no row was lost and none was made up."""
    left = counts["rows_in"] + counts["made_by_splits"]
    right = counts["kept"] + sum(counts["dropped"].values()) + counts["split"]
    if left != right:
        raise RunError(f"rows are not conserved: {left} came in or were made, {right} are accounted for: {counts}")


def funnel(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the last records of all partitions into the funnel of a run."""
    total = {
        "rows_in": sum(record["rows_in"] for record in records),
        "made_by_splits": sum(record["made_by_splits"] for record in records),
        "kept": sum(record["kept"] for record in records),
        "dropped": _sum(item for record in records for item in record["dropped"].items()),
        "split": sum(record["split"] for record in records),
    }
    check_law(total)
    return total


def profiles(records: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Return by column the profiles, as JSON, that its numbers were computed with in all partitions."""
    found: dict[str, set[str]] = {}
    for record in records:
        for name, items in record.get("profiles", {}).items():
            found.setdefault(name, set()).update(items)
    return {name: sorted(items) for name, items in sorted(found.items())}


def several(records: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the columns that were computed with several profiles, with these: their bytes are not made again by any one."""
    return {name: items for name, items in profiles(records).items() if len(items) > 1}


def by_stage(records: list[dict[str, Any]]) -> list[tuple[int, str, int]]:
    """Add up drops by (stage, reason), in plan order."""
    total: Counter[tuple[int, str]] = Counter()
    for record in records:
        for stage, reason, num in record["by_stage"]:
            total[stage, reason] += num
    return [(stage, reason, num) for (stage, reason), num in sorted(total.items())]


def _sum(pairs: Any) -> dict[str, int]:  # noqa: ANN401 - an iterable of (reason, count)
    total: Counter[str] = Counter()
    for reason, num in pairs:
        total[reason] += num
    return dict(sorted(total.items()))
