"""The sampling algorithms, without a model: what to do with predictions, step by step.

    guide       several conditions become one prediction           ode      from noise to numbers
    maskgit     from masks to codes, many at a time                reveal   from masks to text, block by block or at random
    draw        one id from logits

A row's chance comes from its own generator, so a sample does not depend on those beside it.
Axes: C conditions, B rows, N tokens, P numbers of a token, V ids.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmdata.trainer.config import SamplerConfig
from mmdata.trainer.corrupt import shifted
from mmdata.trainer.paths import Head, Path

Randoms = Sequence[np.random.Generator]
LATEST = 0.999  # where the cosine path has no signal at all, an image cannot be told from noise


def guide(given_CB: Tensor, scales: Sequence[float]) -> Tensor:
    """Return one prediction of C = 1 + len(scales): conditional first, then with ever more conditions dropped.

    `c <- u + s (c - u)` for one after the other (classifier-free guidance, arXiv 2207.12598; two scales: BAGEL). A scale of 1
    leaves the conditional and 0 the unconditional prediction, bit for bit.
    """
    found: Tensor = given_CB[0]
    for without, scale in zip(given_CB[1:], scales, strict=True):
        # lerp's ends are exact for weights 0 and 1
        found = torch.lerp(without, found, scale)
    return found


def renormed(guided_BNP: Tensor, given_BNP: Tensor, least: float | None) -> Tensor:
    """Scale a guided prediction back towards the length of the conditional one, per sample; never below `least` of itself."""
    if least is None:
        return guided_BNP
    given, guided = (torch.linalg.vector_norm(values, dim=(1, 2)) for values in (given_BNP, guided_BNP))
    ratio = given / guided.clamp(min=1e-12)
    scaled: Tensor = guided_BNP * ratio.clamp(least, 1)[:, None, None]
    return scaled


def ode(  # noqa: PLR0913, PLR0917 - what is followed, along what, how
    predict: Callable[[Tensor, float], Tensor], noise: Tensor, path: Path, head: Head, config: SamplerConfig, shift: float,
    limit: float | None = None,
) -> Tensor:  # fmt: skip
    """Follow predictions from t = 1 (noise) to t = 0 (image) in `steps` function evaluations.

    predict  (x_t, t) -> what the head gives          limit   the image's numbers lie within it, for the cosine path
    Euler's step is DDIM's (arXiv 2010.02502): mix the image and the noise that the prediction says, at the next time. Heun and
    midpoint take two evaluations a step and average velocities.
    """
    num = config.steps if config.solver == "euler" else max(1, config.steps // 2)
    times = [min(shifted(u, shift), LATEST if path.name == "cosine" else 1.0) for u in np.linspace(1, 0, num + 1).tolist()]
    x = noise
    for now, then in pairwise(times):
        if config.solver == "euler":
            x = _ddim(predict(x, now), x, path, head, now, then, limit)
            continue
        step = then - now
        v = _velocity(predict(x, now), x, path, head, now, limit)
        if config.solver == "heun":
            v = (v + _velocity(predict(x + step * v, then), x + step * v, path, head, then, limit)) / 2
        else:
            middle = now + step / 2
            v = _velocity(predict(x + step / 2 * v, middle), x + step / 2 * v, path, head, middle, limit)
        x = x + step * v
    return x


def _ddim(  # noqa: PLR0913, PLR0917
    given: Tensor, x: Tensor, path: Path, head: Head, now: float, then: float, limit: float | None
) -> Tensor:
    t, s = (torch.tensor(time, dtype=x.dtype, device=x.device) for time in (now, then))
    clean, noise = path.to_clean(head, given, x, t), path.to_noise(head, given, x, t)
    if limit is not None and path.name == "cosine":
        clean = clean.clamp(-limit, limit)
        noise = path.to_noise("clean", clean, x, t)
    return path.mix(clean, noise, s)


def _velocity(given: Tensor, x: Tensor, path: Path, head: Head, now: float, limit: float | None) -> Tensor:
    t = torch.tensor(now, dtype=x.dtype, device=x.device)
    if limit is None or path.name == "flow":
        return path.to_velocity(head, given, x, t)
    clean = path.to_clean(head, given, x, t).clamp(-limit, limit)
    return path.velocity(clean, path.to_noise("clean", clean, x, t), t)


def mask_counts(num: int, steps: int) -> list[int]:
    """Return how many of so many tokens are still masked after each round: a cosine that falls at every round, to 0 (MaskGIT)."""
    left, found = num, []
    for k in range(1, steps + 1):
        planned = int(np.floor(num * np.cos(np.pi / 2 * k / steps)))
        left = 0 if k == steps else max(min(planned, left - 1), min(1, left))
        found.append(left)
    return found


def maskgit(logits: Callable[[Tensor, Tensor], Tensor], num: int, randoms: Randoms, config: SamplerConfig) -> Tensor:
    """Return codes, (B, N): all masked at first; each round draws all, and keeps those drawn with most confidence.

    logits   (codes, which are masked) -> (B, N, codes) guided
    Confidence is log p + tau (1 - r) Gumbel noise, r the share of rounds done (arXiv 2202.04200; Show-o).
    """
    steps = min(config.steps, num)
    codes = torch.zeros(len(randoms), num, dtype=torch.long)
    masked = torch.ones_like(codes, dtype=torch.bool)
    for k, left in enumerate(mask_counts(num, steps), 1):
        given = logits(codes, masked).double().cpu()
        drawn = _categorical(_shares(given, config.image_temperature, config.top_k), randoms)
        share = given.softmax(-1)  # how sure the model is, whatever the temperature
        noise = torch.from_numpy(np.stack([random.gumbel(size=num) for random in randoms])).to(share)
        sure = (
            share.gather(-1, drawn[..., None])[..., 0].clamp(min=1e-30).log()
            + config.choice_temperature * (1 - k / steps) * noise
        )
        codes = torch.where(masked, drawn, codes)
        sure = torch.where(masked, sure, torch.inf)
        lowest = sure.argsort(dim=-1, stable=True)[:, :left]
        masked = torch.zeros_like(masked).scatter(1, lowest, value=True)
    return codes


def transfer_counts(num: int, steps: int) -> list[int]:
    """Return how many of so many masks are lifted at each step: even, the rest first (LLaDA)."""
    base, rest = divmod(num, steps)
    return [base + (step < rest) for step in range(steps)]


def reveal(logits: Callable[[Tensor, Tensor], Tensor], num: int, randoms: Randoms, config: SamplerConfig) -> Tensor:
    """Return text ids of a slot, (B, N), all masked at first.

    `confidence`: each step lifts the masks of the surest ids, left blocks before right ones (LLaDA, arXiv 2502.09992);
    `ancestral`: from time t to s each mask stays with probability s / t (MDLM, arXiv 2406.07524).
    """
    ids = torch.zeros(len(randoms), num, dtype=torch.long)
    masked = torch.ones_like(ids, dtype=torch.bool)
    if config.text_choice == "ancestral":
        times = np.linspace(1, 0, config.text_steps + 1).tolist()
        for t, s in pairwise(times):
            if not bool(masked.any()):
                break
            drawn = _ids(logits(ids, masked), config.temperature, randoms)
            stay = torch.from_numpy(np.stack([random.random(num) for random in randoms])) < s / t
            ids, masked = torch.where(masked & ~stay, drawn, ids), masked & stay
        return ids
    size = config.text_block or num
    blocks = [(start, min(start + size, num)) for start in range(0, num, size)]
    steps = max(1, config.text_steps // len(blocks))
    for start, stop in blocks:
        for count in transfer_counts(stop - start, min(steps, stop - start)):
            found = logits(ids, masked).cpu()
            drawn = _ids(found, config.temperature, randoms)
            sure = found.double().log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
            sure = torch.where(masked, sure, -torch.inf)
            sure[:, stop:] = -torch.inf
            best = sure.argsort(dim=-1, descending=True, stable=True)[:, :count]
            here = torch.zeros_like(masked).scatter(1, best, value=True) & masked
            ids, masked = torch.where(here, drawn, ids), masked & ~here
    return ids


def draw(logits_BV: Tensor, temperature: float, randoms: Randoms, top_k: int = 0) -> list[int]:
    """Return an id of each row: the likeliest at temperature 0, else one drawn, from the likeliest `top_k` if given."""
    if temperature == 0:
        return [int(index) for index in logits_BV.argmax(-1)]
    return [int(index) for index in _categorical(_shares(logits_BV[:, None], temperature, top_k), randoms)[:, 0]]


def _ids(logits_BNV: Tensor, temperature: float, randoms: Randoms) -> Tensor:
    if temperature == 0:
        return logits_BNV.argmax(-1).cpu()
    return _categorical(_shares(logits_BNV, temperature, 0), randoms)


def _shares(logits_BNV: Tensor, temperature: float, top_k: int) -> Tensor:
    """Return probabilities, float64 on the CPU."""
    logits = logits_BNV.detach().double().cpu()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return (logits / temperature).softmax(-1)


def _categorical(share_BNV: Tensor, randoms: Randoms) -> Tensor:
    """Draw an id for each place, (B, N), by the row's own generator."""
    place = torch.from_numpy(np.stack([random.random(share_BNV.shape[1]) for random in randoms]))
    ends = share_BNV.cumsum(-1)
    # The last end may round below 1: no place may lie beyond it.
    found = torch.searchsorted(ends, (place * ends[..., -1])[..., None], right=True)[..., 0]
    return found.clamp(max=share_BNV.shape[-1] - 1)
