"""A plan: source, stages, sink, checked column by column before a byte moves.

`Plan(...)` in Python equals the YAML. A segment is a run of neighbouring row-wise stages that share a task; it says what
runs together and nothing else.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import SerializeAsAny, field_serializer, field_validator

from mmdata.config import Document, Model, build, one_key, read_yaml
from mmdata.errors import ConfigError, did_you_mean
from mmdata.schema import IMAGE, PAYLOAD_COLUMN
from mmdata.stages import named
from mmdata.stages.verbs import Definition, Filter, GlobalFilter, Map, Resources, Sink, Source, Split, Stage
from mmdata.storage import digest_json

MAX_SPLITS = 2  # a child's row number holds its ancestors' (20 bits a level)


@dataclass(frozen=True)
class Step:
    """A stage in its place: its index in the plan, the row space it works in, where its columns come from."""

    index: int
    stage: Stage
    space: int
    sources: dict[str, int]  # column -> index of the step that wrote it; -1 is the source


@dataclass(frozen=True)
class Segment:
    """Neighbouring row-wise steps run together, after the passes of `opens` if that is a GlobalFilter."""

    steps: tuple[Step, ...]

    @property
    def resources(self) -> Resources:
        """What a task of this segment holds."""
        cpus = max((step.stage.resources.cpus for step in self.steps), default=1)
        return Resources(cpus=cpus, gpus=max((step.stage.resources.gpus for step in self.steps), default=0.0))

    @cached_property
    def holds_model(self) -> bool:
        """True when one of the stages loads weights: its worker is worth keeping."""
        return any(step.stage.weights() for step in self.steps)

    @property
    def label(self) -> str:
        """The stages' names."""
        return " + ".join(step.stage.name for step in self.steps) or "source"


class Plan(Model):
    """What to do, in order. It holds no path of a machine, no code and nothing live."""

    name: str
    source: tuple[SerializeAsAny[Source], ...]
    stages: tuple[SerializeAsAny[Stage], ...] = ()
    sink: SerializeAsAny[Sink] | None = None

    @field_validator("name")
    @classmethod
    def _word(cls, name: str) -> str:
        if not name or not all(char.isalnum() or char in "-_" for char in name):
            raise ValueError("a plan's name is letters, digits, - and _")
        return name

    @field_serializer("source", "stages")
    def _many(self, items: tuple[Definition, ...]) -> list[dict[str, Any]]:
        return [spell(item) for item in items]

    @field_serializer("sink")
    def _one(self, item: Definition | None) -> dict[str, Any] | None:
        return None if item is None else spell(item)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the plan but resources, and where its source's files happen to lie."""
        places = [[source.label(), source.identity()] for source in self.source]
        stages = [[stage.name, stage.version, stage.model_dump(mode="json", exclude=stage.not_in_key)] for stage in self.stages]
        sink = None if self.sink is None else spell(self.sink)
        return digest_json({"name": self.name, "source": places, "stages": stages, "sink": sink})

    def to_json(self) -> str:
        """Return the plan as JSON that `Plan.from_json` reads."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Read a plan that `to_json` wrote."""
        return parse_plan(Document("plan.json", json.loads(text)))

    @cached_property
    def fields(self) -> dict[str, pa.Field]:
        """Every column there is after the last stage."""
        found = {field.name: field for source in self.source for field in source.fields()}
        for stage in self.stages:
            found |= {field.name: field for field in written(stage)}
        return found

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The stages in their places; checks every column on the way."""
        return tuple(_walk(self))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The row-wise work, cut where what a task holds changes and before every GlobalFilter.

        A GlobalFilter stands first in the segment that applies its verdicts.
        """
        groups: list[list[Step]] = [[]]
        for step in self.steps:
            first = not groups[-1] and isinstance(step.stage, GlobalFilter)
            if first or (groups[-1] and _cuts(groups[-1][-1].stage, step.stage)):
                groups.append([])
            groups[-1].append(step)
        return tuple(Segment(tuple(group)) for group in groups)

    def until(self, name: str) -> "Plan":
        """Return the plan cut after the last stage of that name, without its sink."""
        places = [index for index, stage in enumerate(self.stages) if stage.name == name]
        if not places:
            raise ConfigError(f"no stage is called `{name}`", hint=did_you_mean(name, [stage.name for stage in self.stages]))
        return Plan(name=self.name, source=self.source, stages=self.stages[: places[-1] + 1], sink=None)

    def located(self, base: Path | None = None) -> "Plan":
        """Return the plan with its sources' paths absolute (from `base`, by default here), for workers elsewhere."""
        home = (base or Path()).absolute()
        return self.changed(source=tuple(source.located(home) for source in self.source))

    def changed(self, *, source: tuple[Source, ...] | None = None, stages: tuple[Stage, ...] | None = None) -> "Plan":
        """Return the plan with other sources or stages, its derived facts made anew."""
        return Plan(
            name=self.name, source=source or self.source, stages=self.stages if stages is None else stages, sink=self.sink
        )

    def check(self) -> None:
        """Raise ConfigError unless every column that is read is written, once, with a fitting type."""
        _ = self.segments
        if self.sink is not None:
            self.sink.reads(self.fields)
            self._check_media()

    @property
    def trusted(self) -> bool:
        """True when the media that the sink writes was encoded by one of our stages."""
        return any(PAYLOAD_COLUMN in {field.name for field in written(stage)} for stage in self.stages)

    def _check_media(self) -> None:
        """Refuse media that nobody has looked at, and sources of which only some hold media."""
        if self.trusted:
            return
        holding = [PAYLOAD_COLUMN in {field.name for field in source.fields()} for source in self.source]
        if not all(holding):
            raise ConfigError(
                "some sources hold media and others only urls", hint="give each kind a plan of its own, or add `download`"
            )
        if not any(IMAGE in stage.reads() for stage in self.stages):
            raise ConfigError(
                "no stage looks at the source's images, so broken ones would reach the corpus", hint="add `measure`"
            )


def spell(item: Definition) -> dict[str, Any]:
    """Return a definition as YAML has it: its name with the fields that differ from the defaults."""
    return {item.name: item.model_dump(mode="json", exclude_defaults=True)}


def written(stage: Stage) -> tuple[pa.Field, ...]:
    """Return the fields that a stage adds; a tagging Filter adds a flag."""
    if isinstance(stage, Map | Split):
        return stage.writes()
    if isinstance(stage, Filter) and stage.tag:
        return (pa.field(tag_name(stage), pa.bool_(), metadata={"unit": "flag", "meaning": f"{stage.name} would keep it"}),)
    return ()


def tag_name(stage: Filter) -> str:
    """Return the column of a tagging Filter: its name and, where it judges one column, that."""
    columns = stage.numeric()
    return f"{stage.name}_{columns[0]}" if columns else stage.name


def load_plan(path: Path, base: Path | None = None) -> Plan:
    """Read and check a plan; paths in it are relative to `base`, by default to where the command runs."""
    plan = parse_plan(read_yaml(path), base)
    plan.check()
    return plan


def parse_plan(document: Document, base: Path | None = None) -> Plan:
    """Build a plan from a document; every mistake names its line."""
    value = document.value
    if not isinstance(value, dict):
        raise ConfigError(f"{document.where(())}: a plan is a mapping", hint="its keys are: name, source, stages, sink")
    for key in value:
        if key not in Plan.model_fields:
            raise ConfigError(f"{document.where((key,))}: a plan has no key `{key}`", hint=did_you_mean(key, Plan.model_fields))
    for key in ("name", "source"):
        if key not in value:
            raise ConfigError(f"{document.where(())}: a plan needs `{key}`")
    sources = _parse_list(document, "source", Source)
    stages = _parse_list(document, "stages", Stage) if "stages" in value else ()
    sink = _parse_one(document, ("sink",), Sink) if value.get("sink") is not None else None
    plan = build(Plan, document, (), {"name": value["name"], "source": sources, "stages": stages, "sink": sink})
    plan = plan if base is None else plan.located(base)
    _check_lines(plan, document)
    return plan


def _parse_list(document: Document, key: str, verb: type[Definition]) -> tuple[Any, ...]:
    value = document.value[key]
    if not isinstance(value, list):
        if verb is Source:
            return (_parse_one(document, (key,), verb),)
        raise ConfigError(f"{document.where((key,))}: `{key}` is a list", hint="write one `- name: {...}` a line")
    return tuple(_parse_one(document, (key, index), verb) for index in range(len(value)))


def _parse_one(document: Document, path: tuple[str | int, ...], verb: type[Definition]) -> Definition:
    known = named(verb)
    name, fields = one_key(document, path, list(known), verb.__name__.lower())
    return build(known[name], document, (*path, name), fields)


def _check_lines(plan: Plan, document: Document) -> None:
    """Check the columns, and say on which line the stage stands that cannot have one."""
    try:
        for _ in _walk(plan):
            pass
    except _StepError as error:
        raise ConfigError(f"{document.where(('stages', error.index))}: {error.message}", hint=error.hint) from None


class _StepError(ConfigError):
    """A mistake in one stage; `index` says which."""

    def __init__(self, message: str, *, hint: str | None = None, index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.index = index


def _walk(plan: Plan) -> Iterator[Step]:
    fields = {field.name: field for source in plan.source for field in source.fields()}
    homes = dict.fromkeys(fields, -1)
    space = 0
    for index, stage in enumerate(plan.stages):
        reads = _needed(stage)
        for column in reads:
            if column not in fields:
                hint = "add `download`, or read a source that holds media" if column == PAYLOAD_COLUMN else None
                raise _StepError(
                    f"`{stage.name}` reads `{column}`, which nothing before it writes",
                    hint=hint or did_you_mean(column, fields), index=index,
                )  # fmt: skip
        _check_types(stage, fields, index)
        new = written(stage)
        clash = [field.name for field in new if field.name in fields]
        if clash and not isinstance(stage, Split):
            raise _StepError(
                f"`{stage.name}` writes `{clash[0]}`, which is there already", hint="drop one of the two", index=index
            )
        yield Step(index, stage, space, {column: homes[column] for column in reads})
        if isinstance(stage, Split):
            space += 1
            homes |= {"sample_id": index, "position": index}
        if space > MAX_SPLITS:
            raise _StepError(
                f"a plan may split {MAX_SPLITS} times", hint="split once into what is wanted in the end", index=index
            )
        fields |= {field.name: field for field in new}
        homes |= {field.name: index for field in new}


def _needed(stage: Stage) -> list[str]:
    """Return the stored columns that a stage needs: for pixels, the payload that they are decoded from."""
    names = [PAYLOAD_COLUMN if name == IMAGE else name for name in stage.reads()]
    return list(dict.fromkeys(names))


def _check_types(stage: Stage, fields: dict[str, pa.Field], index: int) -> None:
    for column in stage.numeric():
        kind = fields[column].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise _StepError(f"`{stage.name}` needs numbers, but `{column}` is {kind}", hint="name a numeric column", index=index)


def _cuts(before: Stage, after: Stage) -> bool:
    """Say whether two neighbouring stages run in different tasks."""
    if isinstance(after, GlobalFilter):
        return True
    whole = any(isinstance(stage, Map) and stage.whole for stage in (before, after))
    return whole or before.resources != after.resources or bool(before.weights()) != bool(after.weights())
