"""Paths between an image and noise, and what a head's prediction says of both.

    x_t = a(t) x + s(t) e,   t from 0 (image) to 1 (noise),   velocity = dx_t / dt = a' x + s' e

    flow    a = 1 - t, s = t: straight lines, velocity e - x (rectified flow, arXiv 2209.03003)
    cosine  a = cos(pi t / 2), s = sin(pi t / 2): the variance-preserving cosine schedule (arXiv 2102.09672)

Whatever a head gives, image, noise and velocity follow from it and x_t, and back.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmdata.trainer.config import ImageConfig

LEAST = 0.05  # held above zero where a small time, or little signal, divides
Head = Literal["velocity", "clean", "noise"]


@dataclass(frozen=True)
class Path:
    """A path by its name; times broadcast against values."""

    name: Literal["flow", "cosine"] = "flow"

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a, s and their derivatives."""
        if self.name == "flow":
            return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)
        half = torch.pi / 2
        cos, sin = torch.cos(half * t), torch.sin(half * t)
        return cos, sin, -half * sin, half * cos

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t."""
        a, s, _, _ = self.coeffs(t)
        return a * clean + s * noise

    def velocity(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return dx_t / dt."""
        _, _, a, s = self.coeffs(t)
        return a * clean + s * noise

    def to_clean(self, head: Head, given: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the image that a prediction says."""
        a, s, da, ds = self.coeffs(t)
        if head == "clean":
            return given
        if head == "noise":
            return (x_t - s * given) / a.clamp(min=LEAST)
        # x_t = a x + s e and v = a' x + s' e, solved for x
        return (ds * x_t - s * given) / (a * ds - s * da)

    def to_noise(self, head: Head, given: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that a prediction says."""
        a, s, da, ds = self.coeffs(t)
        if head == "noise":
            return given
        if head == "clean":
            return (x_t - a * given) / s.clamp(min=LEAST)
        return (a * given - da * x_t) / (a * ds - s * da)

    def to_velocity(self, head: Head, given: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the velocity that a prediction says."""
        if head == "velocity":
            return given
        return self.velocity(self.to_clean(head, given, x_t, t), self.to_noise(head, given, x_t, t), t)

    def loss(self, head: Head, given: Tensor, clean: Tensor, noise: Tensor, t: Tensor, target: Head) -> Tensor:
        """Return the squared error of the target, velocity or noise, that the error of a prediction makes: mean of the last axis.

        All are linear in each other at one x_t, so an error passes on by a factor of t alone; it is held where it would grow
        without bound, and a prediction that is right costs nothing anywhere.
        """
        truth = {"velocity": self.velocity(clean, noise, t), "clean": clean, "noise": noise}[head]
        to_target = self.to_noise if target == "noise" else self.to_velocity
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        factor = to_target(head, one, zero, t) - to_target(head, zero, zero, t)
        return (factor * (given - truth)).square().mean(-1)


def path_of(image: ImageConfig) -> Path:
    """Return the path of an image objective."""
    return Path("cosine" if image.objective == "ddpm_eps" else "flow")
