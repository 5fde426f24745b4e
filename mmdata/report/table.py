"""Tables for a terminal."""

import pyarrow as pa

from mmdata.engine import Forecast, RunResult
from mmdata.engine.forecast import Span, StepForecast
from mmdata.plan import Plan, written
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.likeness import Hashes, Way

_PASSES = {
    "kept": "kept",
    "anew": "made anew, from all rows",
    "perhaps": "made anew, from all rows, unless it is there for just these",
    "each": "asked of each row, nothing is stored",
}


def forecast_text(forecast: Forecast) -> str:
    """Say stage by stage how many rows are kept and how many will be computed."""
    if forecast.done:
        return f"generation {forecast.generation}: all is there, nothing to do"
    lines = [f"generation {forecast.generation}: {forecast.partitions} partitions"]
    for step in forecast.steps:
        says = _kept_and_computed(step) if step.passes is None else _PASSES[step.passes]
        lines.append(f"  {step.stage:<16} {says}")
    return "\n".join(lines)


def _kept_and_computed(step: StepForecast) -> str:
    """Return `kept 60`, `computed 60`, `kept 50, computed 3 to 10` or `kept 5 to 8, computed 3 or more`."""
    parts = [f"{word} {_span(span)}" for word, span in (("kept", step.kept), ("computed", step.computed)) if span.most != 0]
    return ", ".join(parts or ["kept 0"])


def _span(span: Span) -> str:
    if span.most is None:
        return f"{span.least:,} or more"
    return f"{span.least:,}" if span.least == span.most else f"{span.least:,} to {span.most:,}"


def funnel_text(result: RunResult) -> str:
    """Return the funnel: what went where, stage by stage."""
    funnel = result.funnel
    total = max(funnel["rows_in"] + funnel["made_by_splits"], 1)
    lines = [f"{'rows in':<34}{funnel['rows_in']:>10,}"]
    if funnel["made_by_splits"]:
        lines.append(f"{'made by splits':<34}{funnel['made_by_splits']:>10,}")
    for stage, reason, num in result.by_stage:
        if reason == "split":
            lines.append(f"{'ended as their split parts':<34}{-num:>10,}")
            continue
        lines.append(f"  {stage:<14}{reason:<18}{-num:>10,}  {num / total:6.1%}  {'▇' * round(40 * num / total)}")
    lines.append(f"{'kept':<34}{funnel['kept']:>10,}  {funnel['kept'] / total:6.1%}")
    lines += [f"{stage}: {note}" for stage, note in result.notes]
    if result.corpus is not None:
        lines.append(f"corpus: {result.corpus}")
    lines.append(f"generation {result.generation}, {result.seconds:.1f} s" + ("" if result.fresh else ", nothing was to do"))
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """Return the plan: what each stage reads and writes, and what runs together."""
    lines = [f"plan {plan.name}", f"  source   {', '.join(source.label() for source in plan.source)}"]
    for number, segment in enumerate(plan.segments):
        held = "a worker that keeps its model" if segment.holds_model else f"{segment.resources.cpus} cpu"
        lines.append(f"  segment {number} ({held})")
        for step in segment.steps:
            gives = ", ".join(field.name for field in written(step.stage)) or ", ".join(step.stage.reasons())  # type: ignore[attr-defined]
            lines.append(f"    {step.stage.name:<16} {', '.join(step.stage.reads())}  ->  {gives}")
    lines.append(f"  sink     {'none' if plan.sink is None else plan.sink.name}")
    return "\n".join([*lines, *_chance_lines(plan)])


def _chance_lines(plan: Plan) -> list[str]:
    """Say of each comparison by likeness what its largest task holds and how many rows look like a row by chance.

    As many rows are counted as there would be if none went before. Refuses what chance alone would drop.
    """
    stages = [stage for stage in plan.stages if isinstance(stage, Dedupe) and stage.way is not None]
    if not stages:
        return []  # a source is not looked at without need
    num = sum(part.stop - part.start for source in plan.source for part in source.scan())
    return [f"  {_way_line(way, num, plan.fields[way.column].type)}" for stage in stages if (way := stage.way) is not None]


def _way_line(way: Way, num: int, kind: pa.DataType) -> str:
    line = f"dedupe by {way}: of {num:,} rows, {way.memory_mib(num, kind):,} MiB in its largest task"
    return f"{line}, {way.chance(num, kind):.2g} look like a row by chance" if isinstance(way, Hashes) else line
