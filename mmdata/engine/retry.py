"""Asking again about rows that failed: the plan as it is, with one more round for its fetching stages.

Rows that are recovered are added to the column under the same key, and their media lie in a folder of their own
(`download.r1`); nothing that is there changes. What follows finds new rows and computes these alone.
"""

from collections.abc import Iterable, Sequence

from mmdata.engine.run import Runner
from mmdata.engine.runstore import RunStore, load_generation
from mmdata.errors import ConfigError, did_you_mean
from mmdata.plan import Plan
from mmdata.schema import OUTCOMES
from mmdata.stages.verbs import Map

# What passes by itself, or with time. Refusals (robots, 4xx) are asked about again only if they are named.
PASSING = (
    "dns", "timeout_connect", "timeout_headers", "timeout_idle", "timeout_total", "too_slow", "conn_reset", "short_body",
    "http_5xx", "throttled",
)  # fmt: skip


def retry_runner(url: str, classes: Sequence[str] | None = None, allow: tuple[str, ...] = ()) -> Runner:
    """Return a runner of the plan that was asked for last in a run folder, which asks again about rows that ended so.

    classes  outcomes, or the first words of several (`timeout`); by default those that pass by themselves
    """
    run = RunStore(url)
    if run.owner() is None:
        raise ConfigError(f"{url}: not a run folder", hint="give the --run-dir of `mmdata run`")
    if not (numbers := run.finished()):
        raise ConfigError(f"{url}: no finished generation", hint="let the run end first: it retries what passes by itself")
    plan = load_generation(url, numbers[-1]).plan
    return Runner(plan, url, allow, retry=outcomes_of(plan, PASSING if classes is None else classes, strict=classes is not None))


def outcomes_of(plan: Plan, classes: Iterable[str], *, strict: bool) -> tuple[str, ...]:
    """Return the outcomes that classes name, of those that a stage of the plan can be asked about again."""
    transient = {outcome for stage in plan.stages if isinstance(stage, Map) for outcome in stage.transient}
    if not transient:
        raise ConfigError(f"plan `{plan.name}` has no stage that fetches", hint="`retry` is for plans with `download`")
    found: set[str] = set()
    for word in (name.strip() for name in classes):
        named = {outcome for outcome in OUTCOMES if outcome == word or outcome.startswith(f"{word}_")}
        if not named:
            raise ConfigError(f"no outcome is called `{word}`", hint=did_you_mean(word, OUTCOMES))
        if strict and not named & transient:
            hint = f"those that may change are: {', '.join(sorted(transient))}"
            raise ConfigError(f"`{word}` is final: to ask again would give the same", hint=hint)
        found |= named & transient
    return tuple(sorted(found))
