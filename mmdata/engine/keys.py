"""Keys: what was asked. A key never covers verdicts, resources or the package's version.

Key of a column file = the stage's name, version and fields (resources left out), SHA-256 of the weights it loads, and the
keys of the columns and of the row space it reads. Keys hold inside one run folder.
"""

from mmdata.engine.task import Job
from mmdata.errors import ConfigError
from mmdata.plan import Plan, Step
from mmdata.stages.verbs import Map, Split
from mmdata.storage import digest_json

KEY_LENGTH = 24
SOURCE = -1


def plan_keys(plan: Plan) -> dict[int, str]:
    """Return the key of every step by its index; SOURCE is the rows themselves."""
    keys = {SOURCE: short([source.identity() | {"version": source.version} for source in plan.source])}
    space = [keys[SOURCE]]
    for step in plan.steps:
        key = _step_key(step, keys, space[step.space])
        if key in keys.values():
            raise ConfigError(
                f"`{step.stage.name}` stands twice in the plan with the same fields", hint="leave one of the two out"
            )
        keys[step.index] = key
        if isinstance(step.stage, Split):
            space.append(keys[step.index])
    return keys


def keys_of(job: Job) -> dict[int, str]:
    """Return the keys that a job carries, by index: workers do not work them out again."""
    return dict(enumerate(job.keys, start=SOURCE))


def short(value: object) -> str:
    """Return a key for any JSON value."""
    return digest_json(value)[:KEY_LENGTH]


def _step_key(step: Step, keys: dict[int, str], space: str) -> str:
    stage = step.stage
    inputs = stage.inputs()
    more: dict[str, object] = {"inputs": inputs} if inputs else {}
    if isinstance(stage, Map) and stage.documents:  # which rows of a document are left is what all steps before say
        more["before"] = [keys[index] for index in range(step.index)]
    return short(more | {
        "stage": stage.name,
        "version": stage.version,
        "fields": stage.asked(),
        "weights": stage.weights(),
        "reads": {column: keys[home] for column, home in step.sources.items()},
        "space": space,
    })  # fmt: skip
