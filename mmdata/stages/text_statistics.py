"""Count what published rules on texts ask for."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Self

import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from mmdata.config import Model
from mmdata.errors import ConfigError
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext
from mmdata.storage import digest_file
from mmdata.text.rules import RULES, rules_of, statistics_of

WITHOUT_LISTS = tuple(name for name in RULES if not name.endswith("_words"))


class WordLists(Model):
    """Files of words, one a line, that the rules named `..._words` need."""

    flagged: str | None = None
    common: str | None = None

    def check(self, rules: tuple[str, ...]) -> None:
        """Raise ValueError for rules that need a list which is not given."""
        if needing := [name for name in rules if name.endswith("_words") and (self.flagged is None or self.common is None)]:
            raise ValueError(f"`{needing[0]}` needs `lists: {{flagged: FILE, common: FILE}}`")

    def located(self, home: Path) -> "WordLists":
        """Return itself with absolute paths."""
        return WordLists(**{name: str(home / path) for name, path in self.model_dump().items() if path is not None})

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of each file."""
        return tuple(f"{name} {digest_file(path)}" for name, path in self._paths().items())

    def read(self) -> dict[str, frozenset[str]]:
        """Return the words of each list, in lower case."""
        return {name: _read(path, digest_file(path)) for name, path in self._paths().items()}

    def _paths(self) -> dict[str, Path]:
        found = {"flagged_words": self.flagged, "common_words": self.common}
        paths = {name: Path(path) for name, path in found.items() if path is not None}
        for path in paths.values():
            if not path.is_file():
                raise ConfigError(f"list of words {path}: no such file", hint="paths are relative to where the command runs")
        return paths


@lru_cache(maxsize=4)
def _read(path: Path, _digest: str) -> frozenset[str]:
    return frozenset(line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def known(rules: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of sets of rules, or raise ValueError for one that is none."""
    try:
        rules_of(rules)
    except ConfigError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None
    return rules


RuleNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(known)]


class ByRules(Model):
    """What stages share that count what sets of rules ask for."""

    not_in_key: ClassVar[set[str]] = {"resources", "lists"}  # paths: what lies there is in `inputs`

    rules: RuleNames = WITHOUT_LISTS
    lists: WordLists = WordLists()

    @model_validator(mode="after")
    def _listed(self) -> Self:
        self.lists.check(self.rules)
        return self

    def located(self, home: Path) -> Self:
        """Return itself with absolute paths."""
        return self.model_copy(update={"lists": self.lists.located(home)})

    def inputs(self) -> tuple[str, ...]:
        """Return the digests of the lists."""
        return self.lists.digests()


class TextStatistics(ByRules, Map):
    """Write a column for each statistic that the sets of `rules` ask for, to be judged by `text_quality`; null for a null text.

    rules       sets of rules: gopher_quality and gopher_repetition (Rae et al. 2021), c4 and c4_line (Raffel et al. 2020),
                obelics_paragraph and obelics_document (Laurencon et al. 2023); all of these by default.
                obelics_paragraph_words and obelics_document_words need `lists`
    lists       files of words, one a line
    """

    name: ClassVar[str] = "text_statistics"

    resources: Resources = Resources(row_s=0.05)  # of texts up to 64 KiB

    def reads(self) -> tuple[str, ...]:
        """Read the text."""
        return ("text",)

    def writes(self) -> tuple[pa.Field, ...]:
        """Write a number for each statistic."""
        from mmdata.text.statistics import STATISTICS

        chosen = [STATISTICS[name] for name in statistics_of(rules_of(self.rules))]
        return tuple(pa.field(s.name, pa.float64(), metadata={"unit": s.unit, "meaning": s.meaning}) for s in chosen)

    def open(self, ctx: WorkerContext) -> MapFn:
        """Read the lists and return the counting function."""
        from mmdata.text.statistics import count

        names, lists = statistics_of(rules_of(self.rules)), self.lists.read()

        def work(batch: Batch) -> pa.Table:
            found = count(batch.table.column("text").to_pylist(), names, lists)
            return pa.table([pa.array(found[name], from_pandas=True) for name in names], pa.schema(self.writes()))

        return work
