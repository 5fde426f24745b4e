"""Which generation a call is about: an unfinished or equal one, or the next; and its partitions with their numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

from mmdata.engine.keys import plan_keys, short
from mmdata.engine.runstore import Generation, Partition, RunStore
from mmdata.engine.task import Job
from mmdata.plan import Plan
from mmdata.stages.verbs import Map, SourceSlice


def find_generation(
    run: RunStore, plan: Plan, allow: tuple[str, ...], limit: int | None, retry: Sequence[str] = ()
) -> tuple[Generation, Job]:
    """Return the generation that a plan and its source's files make now, and the job of this call.

    A generation that ended with partitions given up is not gone on with: the same call again makes the next, which tries
    them anew. With `retry` rows that ended in one of these outcomes are asked about once more.
    """
    located = plan.located()
    keys = plan_keys(located)
    ordered = tuple(keys[index] for index in sorted(keys))
    every = {number: run.read_json(f"generations/{number}.json") for number in range(1, run.last_number() + 1)}
    numbers = {item["ident"]: item["number"] for facts in every.values() for item in facts["partitions"]}
    known = {number: every[number] for number in run.generations()}
    partitions = _partitions(located, limit, numbers)
    mine = (plan.digest, list(ordered), _cuts(located), [_partition_facts(partition) for partition in partitions])
    alike = [number for number, facts in known.items() if _asked(facts) == mine]
    asked = _retries(located, keys, every.values())
    begun = alike and not run.store.exists(f"manifest/{alike[-1]}.json") and _last_rounds(known[alike[-1]]) == set(retry)
    if retry and not begun:
        asked = {key: [*asked.get(key, []), sorted(retry)] for key in _retriable(located, keys)}
    same = [number for number in alike if known[number].get("retries", {}) == asked and not _gave_up(run, number)]
    number = same[-1] if same else max(every, default=0) + 1  # gc marks the names of what it frees for good
    generation = Generation(number, located, partitions, allow, asked)
    return generation, Job(run.store.url, number, "", located.to_json(), ordered, allow)


def generation_facts(plan: Plan, generation: Generation, job: Job, *, limited: bool) -> dict[str, Any]:
    """Return what a generation is asked, as its file says it."""
    return {
        "plan_digest": plan.digest, "keys": list(job.keys), "cuts": _cuts(generation.plan), "plan": plan.model_dump(mode="json"),
        "located": generation.plan.model_dump(mode="json"), "allow": list(job.allow), "limited": limited,
        "partitions": [_partition_facts(partition) for partition in generation.partitions],
        "retries": generation.retries,
    }  # fmt: skip


def asks_same(facts: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Say whether two generations' files ask for the same work."""
    return _asked(facts) == _asked(mine) and facts.get("retries", {}) == mine["retries"]


def _asked(facts: dict[str, Any]) -> tuple[Any, ...]:
    return facts["plan_digest"], facts["keys"], facts.get("cuts"), facts["partitions"]


def _retriable(plan: Plan, keys: dict[int, str]) -> list[str]:
    """Return the keys of the steps whose failures may pass."""
    return [keys[step.index] for step in plan.steps if isinstance(step.stage, Map) and step.stage.transient]


def _retries(plan: Plan, keys: dict[int, str], every: Iterable[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """Return the rounds of retrying that any generation has asked for, of the steps of this plan."""
    found: dict[str, list[list[str]]] = {}
    for facts in every:
        for key, rounds in facts.get("retries", {}).items():
            if key in _retriable(plan, keys) and len(rounds) > len(found.get(key, [])):
                found[key] = rounds
    return found


def _last_rounds(facts: dict[str, Any]) -> set[str]:
    return {outcome for rounds in facts.get("retries", {}).values() for outcome in rounds[-1]}


def _cuts(plan: Plan) -> list[int]:
    """Return how many steps run together in each segment: resources decide that, and records are of segments."""
    return [len(segment.steps) for segment in plan.segments]


def _gave_up(run: RunStore, number: int) -> bool:
    return run.store.exists(f"manifest/{number}.json") and bool(run.manifest(number)["failed"])


def _partitions(plan: Plan, limit: int | None, numbers: dict[str, int]) -> tuple[Partition, ...]:
    """Cut the source; a slice that was seen before keeps its number."""
    found: list[Partition] = []
    key = plan_keys(plan)[-1]
    left = limit
    free = max(numbers.values(), default=-1) + 1
    for index, source in enumerate(plan.source):
        for part in source.scan():
            size = part.stop - part.start if left is None else min(part.stop - part.start, left)
            left = None if left is None else left - size
            if size <= 0:
                continue
            cut = SourceSlice(part.digest, part.file, part.start, part.start + size)
            ident = short([key, index, cut.digest, cut.file, cut.start, cut.stop])
            if ident not in numbers:
                numbers[ident] = free
                free += 1
            found.append(Partition(numbers[ident], ident, index, cut))
    return tuple(found)


def _partition_facts(partition: Partition) -> dict[str, Any]:
    part = partition.part
    return {
        "number": partition.number, "ident": partition.ident, "source": partition.source,
        "part": {"digest": part.digest, "file": part.file, "start": part.start, "stop": part.stop},
    }  # fmt: skip
