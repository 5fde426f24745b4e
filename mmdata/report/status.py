"""How far a run is and what its generations came to, from its run folder alone: any machine that reaches it can ask."""

import json
from collections.abc import Iterator
from typing import Any, TypedDict

from mmdata.clock import Clock
from mmdata.engine import RunStore
from mmdata.engine.facts import FORMAT, STATUS, Facts, StageFacts, counted, duration, error_line, size, time_left
from mmdata.engine.lease import has_ended
from mmdata.engine.runstore import highest
from mmdata.errors import ConfigError

WATCH_S = 2.0
SILENT_S = 60.0  # without a sign of life for so long, a watcher says so and leaves
OUTCOMES_SHOWN = 8


class GenerationFacts(TypedDict):
    """What a generation came to; the last three are null while it is not finished."""

    generation: int
    kept: int | None
    rows_in: int | None
    corpus: str | None


class Status(TypedDict):
    """What a run folder says.

    at_work   the run said so last, and its lease has not ended
    heard_s   seconds since it said anything, by this machine's clock against the driver's: about right, if both are
    progress  `status.json`; null before the first task
    """

    plan: str
    source: list[str]
    at_work: bool
    heard_s: float | None
    progress: Facts | None
    generations: list[GenerationFacts]


def read_status(url: str, clock: Clock | None = None) -> Status:
    """Read what a run folder says."""
    run = RunStore(url)
    owner = run.owner()
    if owner is None:
        raise ConfigError(f"{url}: not a run folder", hint="give the --run-dir of `mmdata run`")
    facts = _progress(run)
    heard = None if facts is None else max((clock or Clock()).wall() - facts["updated_wall"], 0.0)
    epoch = highest(run.store, "lease/{}")
    ended = epoch > 0 and has_ended(run.store, epoch)
    return {
        "plan": owner["plan"], "source": owner["source"], "progress": facts,
        "at_work": facts is not None and facts["state"] == "running" and not ended,
        "heard_s": None if heard is None else round(heard, 1),
        "generations": _generations(run),
    }  # fmt: skip


def status_text(url: str, clock: Clock | None = None) -> str:
    """Return what a run folder says, for people."""
    return _text(read_status(url, clock))


def watch(url: str, clock: Clock) -> Iterator[str]:
    """Yield the status every 2 s until the run ends, or gives no sign of life for a minute."""
    sign, since = "", clock.monotonic()
    while True:
        status = read_status(url, clock)
        before, sign = sign, _sign_of_life(url, status)
        since = since if sign == before else clock.monotonic()
        silent = clock.monotonic() - since
        gone = status["at_work"] and silent >= SILENT_S
        text = _text(status)
        yield f"{text}\nno sign of life for {duration(silent)}; if it is gone, the same command resumes it" if gone else text
        if gone or not status["at_work"]:
            return
        clock.sleep(WATCH_S)


def _text(status: Status) -> str:
    lines = [f"plan {status['plan']} over {', '.join(status['source'])}"]
    if status["progress"] is not None:
        lines += _progress_lines(status["progress"], status)
    for facts in status["generations"]:
        number = facts["generation"]
        if facts["kept"] is None:
            lines.append(f"generation {number}: not finished; the same command resumes it")
        else:
            corpus = f"corpus {facts['corpus']}" if facts["corpus"] else "no corpus"
            lines.append(f"generation {number}: kept {facts['kept']:,} of {facts['rows_in']:,} rows, {corpus}")
    return "\n".join(lines)


def _progress(run: RunStore) -> Facts | None:
    if not run.store.exists(STATUS):
        return None
    try:
        facts: Facts = json.loads(run.store.read(STATUS))
    except ValueError:  # power was lost while it was put: it says nothing, and the run is none the worse
        return None
    return facts if facts.get("format") == FORMAT else None  # by another version of mmdata


def _generations(run: RunStore) -> list[GenerationFacts]:
    finished = set(run.finished())
    return [_generation(number, run.manifest(number) if number in finished else {"funnel": {}}) for number in run.generations()]


def _generation(number: int, facts: dict[str, Any]) -> GenerationFacts:
    funnel = facts["funnel"]
    return {
        "generation": number, "kept": funnel.get("kept"), "rows_in": funnel.get("rows_in"), "corpus": facts.get("corpus"),
    }  # fmt: skip


def _sign_of_life(url: str, status: Status) -> str:
    """Return what changes while a driver lives: its last word and the beat of its lease."""
    store = RunStore(url).store
    beat = f"lease/{highest(store, 'lease/{}')}.beat"
    word = status["progress"] and status["progress"]["updated_wall"]
    return f"{word} {store.read(beat).decode() if store.exists(beat) else ''}"


def _progress_lines(facts: Facts, status: Status) -> list[str]:
    tasks = facts["tasks"]
    state = facts["state"] if facts["state"] != "running" or status["at_work"] else "ended without a word"
    left = time_left(facts) if status["at_work"] else ""
    found = f" ({tasks['reused']:,} found finished)" if tasks["reused"] else ""
    heard = f"; last heard of ~{duration(status['heard_s'] or 0.0)} ago" if status["at_work"] else ""
    why = f": {facts['why']}" if facts["why"] else ""
    share = f"{facts['share']:.0%} of {tasks['total']:,} tasks{found}, {duration(facts['seconds'])}{left and ', '}{left}"
    lines = [f"{state}{why}", f"{share}{heard}"]
    if status["at_work"]:
        lines.append(f"{tasks['in_flight']} tasks in flight, {size(facts['bytes_in_flight'])}")
    lines += ["", *_table(facts), ""]
    if facts["outcomes"]:
        lines.append(f"dropped: {counted(facts['outcomes'], OUTCOMES_SHOWN)}")
    if facts["errors"]:
        lines += ["errors:", *(f"  {error_line(error)}" for error in facts["errors"])]
    return lines


def _table(facts: Facts) -> list[str]:
    """Return a line a stage; `~` marks what is extrapolated."""
    head = ["stage", "rows", "of", "done", "reused", "rows/s", "busy", "in flight", "left"]
    rows = [head, *(_stage_cells(stage) for stage in facts["stages"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row, name in zip(rows, ["", *(stage["stage"] for stage in facts["stages"])], strict=True):
        cells = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + ("  <- bottleneck" if name and name == facts["bottleneck"] else ""))
    return lines


def _stage_cells(stage: StageFacts) -> list[str]:
    about = "" if stage["share"] == 1 else "~"
    left = stage["seconds_left"]
    return [
        stage["stage"],
        f"{stage['rows']:,}",
        "" if stage["expected"] is None else f"{about}{stage['expected']:,}",
        "" if stage["share"] is None else f"{stage['share']:.0%}",
        f"{stage['reused']:,}",
        "" if stage["rows_per_s"] is None else f"{stage['rows_per_s']:,.1f}",
        f"{stage['busy_share']:.0%}",
        str(stage["in_flight"]),
        "" if not left else f"~{duration(left)}",
    ]
