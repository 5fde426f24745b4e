"""Which generation a call is about: an unfinished or equal one, or the next; and its partitions with their numbers."""

from typing import Any

from mmdata.engine.keys import plan_keys, short
from mmdata.engine.runstore import Generation, Partition, RunStore
from mmdata.engine.task import Job
from mmdata.plan import Plan
from mmdata.stages.verbs import SourceSlice


def find_generation(run: RunStore, plan: Plan, allow: tuple[str, ...], limit: int | None) -> tuple[Generation, Job]:
    """Return the generation that a plan and its source's files make now, and the job of this call.

    A generation that ended with partitions given up is not gone on with: the same call again makes the next, which tries
    them anew.
    """
    located = plan.located()
    keys = plan_keys(located)
    ordered = tuple(keys[index] for index in sorted(keys))
    every = {number: run.read_json(f"generations/{number}.json") for number in range(1, run.last_number() + 1)}
    numbers = {item["ident"]: item["number"] for facts in every.values() for item in facts["partitions"]}
    known = {number: every[number] for number in run.generations()}
    partitions = _partitions(located, limit, numbers)
    mine = (plan.digest, list(ordered), _cuts(located), [_partition_facts(partition) for partition in partitions])
    number = max(every, default=0) + 1  # of those that gc freed too: their names are marked for good
    for candidate, facts in reversed(known.items()):
        if (facts["plan_digest"], facts["keys"], facts.get("cuts"), facts["partitions"]) == mine and not _gave_up(run, candidate):
            number = candidate
            break
    return Generation(number, located, partitions, allow), Job(run.store.url, number, "", located.to_json(), ordered, allow)


def generation_facts(plan: Plan, generation: Generation, job: Job, *, limited: bool) -> dict[str, Any]:
    """Return what a generation is asked, as its file says it."""
    return {
        "plan_digest": plan.digest, "keys": list(job.keys), "cuts": _cuts(generation.plan), "plan": plan.model_dump(mode="json"),
        "located": generation.plan.model_dump(mode="json"), "allow": list(job.allow), "limited": limited,
        "partitions": [_partition_facts(partition) for partition in generation.partitions],
    }  # fmt: skip


def asks_same(facts: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Say whether two generations' files ask for the same work."""
    return all(facts.get(name) == mine[name] for name in ("plan_digest", "keys", "cuts", "partitions"))


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
