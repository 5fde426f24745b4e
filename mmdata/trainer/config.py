"""The training config. Its keys are the axes on which unified models differ, one key an axis; the rest are scalars.

    text.objective, image.objective   what is corrupted and predicted       mask     who attends to whom
    image.repr                        what an image is made of              params   which weights a token uses
    time                              how noise time enters                 layout   which segments, in which order
    sampler                           inference only
Values of an axis that are not listed are not built yet and are refused by name.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmdata.config import Model, build, read_yaml
from mmdata.storage import digest_json

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class TextConfig(Model):
    """Text: next-token prediction over a byte-level BPE trained on the corpus."""

    objective: Literal["ar"] = "ar"
    vocab: Annotated[int, Field(ge=300, le=200_000)] = 1024


class ReprConfig(Model):
    """What stands for an image, when it is generated and when it is understood."""

    gen: Literal["pixel_patch"] = "pixel_patch"
    und: Literal["same_as_gen"] = "same_as_gen"


class ImageConfig(Model):
    """Images: flow matching on patches of pixels in [-1, 1].

    `predict` is what the head gives: the velocity, or the clean patch that the velocity follows from (the loss is the
    velocity's either way).
    """

    objective: Literal["flow"] = "flow"
    predict: Literal["velocity", "clean"] = "velocity"
    repr: ReprConfig = ReprConfig()
    size: Positive = 32
    patch: Positive = 4

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.size % self.patch:
            raise ValueError(f"`size` {self.size} is no multiple of `patch` {self.patch}")
        return self

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.size // self.patch

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch: height x width x RGB."""
        return 3 * self.patch**2


class ParamsConfig(Model):
    """Which weights a token uses."""

    share: Literal["dense"] = "dense"


class TimeConfig(Model):
    """How noise time enters, and how its values are drawn (logit-normal, or uniform), shifted by `shift`."""

    cond: Literal["none", "add"] = "add"
    joint: Literal["one_side_clean"] = "one_side_clean"
    draw: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: Annotated[float, Field(gt=0)] = 1.0


class LayoutConfig(Model):
    """Which segments a sample becomes. `clean_copy` lets text after a generated image see that image without noise."""

    p_caption_first: Share = 0.5
    p_drop_text: Share = 0.1
    clean_copy: bool = True
    row_tokens: Positive = 512
    max_text_tokens: Positive = 128


class SamplerConfig(Model):
    """Inference: function evaluations and guidance scale for images, temperature for text (0 = greedy)."""

    steps: Positive = 20
    cfg: Annotated[float, Field(ge=0)] = 2.0
    solver: Literal["euler", "heun"] = "euler"
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_text_tokens: Positive = 48


class ModelConfig(Model):
    """Shape of the transformer."""

    width: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    ffn_mult: Annotated[float, Field(gt=0)] = 2.7
    qk_norm: bool = True
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"`width` {self.width} is no multiple of 2 x `heads` {self.heads}")
        return self


class LossConfig(Model):
    """Weights of the loss families."""

    text: Annotated[float, Field(ge=0)] = 1.0
    image: Annotated[float, Field(ge=0)] = 1.0
    z_loss: Annotated[float, Field(ge=0)] = 1e-5


class OptimConfig(Model):
    """AdamW and its schedule; `rows` packed rows of all ranks make one step, `micro_rows` of them at a time on each rank.

    schedule   after `warmup` steps: `cosine` down to `final_lr` of the rate; `constant`; or `wsd`: constant, then a linear fall
               to `final_lr` over the last `decay` of all steps
    weight_decay   of weights, not of norms, biases and embeddings
    ema        decay of the averaged weights
    nonfinite  of a loss or gradient that is not finite: `stop`, or `skip` the update, at most `max_skips` times in a row
    """

    steps: Positive = 800
    rows: Positive = 4
    micro_rows: Positive = 4
    lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 50
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    final_lr: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    nonfinite: Literal["stop", "skip"] = "stop"
    max_skips: Positive = 5


class KeepConfig(Model):
    """Which checkpoints stay: the `last` ones, and the `best` by a figure of those saved at a step with an evaluation.

    metric   a figure of the evaluation, as `metrics.jsonl` names it     highest   more of it is better
    """

    last: Positive = 3
    best: Annotated[int, Field(ge=0)] = 1
    metric: str = "val/loss"
    highest: bool = False


class TrainConfig(Model):
    """A whole training run."""

    name: str
    corpus: str
    split: str = "train"
    val_split: str | None = "val"
    seed: int = 0
    text: TextConfig = TextConfig()
    image: ImageConfig = ImageConfig()
    mask: Literal["span_bidir", "causal"] = "span_bidir"
    noise_isolated: bool = True
    params: ParamsConfig = ParamsConfig()
    time: TimeConfig = TimeConfig()
    layout: LayoutConfig = LayoutConfig()
    sampler: SamplerConfig = SamplerConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    # `auto` is bfloat16 where the device multiplies it natively: elsewhere it is many times slower than float32.
    precision: Literal["float32", "bfloat16", "float64", "auto"] = "float32"
    # How ranks share the work, where there are several; `auto` is the GPU where there is one.
    parallel: Literal["none", "ddp", "fsdp"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    # 1e12 operations a second that the device could do: for `mfu`, where it is none of those whose peak is known.
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    threads: Annotated[int, Field(ge=0)] = 0
    loader_threads: Annotated[int, Field(ge=0)] = 1
    checkpoint_every: Positive = 200
    keep: KeepConfig = KeepConfig()
    eval_every: Positive = 100

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if not self.noise_isolated and self.layout.clean_copy:
            raise ValueError("`layout.clean_copy` is for isolated noise: set `noise_isolated: true`, or drop the copy")
        if self.image.patch_dim > self.model.width:
            raise ValueError(
                f"`image.patch` {self.image.patch} makes {self.image.patch_dim} numbers a patch, above `model.width` "
                f"{self.model.width}: velocities of that rank cannot be predicted; use smaller patches or a wider model"
            )
        if self.optim.rows % self.optim.micro_rows:
            raise ValueError("`optim.rows` must be a multiple of `optim.micro_rows`")
        return self

    @property
    def stream(self) -> dict[str, Any]:
        """What decides the training stream: all but inference, where files lie, and how the work is done."""
        return self.model_dump(mode="json", exclude=_ASIDE)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the training stream."""
        return digest_json(self.stream)


_ASIDE: Any = {
    **dict.fromkeys(("corpus", "sampler", "checkpoint_every", "keep", "eval_every", "threads", "loader_threads"), True),
    **dict.fromkeys(("parallel", "device", "compile", "activation_checkpointing", "peak_tflops"), True),
    "optim": {"micro_rows", "nonfinite", "max_skips"},
}


def load_config(path: Path) -> TrainConfig:
    """Read a training config; every mistake names its line."""
    return build(TrainConfig, read_yaml(path))
