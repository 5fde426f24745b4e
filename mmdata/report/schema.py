"""JSON Schema of plans and catalogs, for editors."""

from typing import Any

from mmdata.catalog import Entry
from mmdata.errors import ConfigError, did_you_mean
from mmdata.stages import engines_of, named
from mmdata.stages.verbs import Definition, Sink, Source, Stage

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(what: str) -> dict[str, Any]:
    """Return the schema of `plan` or `catalog`."""
    if what == "plan":
        return _plan_schema()
    if what == "catalog":
        entries = {"type": "object", "additionalProperties": Entry.model_json_schema()}
        return {"$schema": _DIALECT, "title": "catalog", "type": "object", "properties": {"entries": entries}}
    raise ConfigError(f"no schema is called `{what}`", hint=did_you_mean(what, ("plan", "train", "catalog")))


def _plan_schema() -> dict[str, Any]:
    source = _one_of(Source)
    return {
        "$schema": _DIALECT, "title": "plan", "type": "object", "additionalProperties": False, "required": ["name", "source"],
        "properties": {
            "name": {"type": "string"},
            "source": {"anyOf": [source, {"type": "array", "items": source}]},
            "stages": {"type": "array", "items": _one_of(Stage)},
            "sink": _one_of(Sink),
        },
    }  # fmt: skip


def _one_of(verb: type[Definition]) -> dict[str, Any]:
    """Return the schema of `{name: fields}` for every known definition of a verb."""
    choices = []
    for name, cls in named(verb).items():
        choices.append(_choice(name, cls.model_json_schema(), cls))
        for engine, other in engines_of(verb, name).items():
            if other is not cls:
                schema = other.model_json_schema()
                schema["properties"]["engine"] = {"const": engine}
                choices.append(_choice(name, schema | {"required": [*schema.get("required", ()), "engine"]}, other))
    return {"oneOf": choices}


def _choice(name: str, schema: dict[str, Any], cls: type[Definition]) -> dict[str, Any]:
    schema["description"] = (cls.__doc__ or "").strip().splitlines()[0]
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
