"""The training config. Its keys are the axes on which unified models differ, one key an axis; the rest are scalars.

    text.objective, image.objective   what is corrupted and predicted       mask     who attends to whom
    image.repr                        what an image is made of              params   which weights a token uses
    time                              how noise time enters                 layout   which segments, in which order
    sampler                           inference only
Which values go together is decided by `mmdata.trainer.rules`, when the config is read.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmdata.config import Model, build, read_yaml
from mmdata.models import AnyScorer, OpenClip
from mmdata.storage import digest_json
from mmdata.trainer import rules

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
ROUND = 8  # hidden sizes are multiples of it: what grouped matrix products of half precision ask for


class TextConfig(Model):
    """Text over a byte-level BPE trained on the corpus.

    objective  `ar`: predict the next token; `mdm`: tokens are masked and predicted in their place (absorbing diffusion)
    masking    of `mdm`: `likelihood` masks each token with p drawn evenly and weighs by 1 / p, a bound of the likelihood
               (MDLM, LLaDA); `cosine` masks a cosine-drawn number of tokens and weighs all alike (Show-o)
    """

    objective: Literal["ar", "mdm"] = "ar"
    masking: Literal["likelihood", "cosine"] = "likelihood"
    vocab: Annotated[int, Field(ge=300, le=200_000)] = 1024


class ReprConfig(Model):
    """What stands for an image: where it is generated, and where it is understood.

    gen   `pixel_patch`: numbers of a patch in [-1, 1]; `vq`: codes, and `vae`: latents, both of `image.tokenizer`
    und   `same_as_gen`, `pixel_patch`: patches of pixels, or `clip`: features of a frozen CLIP image tower
    """

    gen: Literal["pixel_patch", "vq", "vae"] = "pixel_patch"
    und: Literal["same_as_gen", "pixel_patch", "clip"] = "same_as_gen"


class ImageConfig(Model):
    """Images, fitted into a square with white borders.

    objective  `ar`: predict the next code; `mdm`: predict masked codes; `flow`: flow matching; `ddpm_eps`: predict the noise
               of a cosine schedule; `none`: images are only understood
    masking    of `mdm`, as `text.masking`
    predict    what the head gives for `flow` and `ddpm_eps`; the loss stays the objective's. null = velocity, and noise
    tokenizer  folder of a tokenizer made by `mmdata tokenizer train`, for `vq` and `vae`
    clip       the frozen CLIP whose features are read where `repr.und` is `clip`
    size       pixels a side          patch   pixels a side of a patch, where an image is patches of pixels
    """

    objective: Literal["ar", "mdm", "flow", "ddpm_eps", "none"] = "flow"
    masking: Literal["likelihood", "cosine"] = "cosine"
    predict: Literal["velocity", "clean", "noise"] | None = None
    repr: ReprConfig = ReprConfig()
    tokenizer: str | None = None
    clip: OpenClip = OpenClip()
    size: Positive = 32
    patch: Positive = 4

    @property
    def continuous(self) -> bool:
        """Say whether what is generated are numbers, by noise; else codes, or nothing."""
        return self.objective in {"flow", "ddpm_eps"}

    @property
    def head(self) -> Literal["velocity", "clean", "noise"]:
        """What the head gives."""
        return self.predict or ("noise" if self.objective == "ddpm_eps" else "velocity")


class ParamsConfig(Model):
    """Which weights a token uses.

    share     `dense`: all the same; `moe`: the best `top_k` of `experts` feed-forward networks, chosen by the token;
              `mot`: each tower has its own weights everywhere but in the attention product (Mixture-of-Transformers)
    route_by  of `mot`: `modality`: text, image; `task`: read (text, images to be understood), made (images to be generated)
    expert_ratio   hidden size of an expert, of the dense one's; 1 / top_k costs as much compute as `dense`
    shared_expert  one more expert that every token uses
    balance   `bias`: a bias moves experts that have too little to do up, without a loss (DeepSeek-V3); `switch`: a loss
    """

    share: Literal["dense", "moe", "mot"] = "dense"
    route_by: Literal["modality", "task"] = "modality"
    experts: Positive = 8
    top_k: Positive = 2
    expert_ratio: Annotated[float, Field(gt=0)] = 1.0
    shared_expert: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    balance: Literal["bias", "switch", "none"] = "bias"
    bias_rate: Scale = 1e-3

    @property
    def towers(self) -> int:
        """Sets of weights between which the kind of a token decides."""
        return 2 if self.share == "mot" else 1


class TimeConfig(Model):
    """Noise time: how the model is told of it, and how it is drawn.

    cond    `add`: added to each noised patch (BAGEL); `token`: a token before the image (JanusFlow); `adaln`: scales and
            shifts of every layer, one projection for all layers (PixArt); `none`
    joint   with `mask: full`, what is corrupted together: one side alone, or both, at one time or at two
    draw    logit-normal or uniform, then shifted by `shift` (SD3)
    """

    cond: Literal["none", "token", "add", "adaln"] = "add"
    joint: Literal["one_side_clean", "shared_t", "independent_t"] = "one_side_clean"
    draw: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: Annotated[float, Field(gt=0)] = 1.0


class LayoutConfig(Model):
    """Which segments a sample becomes.

    p_caption_first  share of pairs whose image is generated from the caption; the others are captioned
    p_drop_text      share of pairs whose condition is dropped, for guidance: the caption of a generated image ...
    p_drop_image     ... and the images that come before one (or the image of a caption, with `mask: full`)
    clean_copy       text after a generated image sees a copy without noise (BAGEL)
    decompose        share of documents of which a short piece is learnt: two or three neighbouring blocks
    und_noise_cap    highest noise time of an image that comes first, which is then learnt too (Transfusion); 0: given clean
    positions        of image tokens: one for a whole image, or one each in raster order
    max_text_tokens  where a text is cut; with `text.objective: mdm` also the length of its slot
    """

    p_caption_first: Share = 0.5
    p_drop_text: Share = 0.1
    p_drop_image: Share = 0.0
    clean_copy: bool = True
    decompose: Share = 0.0
    und_noise_cap: Share = 0.0
    positions: Literal["shared", "raster"] = "shared"
    row_tokens: Positive = 512
    max_text_tokens: Positive = 128


class SamplerConfig(Model):
    """Inference.

    steps        function evaluations of an image by noise, or rounds of unmasking
    cfg          guidance scale of the text condition; 1 = none     cfg_image   of images before, in documents
    cfg_interval noise times between which guidance acts            renorm      least share that guidance may leave of the
                                                                                conditional length, per sample (BAGEL)
    temperature  of text; 0 = greedy       image_temperature, top_k   of codes; top_k 0 = all
    text_steps   rounds of unmasking of a text slot                 choice_temperature   of which codes stay (MaskGIT)
    text_choice  which masks are lifted: of the surest ids, or ancestral        text_block   ids of a block that is finished
                                                                                before the next; 0 = the whole slot
    """

    steps: Positive = 20
    cfg: Scale = 2.0
    cfg_image: Scale = 1.0
    cfg_interval: tuple[Share, Share] = (0.0, 1.0)
    renorm: Share | None = None
    solver: Literal["euler", "heun", "midpoint"] = "euler"
    temperature: Scale = 0.0
    image_temperature: Scale = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    choice_temperature: Scale = 1.0
    text_steps: Positive = 16
    text_choice: Literal["confidence", "ancestral"] = "confidence"
    text_block: Annotated[int, Field(ge=0)] = 0
    max_text_tokens: Positive = 48

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.solver != "euler" and self.steps % 2:
            raise ValueError(f"`steps` {self.steps}: {self.solver} takes two evaluations a step; give an even number")
        if self.cfg_interval[0] > self.cfg_interval[1]:
            raise ValueError(f"`cfg_interval` {list(self.cfg_interval)} is empty: give the lower time first")
        return self


class ModelConfig(Model):
    """Shape of the transformer."""

    width: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    ffn_mult: Annotated[float, Field(gt=0)] = 2.7
    qk_norm: bool = True
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0

    @property
    def hidden(self) -> int:
        """Hidden size of the feed-forward network."""
        return max(round(self.ffn_mult * self.width / ROUND), 1) * ROUND

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"`width` {self.width} is no multiple of 2 x `heads` {self.heads}")
        return self


class LossConfig(Model):
    """Weights of the loss families, and of what keeps logits small and experts busy.

    chunk   predictions whose logits are in memory at a time; more are computed twice instead
    """

    text: Scale = 1.0
    image: Scale = 1.0
    z_loss: Scale = 1e-5
    balance: Scale = 0.01
    chunk: Positive = 8192


class EvaluateConfig(Model):
    """What is asked of the model in the loop, besides the losses of the validation split.

    samples    pairs of each split, always the same; 0 = none         every   steps between; also at the end
    retrieval  pairs among which the model finds the caption          draws   of noise and masks, for likelihoods
    frechet    compare features of generated and true images (extra `evaluate`)
    scorer     a scorer of image and text; not the one that the corpus was filtered by
    """

    samples: Annotated[int, Field(ge=0)] = 0
    every: Positive = 1000
    retrieval: Annotated[int, Field(ge=0)] = 16
    draws: Positive = 1
    frechet: bool = False
    scorer: AnyScorer | None = None


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
    betas: tuple[Beta, Beta] = (0.9, 0.95)
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
    mask: Literal["causal", "span_bidir", "full"] = "span_bidir"
    noise_isolated: bool = True
    params: ParamsConfig = ParamsConfig()
    time: TimeConfig = TimeConfig()
    layout: LayoutConfig = LayoutConfig()
    sampler: SamplerConfig = SamplerConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
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
    tensorboard: bool = False
    checkpoint_every: Positive = 200
    keep: KeepConfig = KeepConfig()
    eval_every: Positive = 100

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for broken in rules.broken(self):
            raise ValueError(broken)
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
    **dict.fromkeys(("corpus", "sampler", "checkpoint_every", "keep", "eval_every", "threads", "loader_threads", "name"), True),
    **dict.fromkeys(("parallel", "device", "compile", "activation_checkpointing", "peak_tflops"), True),
    **dict.fromkeys(("evaluate", "tensorboard"), True),
    "optim": {"micro_rows", "nonfinite", "max_skips"},
    "loss": {"chunk"},
    "image": {"tokenizer"},  # what it makes counts, not where it lies
}


def load_config(path: Path) -> TrainConfig:
    """Read a training config; every mistake names its line."""
    return build(TrainConfig, read_yaml(path))
