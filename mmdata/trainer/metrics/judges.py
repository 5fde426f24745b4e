"""Who filtered a corpus may not also say how well a model of it does."""

from collections.abc import Mapping, Sequence


def judged_by(makers: Mapping[str, Mapping[str, object]], digests: Sequence[str]) -> list[str]:
    """Return the columns of a corpus that a model with one of these weights made: where there are any, it is no judge of it.

    makers   `makers` of `corpus.json`, by column: with `weights`, the SHA-256 of each file that the model loaded
    digests  SHA-256 of what the judge loads, as `ScorerModel.digests()` gives them
    """
    return sorted(column for column, maker in makers.items() if set(_listed(maker.get("weights"))) & set(digests))


def _listed(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
