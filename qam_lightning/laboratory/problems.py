"""Problems in one and two dimensions whose tilt π_β exp(τ Q) is known.

Every behaviour is a Gaussian mixture, well inside the action box [-1, 1]: its density and its flow
have closed forms, and the tilt's density is known up to a constant, so that it can be sampled.
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

    def velocity(self, x: Tensor, u: Tensor) -> Tensor:
        """Return E[a - x_0 | x_u = x], the minimiser of flow matching on this mixture (Eq. 4).

        Given the component, x_u is N(u m, (1 - u)² + u² s²) and a - x_0 is linear in it; the
        components are weighted by how likely each has made x.

        Args:
            x: (..., D) points.
            u: flow times that broadcast against x, of last dimension 1.
        """
        variance = (1.0 - u).square() + (u * self.stds).square()
        norms = x.square().sum(-1, keepdim=True), self.means.square().sum(-1)
        distance = norms[0] - 2.0 * u * (x @ self.means.T) + u.square() * norms[1]
        log_mass = self.weights.log() - 0.5 * (x.shape[-1] * variance.log() + distance / variance)
        share = log_mass.softmax(-1)
        slope = (u * self.stds.square() - (1.0 - u)) / variance
        return (share * (1.0 - u * slope)) @ self.means + (share * slope).sum(-1, keepdim=True) * x

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


class Problem(NamedTuple):
    """A behaviour, a value function and a temperature.

    Attributes:
        title: heading of the pictures.
        behavior: π_β.
        q: Q, points (N, D) to values (N,).
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

    def mass(self, a: Tensor) -> Tensor:
        """Return π_β exp(τ Q), the tilt's density up to a constant, at points (N, D), (N,)."""
        return self.behavior.density(a) * (self.tau * self.q(a)).exp()

    def tilt_density(self, a: Tensor) -> Tensor:
        """Return the tilt's density at the points (N, D) of a grid over the box, (N,).

        It is normalised on that grid: the points must be all of :func:`grid`.
        """
        mass = self.mass(a)
        return mass / (mass.mean() * 2.0**self.dim)

    def sample_tilt(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points from the tilt within the box, (n, D), by rejection of uniform ones."""
        # A grid finer than the density's features has its maximum but for a percent or two.
        highest = 1.05 * self.mass(grid(self.dim, 2000 if self.dim == 1 else 200)).max()
        kept = torch.empty(0, self.dim)
        while len(kept) < n:
            a = 2.0 * torch.rand(8 * n, self.dim, generator=generator) - 1.0
            accept = highest * torch.rand(len(a), generator=generator) < self.mass(a)
            kept = torch.cat([kept, a[accept]])
        return kept[:n]


def grid(dim: int, points: int) -> Tensor:
    """Return the midpoints of ``points`` equal cells per axis of the box, (points**dim, dim)."""
    axis = (2.0 * torch.arange(points) + 1.0) / points - 1.0
    return torch.cartesian_prod(*[axis] * dim).view(-1, dim)


def _row(*values: float) -> Tensor:
    return torch.tensor(values)


def _two_moons() -> Mixture:
    """Return two half circles, facing each other, as chains of 24 Gaussians."""
    angles = torch.linspace(0.0, math.pi, 24)
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
    "far": Problem(
        "one Gaussian, far from the peak of Q",
        Mixture(_row(1.0), _row(-0.4)[:, None], _row(0.15)),
        lambda a: -(a - 0.6).square().sum(-1),
        tau=20.0,
    ),
    "narrow": Problem(
        "two narrow Gaussians, Q highest between them",
        Mixture(_row(0.5, 0.5), _row(-0.35, 0.35)[:, None], _row(0.05, 0.05)),
        lambda a: -5.0 * (a - 0.02).square().sum(-1),
        tau=20.0,
    ),
    "moons": Problem(
        "two moons, Q highest on a ring",
        _two_moons(),
        lambda a: -8.0 * ((a - CENTER).norm(dim=-1) - RADIUS).square(),
        tau=3.0,
    ),
}
