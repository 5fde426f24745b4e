"""What Maps share whose numbers come from the two towers of a scorer."""

from abc import ABC
from pathlib import Path
from typing import Any, Self

from mmdata.models import ScorerSpec
from mmdata.stages.verbs import Map, Resources


class ByTowers(Map, ABC):
    """A Map that loads a scorer's towers: its key holds what was asked and the weights, not how the model computes."""

    resources: Resources = Resources(memory_mib=8192, row_s=10)
    scorer: ScorerSpec = ScorerSpec()

    def located(self, home: Path) -> Self:
        """Return itself with absolute paths."""
        return self.model_copy(update={"scorer": self.scorer.located(home)})

    def weights(self) -> tuple[str, ...]:
        """Return the digest of the model's weights."""
        return self.scorer.weights()

    def holds_model(self) -> bool:
        """Say whether it loads weights: all but the fake does."""
        return not self.scorer.fake

    def model_id(self) -> str | None:
        """Return the model's id."""
        return self.scorer.label()

    def asked(self) -> dict[str, Any]:
        """Return its fields without how the model computes: that is the profile's."""
        return super().asked() | {"scorer": self.scorer.asked()}
