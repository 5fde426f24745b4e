"""What a tokenizer is (its spec: kind and sizes, saved with it) and how it is trained (the config of one training)."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mmdata.config import Model, build, read_yaml
from mmdata.errors import ConfigError, did_you_mean
from mmdata.storage import digest_json

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
MOST_CODES = 1 << 18


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("the factor of a convolutional tokenizer is a power of 2")
    return value


class PatchesSpec(Model):
    """The pixels of a patch themselves: continuous, exact, nothing to be trained."""

    kind: Literal["patches"]
    factor: Positive = 4


class KmeansSpec(Model):
    """A codebook of whole patches, by k-means on `num_patches` of the corpus, at most `rounds` of Lloyd's rounds."""

    kind: Literal["kmeans"]
    factor: Positive = 4
    codes: Annotated[int, Field(ge=2, le=MOST_CODES)] = 512
    num_patches: Positive = 50_000
    rounds: Positive = 30

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.num_patches < self.codes:
            raise ValueError(f"`num_patches` {self.num_patches} are fewer than `codes` {self.codes}")
        return self


class NetSpec(Model):
    """Sizes of the convolutional encoder and decoder: `width` channels at half the resolution, doubled twice at most."""

    factor: Annotated[int, Field(ge=2, le=64), AfterValidator(_power_of_two)] = 8
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    blocks: Positive = 1


class VqSpec(NetSpec):
    """A learnt codebook of `codes` vectors of `dim` numbers, moved by averages; codes hardly used start anew.

    commit         weight of the loss that holds the encoder to its codes
    decay          of the averages that the codebook is made of
    restart_below  share of the mean use under which a code starts anew
    """

    kind: Literal["vq"]
    codes: Annotated[int, Field(ge=2, le=MOST_CODES)] = 512
    dim: Positive = 8
    commit: Weight = 0.25
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    restart_below: Annotated[float, Field(gt=0, lt=1)] = 0.05


class FsqSpec(NetSpec):
    """Finite scalar quantization: each of a few numbers is rounded to one of its levels; the codebook is their product."""

    kind: Literal["fsq"]
    levels: Annotated[tuple[Annotated[int, Field(ge=2, le=256)], ...], Field(min_length=1)] = (8, 5, 5, 5)

    @model_validator(mode="after")
    def _countable(self) -> Self:
        codes = 1
        for level in self.levels:
            codes *= level
        if codes > MOST_CODES:
            raise ValueError(f"`levels` make {codes:,} codes, above {MOST_CODES:,}: take fewer or smaller ones")
        return self


class KlSpec(NetSpec):
    """A variational autoencoder: `channels` continuous numbers a token, held to a unit Gaussian by `kl_weight`."""

    kind: Literal["kl"]
    channels: Positive = 4
    kl_weight: Weight = 1e-4


SPECS: dict[str, type[Model]] = {
    "patches": PatchesSpec, "kmeans": KmeansSpec, "vq": VqSpec, "fsq": FsqSpec, "kl": KlSpec,
}  # fmt: skip
Spec = Annotated[PatchesSpec | KmeansSpec | VqSpec | FsqSpec | KlSpec, Field(discriminator="kind")]


class LossConfig(Model):
    """The reconstruction loss: pixels in [-1, 1], and `edges` times the L1 distance of neighbours' differences.

    There is no perceptual term: it needs the weights of a trained network, and none come with this package.
    """

    pixels: Literal["l1", "mse"] = "l1"
    edges: Weight = 0.5


class FitConfig(Model):
    """How nets are trained: AdamW without decay, a warm-up and then a cosine to zero; `ema` averages the weights."""

    steps: Positive = 4000
    batch: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    clip: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    loss: LossConfig = LossConfig()
    save_every: Positive = 500


class TokenizerConfig(Model):
    """One training of an image tokenizer.

    size      images are fitted into a square of so many pixels
    threads   of torch; 0 leaves them as they are
    """

    name: str
    corpus: str
    split: str = "train"
    val_split: str | None = "val"
    seed: int = 0
    size: Positive = 64
    tokenizer: Spec
    fit: FitConfig = FitConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _rules(self) -> Self:
        spec = self.tokenizer
        if self.size % spec.factor:
            raise ValueError(f"`size` {self.size} is no multiple of `tokenizer.factor` {spec.factor}")
        if not isinstance(spec, NetSpec) and "fit" in self.model_fields_set:
            raise ValueError(f"`fit` is for nets: `{spec.kind}` takes no steps; leave it out")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the tokenizer: all but where files lie, who computes, and how often progress is saved."""
        data = self.model_dump(mode="json", exclude={"corpus", "device", "threads", "fit"})
        return digest_json([data, self.fit.model_dump(mode="json", exclude={"save_every"})])


def load_tokenizer_config(path: Path) -> TokenizerConfig:
    """Read the config of a tokenizer's training; every mistake names its line."""
    document = read_yaml(path)
    given = document.value.get("tokenizer") if isinstance(document.value, dict) else None
    if isinstance(given, dict) and "kind" in given:
        kind = str(given["kind"])
        if kind not in SPECS:
            where = document.where(("tokenizer", "kind"))
            raise ConfigError(f"{where}: no kind of tokenizer is called `{kind}`", hint=did_you_mean(kind, SPECS))
        build(SPECS[kind], document, ("tokenizer",))  # alone it names the line and the key; in a union, neither
    return build(TokenizerConfig, document)
