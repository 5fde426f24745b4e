"""Tables for a terminal."""

import json

from mmdata.engine import Forecast, RunResult, RunStore
from mmdata.plan import Plan, written


def forecast_text(forecast: Forecast) -> str:
    """Say stage by stage what is kept and what will be computed."""
    if not forecast.tasks_missing:
        return f"generation {forecast.generation}: all is there, nothing to do"
    lines = [f"generation {forecast.generation}: {forecast.partitions} partitions"]
    for name, held, missing, more in forecast.steps:
        kept = "kept; rows that are new to it are added" if more else "kept"
        verdict = kept if not missing else "computed" if not held else f"computed for {missing}, kept for {held}"
        lines.append(f"  {name:<16} {verdict}")
    return "\n".join(lines)


def funnel_text(result: RunResult) -> str:
    """Return the funnel: what went where, stage by stage."""
    funnel = result.funnel
    total = funnel["rows_in"] + funnel["made_by_splits"]
    lines = [f"{'rows in':<34}{funnel['rows_in']:>10,}"]
    if funnel["made_by_splits"]:
        lines.append(f"{'made by splits':<34}{funnel['made_by_splits']:>10,}")
    for stage, reason, num in result.by_stage:
        if reason == "split":
            lines.append(f"{'ended as their split parts':<34}{-num:>10,}")
            continue
        lines.append(f"  {stage:<14}{reason:<18}{-num:>10,}  {num / total:6.1%}  {'▇' * round(40 * num / total)}")
    lines.append(f"{'kept':<34}{funnel['kept']:>10,}  {funnel['kept'] / total:6.1%}")
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
    return "\n".join(lines)


def status_text(url: str) -> str:
    """Return how far a run is and what its generations came to."""
    from mmdata.errors import ConfigError

    run = RunStore(url)
    owner = run.owner()
    if owner is None:
        raise ConfigError(f"{url}: not a run folder", hint="give the --run-dir of `mmdata run`")
    lines = [f"plan {owner['plan']} over {', '.join(owner['source'])}"]
    if run.store.exists("status.json"):
        facts = run.read_json("status.json")
        lines.append(
            f"{facts['state']}: {facts['share']:.0%} of {facts['tasks_total']} tasks, {facts['rows_per_s']:,} rows/s, "
            f"{facts['seconds']} s, left {facts['seconds_left']} s, at {facts['stage']}; drops {json.dumps(facts['top_drops'])}"
        )
    for number in run.numbers("manifest"):
        facts = run.read_json(f"manifest/{number}.json")
        funnel = facts["funnel"]
        lines.append(f"generation {number}: kept {funnel['kept']:,} of {funnel['rows_in']:,} rows, corpus {facts['corpus']}")
    open_ones = set(run.numbers("generations")) - set(run.numbers("manifest"))
    lines += [f"generation {number}: not finished; the same command resumes it" for number in sorted(open_ones)]
    return "\n".join(lines)
