"""Paths, solvers, maskings and samplers against closed forms (Gaussian data; two equal tokens)."""

import math

import numpy as np
import pytest
import torch

from mmdata.loader import keyed
from mmdata.trainer.config import SamplerConfig
from mmdata.trainer.corrupt import draw_masks, draw_time
from mmdata.trainer.paths import Head, Path
from mmdata.trainer.sampling import draw, guide, mask_counts, maskgit, ode, renormed, reveal, transfer_counts
from tests.trainer.common import config

MU, S = 1.5, 0.5
HEADS: tuple[Head, ...] = ("velocity", "clean", "noise")


def best_velocity(x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """x ~ N(mu, s^2) on straight lines: v*(x, t) = ((t - (1-t) s^2) / V)(x - (1-t) mu) - mu, V = (1-t)^2 s^2 + t^2."""
    variance = (1 - t) ** 2 * S**2 + t**2
    return (t - (1 - t) * S**2) / variance * (x - (1 - t) * MU) - MU


@pytest.mark.parametrize("name", ["flow", "cosine"])
@pytest.mark.parametrize("head", HEADS)
def test_image_noise_and_velocity_follow_from_each_other(name: str, head: Head) -> None:
    path, random = Path(name), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    clean, noise = (torch.randn(64, 3, dtype=torch.float64, generator=random) for _ in range(2))
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)[:, None]
    x_t = path.mix(clean, noise, t)
    given = {"velocity": path.velocity(clean, noise, t), "clean": clean, "noise": noise}[head]
    assert torch.allclose(path.to_clean(head, given, x_t, t), clean, atol=1e-12)
    assert torch.allclose(path.to_noise(head, given, x_t, t), noise, atol=1e-12)
    assert torch.allclose(path.to_velocity(head, given, x_t, t), path.velocity(clean, noise, t), atol=1e-11)


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_a_velocity_is_the_derivative_of_its_path(name: str) -> None:
    path = Path(name)  # type: ignore[arg-type]
    clean, noise, step = torch.tensor([0.3]).double(), torch.tensor([-1.2]).double(), 1e-6
    t = torch.tensor([0.37], dtype=torch.float64)
    slope = (path.mix(clean, noise, t + step) - path.mix(clean, noise, t - step)) / (2 * step)
    assert torch.allclose(slope, path.velocity(clean, noise, t), atol=1e-8)


def test_the_flow_loss_of_the_best_velocity_is_the_closed_form() -> None:
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(400_000, 1, generator=random, dtype=torch.float64) for _ in range(2))
    clean = MU + S * clean
    for t, expected in ((0.1, 1.1765), (0.5, 0.8), (0.9, 0.3077)):
        time = torch.tensor(t, dtype=torch.float64)
        x_t = Path().mix(clean, noise, time)
        loss = Path().loss("velocity", best_velocity(x_t, time), clean, noise, time, "velocity").mean()
        assert float(loss) == pytest.approx(expected, rel=0.01)
    t_N = torch.rand(400_000, 1, generator=random, dtype=torch.float64)
    x_t = Path().mix(clean, noise, t_N)
    loss = Path().loss("velocity", best_velocity(x_t, t_N), clean, noise, t_N, "velocity").mean()
    assert float(loss) == pytest.approx(math.pi / 2 * S, rel=0.01)


@pytest.mark.parametrize("name", ["flow", "cosine"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target", ["velocity", "noise"])
def test_a_right_prediction_costs_nothing_and_a_wrong_one_the_same_by_any_head(name: str, head: Head, target: Head) -> None:
    path, random = Path(name), torch.Generator().manual_seed(2)  # type: ignore[arg-type]
    clean, noise, wrong = (torch.randn(50, 3, dtype=torch.float64, generator=random) for _ in range(3))
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)[:, None]
    truth = {"velocity": path.velocity(clean, noise, t), "clean": clean, "noise": noise}
    assert float(path.loss(head, truth[head], clean, noise, t, target).max()) < 1e-20
    inside = (t[:, 0] > 0.1) & (t[:, 0] < 0.9)
    x_t = path.mix(clean, noise, t)
    velocity = path.to_velocity(head, wrong, x_t, t) if target == "velocity" else path.to_noise(head, wrong, x_t, t)
    expected = (velocity - truth[target]).square().mean(-1)
    assert torch.allclose(path.loss(head, wrong, clean, noise, t, target)[inside], expected[inside])


@pytest.mark.parametrize(("signal", "expected"), [(0.9, 0.6923), (0.5, 0.2), (0.1, 0.0270)])
def test_the_noise_loss_of_the_best_prediction_is_the_closed_form(signal: float, expected: float) -> None:
    random = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(400_000, 1, generator=random, dtype=torch.float64) for _ in range(2))
    clean = S * clean
    t = torch.tensor(2 / math.pi * math.acos(math.sqrt(signal)), dtype=torch.float64)  # a(t)^2 = signal
    x_t = Path("cosine").mix(clean, noise, t)
    best = x_t * math.sqrt(1 - signal) / (signal * S**2 + 1 - signal)
    assert float(Path("cosine").loss("noise", best, clean, noise, t, "noise").mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1.9), ("heun", 3.7), ("midpoint", 3.7)])
def test_solvers_converge_at_their_order(solver: str, order: float) -> None:
    def error(evaluations: int) -> float:
        settings = SamplerConfig.model_validate({"steps": evaluations, "solver": solver})
        start = torch.ones(1, 1, 1, dtype=torch.float64)
        end = ode(best_velocity, start, Path(), "velocity", settings, 1.0)
        return abs(float(end) - (MU + S))

    factor = 1 if solver == "euler" else 2
    for steps in (25, 50, 100):
        assert error(steps * factor) / error(2 * steps * factor) > order


@pytest.mark.parametrize("head", HEADS)
def test_a_sampler_needs_so_many_evaluations_and_any_head_gives_the_same(head: Head) -> None:
    calls = []

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        calls.append(t)
        v, time = best_velocity(x, t), torch.tensor(t, dtype=torch.float64)
        clean, noise = Path().to_clean("velocity", v, x, time), Path().to_noise("velocity", v, x, time)
        return {"velocity": v, "clean": clean, "noise": noise}[head]

    start = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ode(predict, start, Path(), head, SamplerConfig(steps=40), 1.0)
    expected = ode(best_velocity, start, Path(), "velocity", SamplerConfig(steps=40), 1.0)
    assert len(calls) == 40
    # Noise says little of an image at t = 1, where it is held to a least signal: one step of forty differs a little.
    assert torch.allclose(found, expected, atol=1e-9 if head != "noise" else 0.2)


def test_the_cosine_path_gives_back_a_known_image() -> None:
    image = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64).view(1, 4, 3)

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        return Path("cosine").to_noise("clean", image, x, torch.tensor(t, dtype=torch.float64))

    start = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ode(predict, start, Path("cosine"), "noise", SamplerConfig(steps=10), 1.0, limit=1.0)
    assert torch.allclose(found, image, atol=0.02)


@pytest.mark.parametrize("how", ["logit_normal", "uniform"])
def test_noise_times_lie_inside_and_shift_up(how: str) -> None:
    plain = [draw_time(keyed(n), config(time={"draw": how})) for n in range(500)]
    shifted = [draw_time(keyed(n), config(time={"draw": how, "shift": 3.0})) for n in range(500)]
    assert 0 < min(plain) < max(plain) < 1
    assert np.mean(plain) == pytest.approx(0.5, abs=0.05)
    assert np.mean(shifted) > 0.6


def test_the_masked_bound_of_exact_conditionals_is_the_entropy() -> None:
    # x1 = x2, even over 7: with both masked each costs log 7, with one masked nothing. E[sum(masked CE) / p] / tokens:
    # two tokens cost log 7 together, so the bound is log 7 a pair.
    total, num = 0.0, 40_000
    random = keyed("mdm")
    for _ in range(num):
        masks = draw_masks(random, 2, "likelihood")
        total += masks.weight * (2 * math.log(7) if masks.masked.all() else 0.0)
    assert total / num == pytest.approx(math.log(7), rel=0.03)


def test_cosine_masking_is_no_bound() -> None:
    total, num, random = 0.0, 20_000, keyed("maskgit")
    for _ in range(num):
        masks = draw_masks(random, 2, "cosine")
        assert masks.masked.sum() == masks.counted >= 1
        total += math.log(7) if masks.masked.all() else 0.0  # the mean over masked tokens
    # Both are masked where cos(pi u / 2) > 3 / 4: the mean is below the entropy of a pair, log 7, which a bound never is.
    assert total / num == pytest.approx(2 / math.pi * math.acos(0.75) * math.log(7), rel=0.03)


@pytest.mark.parametrize(("num", "steps"), [(256, 18), (1024, 50), (16, 8), (4, 4)])
def test_masks_fall_at_every_round_to_none(num: int, steps: int) -> None:
    counts = mask_counts(num, steps)
    assert len(counts) == steps
    assert counts[-1] == 0
    assert all(a > b for a, b in zip([num, *counts], counts, strict=False))


def test_transfers_add_up() -> None:
    assert transfer_counts(61, 8) == [8, 8, 8, 8, 8, 7, 7, 7]


def test_guidance_scales_of_one_and_none_are_exact() -> None:
    given = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(given[:2], [1.0]), given[0])
    assert torch.equal(guide(given[:2], [0.0]), given[1])
    assert torch.equal(guide(given, [1.0, 1.0]), given[0])
    assert torch.equal(guide(given, [1.0, 0.0]), given[2])
    assert torch.allclose(guide(given[:2], [3.0]), given[1] + 3 * (given[0] - given[1]), atol=1e-6)


def test_renorm_is_per_sample() -> None:
    given, guided = torch.ones(2, 4, 3), torch.stack([torch.full((4, 3), 4.0), torch.full((4, 3), 0.5)])
    found = renormed(guided, given, 0.5)
    assert torch.allclose(found[0], torch.full((4, 3), 2.0))  # held at half of the guided one
    assert torch.equal(found[1], guided[1])  # never made longer
    assert renormed(guided, given, None) is guided


def certain(ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(ids, 9).double() * 50


@pytest.mark.parametrize(
    "settings",
    [{"text_choice": "confidence"}, {"text_choice": "ancestral"}, {"text_block": 4}, {"temperature": 1.0, "text_steps": 3}],
)
def test_revealing_what_is_certain_gives_it(settings: dict[str, object]) -> None:
    truth = torch.randint(0, 9, (3, 11), generator=torch.Generator().manual_seed(0))
    randoms = [keyed(row) for row in range(3)]
    found = reveal(lambda _ids, _masked: certain(truth), 11, randoms, SamplerConfig.model_validate(settings))
    assert torch.equal(found, truth)


def test_revealing_by_blocks_goes_from_left_to_right() -> None:
    seen = []

    def logits(_ids: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        seen.append(masked[0].clone())
        return certain(torch.zeros(1, 8, dtype=torch.long))

    reveal(logits, 8, [keyed(0)], SamplerConfig(text_block=4, text_steps=4))
    for masked in seen:
        assert masked[4:].all() or not masked[:4].any()


def test_masks_to_codes_keeps_what_was_drawn_and_ends_unmasked() -> None:
    truth = torch.randint(0, 9, (2, 16), generator=torch.Generator().manual_seed(0))
    shown = []

    def logits(codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        assert torch.equal(codes[~masked], truth[~masked])
        shown.append(int(masked[0].sum()))
        return certain(truth)

    found = maskgit(logits, 16, [keyed(row) for row in range(2)], SamplerConfig(steps=8))
    assert torch.equal(found, truth)
    assert shown == [16, *mask_counts(16, 8)[:-1]]


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    logits = torch.randn(3, 16, 9, generator=torch.Generator().manual_seed(0))
    together = maskgit(lambda _c, _m: logits, 16, [keyed(row) for row in range(3)], SamplerConfig(steps=5))
    for row in range(3):
        alone = maskgit(lambda _c, _m: logits[row : row + 1], 16, [keyed(row)], SamplerConfig(steps=5))  # noqa: B023
        assert torch.equal(together[row], alone[0])


def test_draws_follow_their_shares() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    found = torch.tensor(draw(logits, 1.0, [keyed(row) for row in range(20_000)]))
    assert torch.allclose(torch.bincount(found) / 20_000, torch.tensor([0.5, 0.3, 0.2]), atol=0.015)
    assert set(draw(logits[:500], 1.0, [keyed(row) for row in range(500)], top_k=2)) == {0, 1}
    assert set(draw(logits[:50], 0.0, [keyed(row) for row in range(50)])) == {0}
