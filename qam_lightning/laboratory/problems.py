"""Problems in one and two dimensions whose tilt π_β exp(τ Q) is known.

Every behaviour is a Gaussian mixture, well inside the action box [-1, 1]; every Q is at most 0. So
the tilt can be sampled exactly: draw from the behaviour and keep a with probability exp(τ Q(a)).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Mixture(NamedTuple):
    """A mixture of M Gaussians with round covariances.

    Attributes:
        weights: (M,), summing to 1.
        means: (M, D).
        stds: (M,), > 0.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def density(self, a: Tensor) -> Tensor:
        """Return the density at points (N, D), (N,)."""
        distance = torch.cdist(a, self.means) / self.stds
        log_scale = self.means.shape[1] * (self.stds * math.sqrt(2.0 * math.pi)).log()
        return (self.weights.log() - log_scale - 0.5 * distance.square()).exp().sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator)
        return self.means[k] + self.stds[k, None] * z

    def tilted(self, peak: Tensor, precision: float) -> "Mixture":
        """Return this mixture times exp(-precision ‖a - peak‖² / 2), again a mixture.

        A Gaussian times a Gaussian is one: precisions add, means average by precision, and the
        component's mass is scaled by the overlap of the two.

        Args:
            peak: (D,).
            precision: > 0.
        """
        own = self.stds.square().reciprocal()
        total = own + precision
        means = (own[:, None] * self.means + precision * peak) / total[:, None]
        overlap = 1.0 / own + 1.0 / precision
        distance = (self.means - peak).square().sum(-1) / overlap
        mass = self.weights.log() - 0.5 * (len(peak) * overlap.log() + distance)
        return Mixture(mass.softmax(0), means, total.rsqrt())

    def mass_outside(self) -> float:
        """Return the probability of lying outside the box [-1, 1]^D."""
        upper, lower = ((edge - self.means) / self.stds[:, None] for edge in (1.0, -1.0))
        normal = torch.special.ndtr
        inside = (normal(upper.double()) - normal(lower.double())).prod(-1)
        return (self.weights.double() * (1.0 - inside)).sum().item()


class Problem(NamedTuple):
    """A behaviour, a value function and a temperature.

    Attributes:
        title: what the pictures say above.
        behavior: π_β.
        q: Q, points (N, D) to values (N,) <= 0.
        tau: τ.
    """

    title: str
    behavior: Mixture
    q: Callable[[Tensor], Tensor]
    tau: float

    @property
    def dim(self) -> int:
        """D, 1 or 2."""
        return self.behavior.means.shape[1]

    def tilt_density(self, a: Tensor) -> Tensor:
        """Return the tilt's density at the points (N, D) of a grid over the box, (N,).

        It is normalised on that grid: the points must be all of :func:`grid`.
        """
        mass = self.behavior.density(a) * (self.tau * self.q(a)).exp()
        return mass / (mass.mean() * 2.0**self.dim)

    def sample_tilt(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points from the tilt by rejection, (n, D)."""
        kept = torch.empty(0, self.dim)
        while len(kept) < n:
            a = self.behavior.sample(4 * n, generator)
            accept = torch.rand(len(a), generator=generator) < (self.tau * self.q(a)).exp()
            kept = torch.cat([kept, a[accept]])
        return kept[:n]


def grid(dim: int, points: int) -> Tensor:
    """Return the midpoints of ``points`` equal cells per axis of the box, (points**dim, dim)."""
    axis = (2.0 * torch.arange(points) + 1.0) / points - 1.0
    return torch.cartesian_prod(*[axis] * dim).view(-1, dim)


def _row(*values: float) -> Tensor:
    return torch.tensor(values)


def _two_moons(per_moon: int = 24) -> Mixture:
    """Return two half circles, facing each other, as chains of Gaussians."""
    angles = torch.linspace(0.0, math.pi, per_moon)
    upper = torch.stack([angles.cos(), angles.sin()], -1)
    both = torch.cat([upper, _row(1.0, 0.5) - upper])
    count = len(both)
    means = 0.5 * (both - _row(0.5, 0.25))
    return Mixture(torch.full((count,), 1.0 / count), means, torch.full((count,), 0.06))


PEAK, CURVATURE = 0.5, 3.0
CENTER, RADIUS = _row(-0.25, 0.1), 0.4

PROBLEMS: dict[str, Problem] = {
    "quadratic": Problem(
        "two Gaussians, quadratic Q",
        Mixture(_row(0.5, 0.5), _row(-0.3, 0.3)[:, None], _row(0.18, 0.18)),
        lambda a: -0.5 * CURVATURE * (a - PEAK).square().sum(-1),
        tau=3.0,
    ),
    "multimodal": Problem(
        "two Gaussians, Q with two peaks",
        Mixture(_row(0.6, 0.4), _row(-0.2, 0.3)[:, None], _row(0.22, 0.18)),
        lambda a: 0.5 * (2.0 * math.pi * (a - 0.45)).cos().sum(-1) - 0.5,
        tau=3.0,
    ),
    "moons": Problem(
        "two moons, Q highest on a ring",
        _two_moons(),
        lambda a: -8.0 * ((a - CENTER).norm(dim=-1) - RADIUS).square(),
        tau=3.0,
    ),
}
