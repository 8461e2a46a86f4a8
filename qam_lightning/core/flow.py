"""Flow matching on the straight path from noise to data (Eq. 2-4, 17).

A velocity field is any callable ``v(x, u)`` of points ``x`` (..., B, D) and flow times ``u`` that
broadcast against ``x``; conditioning on the state happens before, so ``v`` reads v(s, ., .).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


class Recorded:
    """A field that keeps its values and their gradients, even where gradients are switched off.

    So a loss on the field along a path need not evaluate the field again.

    Args:
        field: any field.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.values: list[Tensor] = []
        """The values so far, (B, D) each."""

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the field's value."""
        with torch.enable_grad():
            self.values.append(self.field(x, u))
        return self.values[-1]


def interpolate(x_0: Tensor, x_1: Tensor, u: Tensor) -> Tensor:
    """Return ``x_u = (1 - u) x_0 + u x_1`` (Eq. 2).

    Args:
        x_0: (B, D) noise.
        x_1: (B, D) data.
        u: (B, 1) flow times in [0, 1].
    """
    return torch.lerp(x_0, x_1, u)


def flow_matching_loss(v: Field, x_0: Tensor, x_1: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B weight · mean_D (v(x_u, u) - (x_1 - x_0))², a scalar (Eq. 17).

    Eq. 17 of the paper misprints ``x_u`` and the sign of the target; Eq. 4 has them right.

    Args:
        v: velocity field.
        x_0: (B, D) noise.
        x_1: (B, D) data.
        u: (B, 1) flow times in [0, 1].
        weight: (B,) sample weights; the mean divides by B whatever they are.
    """
    error = v(interpolate(x_0, x_1, u), u) - (x_1 - x_0)
    return (weight * error.square().mean(-1)).mean()


Sampler = Literal["euler", "ab2", "etd2"]
"""How a flow's ODE is integrated; all three evaluate the field once per step.

``euler`` holds the velocity constant in a step. This equals holding the denoised point
x + (1 - u) v constant, which is E[x_1 | x_u] for a trained field, and solving the rest exactly.
``ab2`` (Adams-Bashforth) extrapolates the velocity from the last step in a straight line. ``etd2``
(exponential time differencing) extrapolates the denoised point. Both are of second order. For
narrow data, the denoised point changes less than the velocity.
"""


class TimeGrid(NamedTuple):
    """The flow times u_i = 1 - (1 - i / T)^p, i = 0..T, denser towards the data the larger p is.

    Attributes:
        steps: T >= 1.
        power: p >= 1; the grid is uniform for 1.
    """

    steps: int
    power: float = 1.0

    def time(self, i: int) -> float:
        """Return u_i."""
        return 1.0 - self.rest(i)

    def rest(self, i: int) -> float:
        """Return 1 - u_i, without cancellation near u = 1."""
        return ((self.steps - i) / self.steps) ** self.power

    def width(self, i: int) -> float:
        """Return u_{i+1} - u_i."""
        return 1.0 / self.steps if self.power == 1.0 else self.rest(i) - self.rest(i + 1)

    def times(self, like: Tensor) -> Tensor:
        """Return u_0..u_{T-1}, of shape (T,), on the device of ``like``."""
        share = torch.arange(self.steps, device=like.device, dtype=like.dtype) / self.steps
        return share if self.power == 1.0 else 1.0 - (1.0 - share) ** self.power

    def extrapolation(self, sampler: Sampler, i: int) -> float:
        """Return the weight of the last change in step i >= 1: of the velocity, or of D.

        ``ab2``: h_i² / (2 h_{i-1}). ``etd2``: (1 - u_i) (1 - r + r ln r) / h_{i-1} with
        r = (1 - u_{i+1}) / (1 - u_i), which tends to the same divided by 1 - u_i.
        """
        if sampler == "ab2":
            return self.width(i) ** 2 / (2.0 * self.width(i - 1))
        r = self.rest(i + 1) / self.rest(i)
        bend = 1.0 - r + (r * math.log(r) if r > 0.0 else 0.0)
        return self.rest(i) * bend / self.width(i - 1)


def integrate(
    v: Field,
    x_0: Tensor,
    steps: int,
    sampler: Sampler = "euler",
    power: float = 1.0,
    first: Field | None = None,
) -> Tensor:
    """Return x_1 by ``steps`` steps of dx = v(x, u) du from ``x_0`` (Eq. 38, unclipped).

    Args:
        v: velocity field.
        x_0: (B, D) starting points.
        steps: T >= 1, the steps from u = 0 to u = 1.
        sampler: the scheme. Its first step is Euler's.
        power: of the `TimeGrid`.
        first: the field of the first step, if it is not ``v``; the sampler starts anew after it.
    """
    grid, x, last = TimeGrid(steps, power), x_0, None
    for i, u in enumerate(grid.times(x_0)):
        field = v if first is None or i > 0 else first
        velocity = field(x, u)
        stepped = torch.add(x, velocity, alpha=grid.width(i))
        if sampler != "euler":
            smooth = velocity if sampler == "ab2" else x + grid.rest(i) * velocity
            if last is not None:
                stepped = stepped + grid.extrapolation(sampler, i) * (smooth - last)
            last = smooth if field is v else None
        x = stepped
    return x


def sample_action(
    v: Field, z: Tensor, steps: int, sampler: Sampler = "euler", power: float = 1.0
) -> Tensor:
    """Return clip(ODE(v; z)), (B, D) in [-1, 1]: T steps, clipped once at the end.

    Args:
        v: velocity field at the states to act in.
        z: (B, D) standard normal.
        steps: T >= 1.
        sampler: see `integrate`.
        power: see `TimeGrid`.
    """
    return integrate(v, z, steps, sampler, power).clamp(-1.0, 1.0)
