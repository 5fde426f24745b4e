"""The walk along a plan's stages: which column comes from where, and where one task ends and the next begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mmdata.errors import ConfigError, did_you_mean
from mmdata.schema import BASE_NAMES, BOXES, IMAGE, PAYLOAD_COLUMN, is_embedding
from mmdata.stages.verbs import Filter, GlobalFilter, Map, Source, Split, Stage

MAX_SPLITS = 2  # a child's row number holds its ancestors' (20 bits a level)


@dataclass(frozen=True)
class Step:
    """A stage in its place: its index in the plan, the row space it works in, where its columns come from."""

    index: int
    stage: Stage
    space: int
    sources: dict[str, int]  # column -> index of the step that wrote it; -1 is the source


def written(stage: Stage) -> tuple[pa.Field, ...]:
    """Return the fields that a stage adds; a tagging Filter adds its flag."""
    if isinstance(stage, Map | Split):
        return stage.writes()
    if isinstance(stage, Filter) and stage.tag:
        return stage.flags()
    return ()


class StepError(ConfigError):
    """A mistake in one stage; `index` says which."""

    def __init__(self, message: str, *, hint: str | None = None, index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.index = index


def walk(sources: Sequence[Source], stages: Sequence[Stage]) -> Iterator[Step]:
    """Yield the stages in their places, each checked: what it reads was written before it, once, with a fitting type."""
    fields = {field.name: field for source in sources for field in source.fields()}
    homes = dict.fromkeys(fields, -1)
    space = 0
    for index, stage in enumerate(stages):
        reads = _needed(stage, index)
        for column in reads:
            if column not in fields:
                hint = "add `download`, or read a source that holds media" if column == PAYLOAD_COLUMN else None
                raise StepError(
                    f"`{stage.name}` reads `{column}`, which nothing before it writes",
                    hint=hint or did_you_mean(column, fields), index=index,
                )  # fmt: skip
        _check_types(stage, fields, index)
        if isinstance(stage, Map) and stage.documents:
            _check_settled(stage, stages[:index], index)
        new = written(stage)
        # What the source carries may be written anew: a pool's `original_width` is then that of what was downloaded.
        fixed = {name for name, home in homes.items() if home >= 0 or name in (*BASE_NAMES, PAYLOAD_COLUMN)}
        clash = [field.name for field in new if field.name in fixed]
        if clash and not isinstance(stage, Split):
            raise StepError(
                f"`{stage.name}` writes `{clash[0]}`, which is there already", hint="drop one of the two", index=index
            )
        yield Step(index, stage, space, {column: homes[column] for column in reads})
        if isinstance(stage, Split):
            space += 1
            homes |= {"sample_id": index, "position": index}
        if space > MAX_SPLITS:
            raise StepError(f"a plan may split {MAX_SPLITS} times", hint="split once into what is wanted in the end", index=index)
        fields |= {field.name: field for field in new}
        homes |= {field.name: index for field in new}


def _needed(stage: Stage, index: int) -> list[str]:
    """Return the stored columns that a stage needs: for pixels, the payload that they are decoded from."""
    try:
        reads = stage.reads()
    except ConfigError as error:  # what it reads stands in a text that cannot be read
        raise StepError(error.message, hint=error.hint, index=index) from error
    names = [PAYLOAD_COLUMN if name == IMAGE else name for name in reads]
    return list(dict.fromkeys(names))


def _check_types(stage: Stage, fields: dict[str, pa.Field], index: int) -> None:
    for column in stage.numeric():
        kind = fields[column].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise StepError(f"`{stage.name}` needs numbers, but `{column}` is {kind}", hint="name a numeric column", index=index)
    for column in stage.boxes():
        if fields[column].type != BOXES:
            kind, hint = fields[column].type, f"carry it as boxes: `carry: {{{column}: boxes}}`"
            raise StepError(f"`{stage.name}` needs boxes, but `{column}` is {kind}", hint=hint, index=index)
    for column in stage.vectors():
        if not is_embedding(fields[column].type):
            hint = "name a column of embeddings, such as `clip_score: {embeddings: [image]}` writes"
            raise StepError(f"`{stage.name}` needs embeddings, but `{column}` is {fields[column].type}", hint=hint, index=index)
    try:
        stage.check(fields)
    except ConfigError as error:
        raise StepError(error.message, hint=error.hint, index=index) from error


def _check_settled(stage: Stage, before: Sequence[Stage], index: int) -> None:
    """Refuse a stage that looks at whole documents where new files can still change what is left of the old ones."""
    later = next((other for other in before if isinstance(other, GlobalFilter)), None)
    if later is not None:
        raise StepError(
            f"`{stage.name}` looks at whole documents, and new files can change which rows `{later.name}` leaves of them",
            hint=f"put it before `{later.name}`", index=index,
        )  # fmt: skip


def cuts(before: Stage, after: Stage) -> bool:
    """Say whether two neighbouring stages run in different tasks."""
    if isinstance(after, GlobalFilter):
        return True
    whole = any(isinstance(stage, Map) and stage.whole for stage in (before, after))
    mine, theirs = before.resources, after.resources
    held = (mine.cpus, mine.gpus) != (theirs.cpus, theirs.gpus)
    return whole or held or before.holds_model() != after.holds_model()
