"""Which values of the axes go together. What cannot work is refused when the config is read, with the reason."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdata.trainer.config import TrainConfig


def broken(config: "TrainConfig") -> Iterator[str]:
    """Yield what is wrong with a config, the gravest first."""
    yield from _objective_and_repr(config)
    yield from _mask(config)
    yield from _noise(config)
    yield from _sizes(config)


def _objective_and_repr(config: "TrainConfig") -> Iterator[str]:
    image, gen = config.image, config.image.repr.gen
    if image.objective in {"ar", "mdm"} and gen != "vq":
        yield f"`image.objective: {image.objective}` predicts codes, and `image.repr.gen: {gen}` has none: set `gen: vq`"
    if image.continuous and gen == "vq":
        yield f"`image.objective: {image.objective}` adds noise to numbers, and codes are none: set `gen: pixel_patch` or `vae`"
    if gen in {"vq", "vae"} and image.tokenizer is None:
        yield f"`image.repr.gen: {gen}` needs `image.tokenizer`: a folder made by `mmdata tokenizer train`"
    if gen == "pixel_patch" and image.tokenizer is not None:
        yield "`image.tokenizer` is given, and `image.repr.gen: pixel_patch` uses none: set `gen: vq` or `vae`, or drop it"
    if image.predict is not None and not image.continuous:
        yield f"`image.predict` is for `flow` and `ddpm_eps`; `image.objective` is {image.objective}"


def _mask(config: "TrainConfig") -> Iterator[str]:
    text, image = config.text.objective, config.image.objective
    if text == "mdm" and config.mask != "full":
        yield f"`text.objective: mdm` fills masks from both sides, which `mask: {config.mask}` does not let it see: set `full`"
    if text == "ar" and config.mask == "full":
        yield "`mask: full` shows `text.objective: ar` the token that it is to predict: set `span_bidir` or `causal`"
    if image == "ar" and config.mask != "causal":
        yield f"`mask: {config.mask}` shows `image.objective: ar` the code that it is to predict: set `causal`"
    if config.time.joint != "one_side_clean" and config.mask != "full":
        yield f"`time.joint: {config.time.joint}` corrupts text and image together, which needs `mask: full`"


def _noise(config: "TrainConfig") -> Iterator[str]:
    layout, image = config.layout, config.image
    if not config.noise_isolated and layout.clean_copy and config.mask != "full":
        yield "`layout.clean_copy` is for isolated noise: set `noise_isolated: true`, or drop the copy"
    hidden = config.noise_isolated and not layout.clean_copy and image.repr.und == "same_as_gen"
    if hidden and config.mask != "full" and image.objective not in {"ar", "none"}:
        yield (
            "`noise_isolated: true` without `layout.clean_copy` hides a generated image from the text after it: keep the copy, "
            "or set `noise_isolated: false`"
        )
    if layout.und_noise_cap and (config.noise_isolated or not image.continuous or config.mask == "full"):
        yield (
            "`layout.und_noise_cap` lets later text see an image with a little noise: it needs `image.objective` flow or "
            "ddpm_eps, `noise_isolated: false` and a mask that is not full"
        )
    if config.time.cond != "none" and not image.continuous and "cond" in config.time.model_fields_set:
        yield f"`time.cond: {config.time.cond}` tells of noise, and `image.objective: {image.objective}` has none"
    if config.image.repr.und != "same_as_gen" and config.mask == "full":
        yield "`image.repr.und` other than `same_as_gen` gives an image twice, and `mask: full` keeps one copy of each"


def _sizes(config: "TrainConfig") -> Iterator[str]:
    image, params = config.image, config.params
    if "pixel_patch" in {image.repr.gen, image.repr.und} and image.size % image.patch:
        yield f"`image.size` {image.size} is no multiple of `image.patch` {image.patch}"
    dim = 3 * image.patch**2
    if image.continuous and image.repr.gen == "pixel_patch" and dim > config.model.width and image.head != "clean":
        yield (
            f"`image.patch` {image.patch} makes {dim} numbers a patch, above `model.width` {config.model.width}: a {image.head} "
            "of that rank cannot be predicted; use smaller patches, a wider model, or `predict: clean`"
        )
    if params.share == "moe" and config.model.width % 8:
        yield f"`model.width` {config.model.width}: experts of half precision are multiplied in multiples of 8"
    if params.share == "moe" and params.top_k > params.experts:
        yield f"`params.top_k` {params.top_k} is above `params.experts` {params.experts}"
