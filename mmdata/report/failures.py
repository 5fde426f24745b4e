"""What failed in a run, by class and host, and what to do about it."""

from collections import Counter
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from mmdata.engine.runstore import RunStore
from mmdata.errors import ConfigError
from mmdata.report.fates import fates
from mmdata.schema import INCOMPLETE, OUTCOMES, SPLIT
from mmdata.stages.deny import host_of

_AGAIN = "`mmdata retry` asks again"
ADVICE = {
    "dns": f"names nobody answers for: check the resolver (`resolvers:` names others), then {_AGAIN}; dead domains stay dead",
    "timeout": f"servers or the line are too slow: fewer `connections`, longer `limits`, then {_AGAIN}",
    "too_slow": f"bodies come in below `min_bytes_per_s`: {_AGAIN}",
    "conn_reset": f"connections broke: fewer `connections`, then {_AGAIN}",
    "short_body": f"bodies ended early: {_AGAIN}",
    "http_5xx": f"servers are in trouble: wait, then {_AGAIN}",
    "throttled": f"hosts asked for less, or failed too often in a row: wait, then {_AGAIN}",
    "http_4xx": "gone or forbidden: nothing to be done, fresher lists have fewer",
    "tls": "certificates that do not hold: nothing to be done from here",
    "robots": "robots.txt forbids it, or could not be had: obeyed",
    "opted_out": "the owner does not want it in training data: obeyed",
    "denylisted": "on a deny list of the plan",
    "blocked": "urls into private networks, odd ports or other schemes: the list is wrong or hostile",
    "hash_mismatch": "not the bytes that the list recorded: the page has changed hands or content",
    "decode": "bytes that are no picture, or a broken one",
    "other": "see `mmdata explain RUN SAMPLE_ID` for one of them",
}
_FAMILIES = {
    "timeout": "timeout_",
    "blocked": "blocked_",
    "decode": ("decode", "not_media", "unsupported_", "truncated_", "too_many"),
}


class ClassFacts(TypedDict):
    """Failures of one outcome: how many, their share of all failures, the hosts that have most, and what to do."""

    outcome: str
    rows: int
    share: float
    hosts: list[tuple[str, int]]
    advice: str


class Failures(TypedDict):
    """What failed: rows looked at, rows failed, and the classes, most first."""

    rows: int
    failed: int
    classes: list[ClassFacts]


def failures(url: str, hosts: int = 3) -> Failures:
    """Count what failed in the generation that was asked for last; what stages judged out is no failure."""
    run = RunStore(url)
    if run.owner() is None or not run.finished():
        raise ConfigError(f"{url}: no finished generation", hint="give the --run-dir of a run that has ended")
    table = fates(run, ["url"])
    trouble = [outcome for outcome in OUTCOMES if outcome not in ("ok", SPLIT, INCOMPLETE)]
    lost = table.filter(pc.is_in(table.column("reason"), pa.array(trouble)))
    counts: dict[str, Counter[str]] = {}
    for reason, where in zip(lost.column("reason").to_pylist(), lost.column("url").to_pylist(), strict=True):
        counts.setdefault(reason, Counter())[host_of(where or "") or "(no host)"] += 1
    classes: list[ClassFacts] = [
        {
            "outcome": outcome, "rows": found.total(), "share": found.total() / lost.num_rows,
            "hosts": found.most_common(hosts), "advice": ADVICE[_family(outcome)],
        }
        for outcome, found in sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    ]  # fmt: skip
    return {"rows": table.num_rows, "failed": lost.num_rows, "classes": classes}


def failures_text(found: Failures) -> str:
    """Return failures for people."""
    if not found["failed"]:
        return f"none of {found['rows']:,} rows failed"
    lines = [f"{found['failed']:,} of {found['rows']:,} rows failed ({found['failed'] / found['rows']:.0%})"]
    for each in found["classes"]:
        lines.append(f"{each['share']:4.0%} {each['outcome']} ({each['rows']:,}): {each['advice']}")
        if each["hosts"]:
            lines.append("     most: " + ", ".join(f"{host} {num:,}" for host, num in each["hosts"]))
    return "\n".join(lines)


def _family(outcome: str) -> str:
    if outcome in ADVICE:
        return outcome
    return next((family for family, prefixes in _FAMILIES.items() if outcome.startswith(tuple(prefixes))), "other")
