"""How a plan names a scorer: `{open_clip: {model: ..., weights: ...}}`, `{fake: true}`, or one of another package.

Everything that a name can have wrong is found here, before a run: a model or tag that does not exist, a file that is not
there, a hub that cannot be reached.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema, model_validator

from mmdata.config import Model
from mmdata.errors import ConfigError, did_you_mean
from mmdata.models.conse import Conse
from mmdata.models.scorer import HASH_DIM, Fake, HashTowers, ScorerModel, Towers
from mmdata.storage import digest_file

if TYPE_CHECKING:
    from mmdata.models.openclip import OpenClipTowers

TINY_CLIP = "mmdata-tiny"
TINY_CLIP_FOLDER = Path(__file__).parent / "tiny_clip"
HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
# As open_clip looks for them in a folder; what is not among these comes after, safetensors first.
_CHECKPOINTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz")
_TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip


class OpenClip(ScorerModel):
    """A model of open_clip: its score is the cosine of image and caption, in [-1, 1], also where it was trained by sigmoids.

    model    an architecture name of open_clip, `hf-hub:...`, a folder in open_clip's own layout (its config, weights and
             tokenizer), or `mmdata-tiny`, the small model that ships with this package
    weights  of a named architecture: a pretrained tag, or a file
    batch    the one batch shape, in pairs; the last batch is padded to it. Where memory does not hold it, it is halved
    dtype    of weights and activations; `auto` is bfloat16 where the device computes with it natively, but for models with
             batch norm, whose scores would move too much
    compile  let torch compile the towers: minutes at the start, and faster on a GPU

    `batch`, `dtype` and `compile` are in no key: they belong to the profile that is written with each file.
    """

    name: ClassVar[str] = "open_clip"
    unit: ClassVar[str] = "cosine"
    not_in_key: ClassVar[set[str]] = {"batch", "dtype", "compile"}

    model: str = TINY_CLIP
    weights: str | None = None
    batch: Annotated[int, Field(ge=1, le=65_536)] = 32
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False

    def label(self) -> str:
        """Return model and weights by their names; of a path the last part, for it is told to others."""
        model = self.model if self.folder() is None else Path(self.model).name
        weights = Path(self.weights).name if self.weights and Path(self.weights).is_file() else self.weights
        return " ".join(filter(None, (model, weights)))

    def meaning(self) -> str:
        """Say what the score is."""
        return f"cosine of image and caption by {self.label()}"

    def located(self, home: Path) -> Self:
        """Return itself with absolute paths, where model or weights are paths."""
        paths = {"model": home / self.model / CONFIG, "weights": home / (self.weights or "")}
        there = {name: str(home / getattr(self, name)) for name, path in paths.items() if getattr(self, name) and path.is_file()}
        return self.model_copy(update={} if self.model == TINY_CLIP else there)

    def asked(self) -> dict[str, Any]:
        """Return what decides its numbers, as JSON; where files lie is not among it: what they hold is in `digests`."""
        fields: dict[str, Any] = super().asked()[self.name]
        paths = {"model": self.model != TINY_CLIP and self.folder() is not None, "weights": Path(self.weights or "").is_file()}
        return {self.name: {name: value for name, value in fields.items() if not paths.get(name)}}

    def folder(self) -> Path | None:
        """Return the folder in open_clip's layout that this names, if it names one."""
        if self.model == TINY_CLIP:
            return TINY_CLIP_FOLDER
        path = Path(self.model)
        return path if (path / CONFIG).is_file() else None

    def files(self) -> tuple[Path, ...]:
        """Return the files that loading reads: config, weights, tokenizer; what lies on a hub is fetched first.

        Raises ConfigError for a model or weights that do not exist, with near names, and for a hub that cannot be reached.
        """
        self._check_names()
        folder = self.folder()
        if folder is not None:
            tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
            return (folder / CONFIG, checkpoint_in(folder), *tokenizer)
        from mmdata.models.openclip import check_architecture, fetch_weights

        if self.weights is not None and Path(self.weights).is_file():
            check_architecture(self.model)
            return (Path(self.weights),)
        return (fetch_weights(self.model, self.weights),)

    def _check_names(self) -> None:
        """Refuse what can be seen to be wrong without loading anything."""
        if self.folder() is not None or self.model.startswith(HUB):
            if self.weights is not None:
                raise ConfigError(
                    f"`{self.model}` brings its own weights, but `weights: {self.weights}` is given too",
                    hint="drop `weights:`, or name an architecture of open_clip as `model:`",
                )
            return
        if self.model.startswith((".", "/", "~")) or Path(self.model).is_dir():
            raise ConfigError(
                f"{self.model}: no model of open_clip lies there",
                hint=f"its folder holds `{CONFIG}`, the weights and the tokenizer",
            )
        if self.weights is None:
            raise ConfigError(
                f"open_clip model `{self.model}` is named without weights",
                hint="add `weights:`, a pretrained tag such as laion2b_s34b_b79k, or a file",
            )
        if self.weights.endswith(_SUFFIXES) and not Path(self.weights).is_file():
            raise ConfigError(f"{self.weights}: no such weights file", hint="check the path, or name a pretrained tag")

    def dim(self) -> int:
        """Return the length of its embeddings, from its config alone."""
        folder = self.folder()
        if folder is not None:
            return int(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]["embed_dim"])
        from mmdata.models.openclip import embed_dim

        return embed_dim(self.model)

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of config, weights and tokenizer."""
        return tuple(_digest_once(path, *_stamp(path)) for path in self.files())

    @contextmanager
    def open(self, device: str, threads: int) -> Iterator["OpenClipTowers"]:
        """Load the model."""
        from mmdata.models.openclip import OpenClipTowers

        yield OpenClipTowers(self, device, threads)


def checkpoint_in(folder: Path) -> Path:
    """Return the weights that open_clip takes from a folder in its layout."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth"))
    if not found:
        raise ConfigError(f"{folder}: holds `{CONFIG}`, but no weights", hint=f"put `{_CHECKPOINTS[0]}` beside it")
    ranks = {name: rank for rank, name in enumerate(_CHECKPOINTS)}
    return min(found, key=lambda path: (ranks.get(path.name, len(ranks)), path.suffix != ".safetensors", path.name))


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
    """Exactly one kind of model with two towers; the default is the small CLIP that ships with the package."""

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
        return Fake().label() if self.fake else self.clip.label()

    def weights(self) -> tuple[str, ...]:
        """Return the SHA-256 of each file the scorer loads."""
        return () if self.fake else self.clip.digests()

    def located(self, home: Path) -> Self:
        """Return itself with absolute paths."""
        return self if self.open_clip is None else self.model_copy(update={"open_clip": self.open_clip.located(home)})

    def dim(self) -> int:
        """Return the length of its embeddings."""
        return HASH_DIM if self.fake else self.clip.dim()

    def asked(self) -> dict[str, Any]:
        """Return what decides its numbers, as JSON."""
        return Fake().asked() if self.fake else self.clip.asked()

    @property
    def batch(self) -> int:
        """How many pairs it takes at once."""
        return 1 if self.fake else self.clip.batch

    @contextmanager
    def open(self, device: str, threads: int) -> Iterator[Towers]:
        """Load the model for as long as the context is open."""
        if self.fake:
            yield HashTowers()
            return
        with self.clip.open(device, threads) as towers:
            yield towers


@cache
def scorers() -> dict[str, type[ScorerModel]]:
    """Return the scorers by their name in plans, those of other packages included."""
    found: dict[str, type[ScorerModel]] = {cls.name: cls for cls in (Conse, Fake, OpenClip)}
    for point in entry_points(group="mmdata.scorers"):
        cls = point.load()
        found.setdefault(cls.name, cls)  # by the name that plans are written with
    return dict(sorted(found.items()))


def scorer_of(value: object) -> ScorerModel:
    """Make a scorer of `{name: fields}`, or of a bare name; raise ValueError for what is none."""
    if isinstance(value, ScorerModel):
        return value
    pairs = {value: {}} if isinstance(value, str) else value
    if not isinstance(pairs, dict) or len(pairs) != 1:
        raise ValueError("a scorer is one name with its fields, `{name: {...}}`")
    ((name, fields),) = pairs.items()
    if name not in scorers():
        raise ValueError(f"no scorer is called `{name}` ({did_you_mean(str(name), scorers())})")
    try:
        return scorers()[name].model_validate(fields or {})
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        raise ValueError(f"`{name}.{'.'.join(map(str, item['loc']))}`: {item['msg']}") from None


AnyScorer = Annotated[
    ScorerModel,
    BeforeValidator(scorer_of),
    PlainSerializer(lambda scorer: {scorer.name: scorer.model_dump(mode="json", exclude_defaults=True)}),
    WithJsonSchema({"description": "one scorer by its name, with its fields", "type": ["string", "object"]}),
]
