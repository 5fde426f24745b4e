"""How a plan names a scorer: `{open_clip: {model: ..., weights: ...}}` or `{fake: true}`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from mmdata.config import Model
from mmdata.errors import ConfigError
from mmdata.models.scorer import HashScorer, Scorer
from mmdata.storage import digest_file

TINY_CLIP = "mmdata-tiny"
TINY_CLIP_FOLDER = Path(__file__).parent / "tiny_clip"


class OpenClip(Model):
    """A model of open_clip.

    `model` is an architecture name of open_clip, `hf-hub:...`, a folder in open_clip's own layout, or `mmdata-tiny`, the
    small model that ships with this package. `weights` is a pretrained tag or a file. `batch` is the one batch shape;
    the last batch is padded to it.
    """

    model: str = TINY_CLIP
    weights: str | None = None
    batch: Annotated[int, Field(ge=1)] = 32

    def folder(self) -> Path | None:
        """Return the folder in open_clip's layout that this names, if it names one."""
        if self.model == TINY_CLIP:
            return TINY_CLIP_FOLDER
        path = Path(self.model)
        return path if (path / "open_clip_config.json").is_file() else None

    def files(self) -> tuple[Path, ...]:
        """Return the weights files that loading would read; a hub tag is fetched first."""
        folder = self.folder()
        if folder is not None:
            found = sorted(folder.glob("open_clip_model.*")) + sorted(folder.glob("open_clip_pytorch_model.*"))
            return (folder / "open_clip_config.json", *found[:1])
        if self.weights is not None and Path(self.weights).is_file():
            return (Path(self.weights),)
        if self.weights is None and not self.model.startswith("hf-hub:"):
            raise ConfigError(
                f"open_clip model `{self.model}` is named without weights",
                hint="add `weights:`, a pretrained tag such as laion2b_s34b_b79k, or a file",
            )
        from mmdata.models.openclip import fetch_weights

        return (fetch_weights(self.model, self.weights),)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: no such weights file", hint="check the path, or name a pretrained tag") from error
    return stat.st_size, stat.st_mtime_ns


@cache
def _digest_once(path: Path, size: int, time_ns: int) -> str:
    return digest_file(path)


class ScorerSpec(Model):
    """Exactly one kind of scorer; the default is the small CLIP that ships with the package."""

    open_clip: OpenClip | None = None
    fake: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.fake and self.open_clip is not None:
            raise ValueError("give `open_clip` or `fake`, not both")
        return self

    @property
    def clip(self) -> OpenClip:
        """The open_clip model that is meant."""
        return self.open_clip or OpenClip()

    def label(self) -> str:
        """Return the model's name for people."""
        return "a hash (fake)" if self.fake else " ".join(filter(None, (self.clip.model, self.clip.weights)))

    def weights(self) -> tuple[str, ...]:
        """Return the SHA-256 of each file the scorer loads."""
        return () if self.fake else tuple(_digest_once(path, *_stamp(path)) for path in self.clip.files())

    @contextmanager
    def open(self, device: str, threads: int) -> Iterator[Scorer]:
        """Load the scorer for as long as the context is open."""
        if self.fake:
            yield HashScorer()
            return
        from mmdata.models.openclip import OpenClipScorer

        yield OpenClipScorer(self.clip, device, threads)
