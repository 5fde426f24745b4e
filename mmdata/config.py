"""YAML 1.2 into frozen models; every mistake is reported as file:line, what, and a hint.

Decided here: scalars follow the YAML 1.2 core schema (`3e-4` is a number, `on` and `no` are words), and a word is never
taken for a number or a flag. Tags are refused, keys are unique, and a document may not expand to more than 100,000 nodes,
so neither code nor alias bombs get in.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mmdata.errors import ConfigError, did_you_mean

MAX_NODES = 100_000
MAX_CHARS = 8 << 20
Path_ = tuple[str | int, ...]

_MAX_DIGITS = 4300  # as Python has it for whole numbers
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan"),
}  # fmt: skip


class Model(BaseModel):
    """A definition: immutable, no unknown keys, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: plain values, and the line of every key and item."""

    name: str
    value: Any
    lines: dict[Path_, int] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """Return `file:line` of the nearest known place at or above a path."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"

    def at(self, *path: str | int) -> Any:  # noqa: ANN401 - a parser's edge
        """Return the value at a path."""
        value = self.value
        for step in path:
            value = value[step]
        return value


def read_yaml(path: Path) -> Document:
    """Parse one YAML file."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARS + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="check the spelling; paths are relative to here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Parse YAML text; `name` stands in messages."""
    if len(text) > MAX_CHARS:
        raise ConfigError(
            f"{name}:1: longer than {MAX_CHARS:,} characters", hint="a definition is written by hand; a list is data"
        )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(f"{name}:1: nests too deep", hint="a definition needs a few levels") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{name}:{line}: not valid YAML: {problem}") from error
    document = Document(name, None)
    builder = _Builder(document)
    value = builder.build(node, ()) if node is not None else {}
    return Document(name, value, document.lines)


class _Builder:
    """Turns nodes into values, counting them so that an alias bomb stops early."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def build(self, node: yaml.Node, path: Path_) -> object:
        self.count += 1
        line = node.start_mark.line + 1
        self.document.lines.setdefault(path, line)
        if self.count > MAX_NODES or len(path) > 50:
            raise ConfigError(
                f"{self.document.name}:{line}: the document expands to more than {MAX_NODES:,} nodes or nests too deep",
                hint="write the values out; aliases that multiply are refused",
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        self._check_tag(node, line, ("map", "seq"))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        return dict(self._pairs(node, path))

    def _pairs(self, node: yaml.Node, path: Path_) -> Iterator[tuple[str, object]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            self._check_tag(key_node, line, ("str", "int", "float", "bool", "null", "merge"))
            key = self._text(key_node, line)
            if key in seen:
                raise ConfigError(f"{self.document.name}:{line}: `{key}` is given twice", hint="remove one of them")
            if key == "<<":
                raise ConfigError(f"{self.document.name}:{line}: merge keys are not YAML 1.2", hint="write the keys out")
            seen.add(key)
            self.document.lines[(*path, key)] = line
            yield key, self.build(value_node, (*path, key))

    def _scalar(self, node: yaml.ScalarNode, line: int) -> object:
        self._check_tag(node, line, ("str", "int", "float", "bool", "null", "timestamp", "merge", "value"))
        text = self._text(node, line)
        if node.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if len(text) <= _MAX_DIGITS and _INT.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _text(self, node: yaml.Node, line: int) -> str:
        try:
            str(node.value).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{self.document.name}:{line}: half of a surrogate pair is no text") from None
        return str(node.value)

    def _check_tag(self, node: yaml.Node, line: int, known: tuple[str, ...]) -> None:
        short = node.tag.removeprefix("tag:yaml.org,2002:")
        if short not in known:
            raise ConfigError(
                f"{self.document.name}:{line}: the tag `{node.tag}` is refused",
                hint="a definition is plain text, numbers, lists and mappings; it cannot name code",
            )


def build(cls: type[ModelT], document: Document, path: Path_ = (), value: object | None = None) -> ModelT:
    """Make a model from the value at a path of a document (or from `value`, reported at that path)."""
    data = document.at(*path) if value is None else value
    label = str(path[-1]) if path else cls.__name__.lower()
    if not isinstance(data, dict):
        raise ConfigError(
            f"{document.where(path)}: `{label}` must be a mapping, not {_kind(data)}",
            hint=f"its keys are: {', '.join(cls.model_fields)}",
        )
    try:
        model = cls.model_validate(data)
    except ValidationError as error:
        raise _explain(cls, error, document, path) from None
    bent = next(_bent(data, model, ()), None)
    if bent is not None:
        loc, given, made = bent
        key = ".".join(str(step) for step in loc)
        raise ConfigError(
            f"{document.where(path + loc)}: `{key}`: {given!r:.80} is {_kind(given)}, not {_kind(made)}",
            hint="write numbers without quotes, and flags as true or false",
        )
    return model


def _bent(given: object, made: object, path: Path_) -> Iterator[tuple[Path_, object, object]]:
    """Yield what pydantic took for a number or a flag although it is written as something else."""
    if isinstance(given, dict):
        values = made if isinstance(made, dict) else getattr(made, "__dict__", {})
        for key, value in given.items():
            yield from _bent(value, values.get(key), (*path, key))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for index, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from _bent(one, other, (*path, index))
    elif isinstance(made, int | float) and isinstance(given, str | bool) and type(given) is not type(made):
        yield path, given, made


def _explain(cls: type[BaseModel], error: ValidationError, document: Document, path: Path_) -> ConfigError:
    lines, hints = [], []
    for item in error.errors(include_url=False):
        loc: Path_ = tuple(item["loc"])
        where = document.where(path + loc)
        key = ".".join(str(step) for step in loc) or cls.__name__
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: `{path[-1] if path else cls.__name__.lower()}` has no key `{key}`")
            hints.append(did_you_mean(str(loc[-1]), _keys_at(cls, loc[:-1])))
        elif item["type"] == "missing":
            lines.append(f"{where}: `{key}` is required")
        else:
            lines.append(f"{where}: `{key}`: {item['msg'].removeprefix('Value error, ')}, not {item['input']!r:.80}")
    return ConfigError("\n".join(lines), hint="; ".join(dict.fromkeys(hints)) or None)


def _keys_at(cls: type[BaseModel], loc: Path_) -> list[str]:
    for step in loc:
        info = cls.model_fields.get(str(step))
        inner = info.annotation if info else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        cls = inner
    return list(cls.model_fields)


def one_key(document: Document, path: Path_, known: list[str], what: str) -> tuple[str, object]:
    """Read `{name: fields}` (or a bare `name`) at a path and check the name against the known ones."""
    data = document.at(*path)
    if isinstance(data, str):
        data = {data: {}}
    if not isinstance(data, dict) or len(data) != 1:
        raise ConfigError(
            f"{document.where(path)}: a {what} is one name with its fields, not {_kind(data)}",
            hint=f"write `{known[0]}: {{...}}`" if known else None,
        )
    ((name, fields),) = data.items()
    if name not in known:
        raise ConfigError(f"{document.where((*path, name))}: no {what} is called `{name}`", hint=did_you_mean(name, known))
    return name, {} if fields is None else fields


def _kind(value: object) -> str:
    kinds = {
        bool: "a flag",
        dict: "a mapping",
        list: "a list",
        str: "text",
        int: "a number",
        float: "a number",
        type(None): "nothing",
    }
    return kinds.get(type(value), type(value).__name__)
