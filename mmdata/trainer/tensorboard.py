"""The log of a training run for TensorBoard, beside `metrics.jsonl`: the same numbers under the same names."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from mmdata.errors import ConfigError


class TensorBoard:
    """Writes event files into a folder; `tensorboard --logdir` there shows them, grouped by the first part of a name.

    first_step   the step that the run starts or resumes after: what an earlier process logged of later ones is hidden

    Raises ConfigError when the extra `train` is not installed.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError("TensorBoard is not installed", hint="pip install 'mmdata[train]', or log without it") from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, record: Mapping[str, float]) -> None:
        """Write the numbers of a step, a line of `metrics.jsonl`; those that are not finite are left out."""
        step = int(record["step"])
        for name, value in record.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Write what waits, and end."""
        self._writer.close()
