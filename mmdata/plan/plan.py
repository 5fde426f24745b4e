"""A plan: source, stages, sink, checked column by column before a byte moves.

`Plan(...)` in Python equals the YAML. A segment is a run of neighbouring row-wise stages that share a task; it says what
runs together and nothing else.
"""

import json
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, SerializeAsAny, field_serializer, field_validator

from mmdata.config import Document, Model, build, one_key, read_yaml
from mmdata.errors import ConfigError, did_you_mean
from mmdata.plan.walk import Step, StepError, cuts, walk, written
from mmdata.schema import IMAGE, PAYLOAD_COLUMN
from mmdata.stages import engines_of, named
from mmdata.stages.verbs import Definition, GlobalFilter, Recipe, Resources, Sink, Source, Stage
from mmdata.storage import digest_json


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
        return any(step.stage.holds_model() for step in self.steps)

    @property
    def label(self) -> str:
        """The stages' names."""
        return " + ".join(step.stage.name for step in self.steps) or "source"


class Budget(Model):
    """How much may go wrong before a run stops early; it changes no result.

    failed_partitions  so many partitions may be given up; the run then goes on without them and says so. Rows dropped as
                       duplicates of theirs stay dropped; the same command, given again, makes up for both
    dropped_share      so large a share of all rows may be dropped, whatever the reason, once `after_rows` are settled
    """

    failed_partitions: Annotated[int, Field(ge=0)] = 0
    dropped_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    after_rows: Annotated[int, Field(ge=1)] = 1000


class Plan(Model):
    """What to do, in order. It holds no path of a machine, no code and nothing live."""

    name: str
    source: tuple[SerializeAsAny[Source], ...]
    stages: tuple[SerializeAsAny[Stage], ...] = ()
    sink: SerializeAsAny[Sink] | None = None
    budget: Budget = Budget()

    @field_validator("name")
    @classmethod
    def _word(cls, name: str) -> str:
        if not name or not all(char.isalnum() or char in "-_" for char in name):
            raise ValueError("a plan's name is letters, digits, - and _")
        return name

    @field_validator("stages")
    @classmethod
    def _spelled_out(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(part for stage in stages for part in parts_of(stage))

    @field_serializer("source", "stages")
    def _many(self, items: tuple[Definition, ...]) -> list[dict[str, Any]]:
        return [spell(item) for item in items]

    @field_serializer("sink")
    def _one(self, item: Definition | None) -> dict[str, Any] | None:
        return None if item is None else spell(item)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the plan but resources, its budget, and where its source's files happen to lie.

        Licences and the meanings of columns belong to it: a corpus tells them.
        """
        places = [[source.label(), source.identity()] for source in self.source]
        stages = [[stage.name, stage.version, stage.asked()] for stage in self.stages]
        sink = None if self.sink is None else spell(self.sink, self.sink.not_in_key)
        told = {"licences": self.licences, "columns": self.meanings}
        return digest_json({"name": self.name, "source": places, "stages": stages, "sink": sink, **told})

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
    def licences(self) -> dict[str, str]:
        """The licence of every entry of its sources."""
        return {name: licence for source in self.source for name, licence in source.licences().items()}

    @cached_property
    def cautions(self) -> list[str]:
        """What its stages do not obey, because the user said so."""
        return [f"{stage.name}: {caution}" for stage in self.stages for caution in stage.cautions()]

    @cached_property
    def meanings(self) -> dict[str, str]:
        """What every column holds that a corpus tells of, with its unit."""
        return {name: _meaning(column) for name, column in self.fields.items() if not name.startswith("_")}

    @property
    def makers(self) -> dict[str, dict[str, object]]:
        """Who made each column that a stage added: the stage, its version, and the model's id and weights if it has one."""
        found: dict[str, dict[str, object]] = {}
        for stage in self.stages:
            model = {} if stage.model_id() is None else {"model": stage.model_id(), "weights": list(stage.weights())}
            maker: dict[str, object] = {"stage": stage.name, "version": stage.version, **model}
            found |= {column.name: maker for column in written(stage) if not column.name.startswith("_")}
        return found

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The stages in their places; checks every column on the way."""
        return tuple(walk(self.source, self.stages))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The row-wise work, cut where what a task holds changes and before every GlobalFilter.

        A GlobalFilter stands first in the segment that applies its verdicts.
        """
        groups: list[list[Step]] = [[]]
        for step in self.steps:
            first = not groups[-1] and isinstance(step.stage, GlobalFilter)
            if first or (groups[-1] and cuts(groups[-1][-1].stage, step.stage)):
                groups.append([])
            groups[-1].append(step)
        return tuple(Segment(tuple(group)) for group in groups)

    def until(self, name: str) -> "Plan":
        """Return the plan cut after the last stage of that name, without its sink."""
        places = [index for index, stage in enumerate(self.stages) if stage.name == name]
        if not places:
            raise ConfigError(f"no stage is called `{name}`", hint=did_you_mean(name, [stage.name for stage in self.stages]))
        stages = self.stages[: places[-1] + 1]
        return Plan(name=self.name, source=self.source, stages=stages, sink=None, budget=self.budget)

    def located(self, base: Path | None = None) -> "Plan":
        """Return the plan with paths of sources and stages absolute (from `base`, by default here), for workers elsewhere."""
        home = (base or Path()).absolute()
        return self.changed(
            source=tuple(source.located(home) for source in self.source),
            stages=tuple(stage.located(home) for stage in self.stages),
        )

    def changed(self, *, source: tuple[Source, ...] | None = None, stages: tuple[Stage, ...] | None = None) -> "Plan":
        """Return the plan with other sources or stages, its derived facts made anew."""
        stages = self.stages if stages is None else stages
        return Plan(name=self.name, source=source or self.source, stages=stages, sink=self.sink, budget=self.budget)

    def check(self) -> None:
        """Raise ConfigError unless every column that is read is written, once, with a fitting type."""
        _ = self.segments
        for stage in self.stages:
            stage.weights()  # refuses models that do not exist
        makers = self.makers
        for stage in self.stages:
            stage.check_makers(makers)
        if self.sink is not None and PAYLOAD_COLUMN in self.sink.reads(self.fields):
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


def _meaning(column: pa.Field) -> str:
    data = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
    return f"{data.get('meaning', 'carried')} [{data.get('unit', str(column.type))}]"


def spell(item: Definition, without: Set[str] = frozenset()) -> dict[str, Any]:
    """Return a definition as YAML has it: its name with the fields that differ from the defaults."""
    return {item.name: item.model_dump(mode="json", exclude_defaults=True, exclude=set(without))}


def load_plan(path: Path, base: Path | None = None) -> Plan:
    """Read and check a plan; paths in it are relative to `base`, by default to where the command runs."""
    document = read_yaml(path)
    plan, places = _parse(document, base)
    _check_models(plan, document, places)
    plan.check()
    return plan


def parse_plan(document: Document, base: Path | None = None) -> Plan:
    """Build a plan from a document; every mistake names its line."""
    return _parse(document, base)[0]


def _parse(document: Document, base: Path | None) -> tuple[Plan, list[int]]:
    """Build a plan, and say of each of its stages which one of the document it came from."""
    value = document.value
    if not isinstance(value, dict):
        raise ConfigError(f"{document.where(())}: a plan is a mapping", hint="its keys are: name, source, stages, sink, budget")
    for key in value:
        if key not in Plan.model_fields:
            raise ConfigError(f"{document.where((key,))}: a plan has no key `{key}`", hint=did_you_mean(key, Plan.model_fields))
    for key in ("name", "source"):
        if key not in value:
            raise ConfigError(f"{document.where(())}: a plan needs `{key}`")
    sources = _parse_list(document, "source", Source)
    stages = _parse_list(document, "stages", Stage) if "stages" in value else ()
    sink = _parse_one(document, ("sink",), Sink) if value.get("sink") is not None else None
    budget = build(Budget, document, ("budget",), value["budget"]) if "budget" in value else Budget()
    parts = {"source": sources, "stages": stages, "sink": sink, "budget": budget}
    plan = build(Plan, document, (), {"name": value["name"], **parts})
    plan = plan if base is None else plan.located(base)
    places = [index for index, stage in enumerate(stages) for _ in parts_of(stage)]
    _check_lines(plan, document, places)
    return plan, places


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
    if isinstance(fields, dict) and (found := engines_of(verb, name)):
        own = dict(fields)
        engine = own.pop("engine", "mmdata")
        if engine not in found:
            where = document.where((*path, name, "engine"))
            raise ConfigError(f"{where}: `{name}` has no engine `{engine}`", hint=did_you_mean(str(engine), found))
        return build(found[engine], document, (*path, name), own)
    return build(known[name], document, (*path, name), fields)


def parts_of(stage: Stage) -> tuple[Stage, ...]:
    """Return what stands in a plan for a stage: itself, or the stages of a recipe."""
    return stage.stages() if isinstance(stage, Recipe) else (stage,)


def _check_lines(plan: Plan, document: Document, places: list[int]) -> None:
    """Check the columns, and say on which line the stage stands that cannot have one; `places` are theirs in the document."""
    try:
        for _ in walk(plan.source, plan.stages):
            pass
    except StepError as error:
        raise ConfigError(f"{document.where(('stages', places[error.index]))}: {error.message}", hint=error.hint) from None


def _check_models(plan: Plan, document: Document, places: list[int]) -> None:
    """Look for the models, and say on which line the stage stands whose model is not there."""
    for place, stage in zip(places, plan.stages, strict=True):
        try:
            stage.weights()
        except ConfigError as error:
            raise ConfigError(f"{document.where(('stages', place))}: {error.message}", hint=error.hint) from error
