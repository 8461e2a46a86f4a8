"""Flow matching on the straight path from noise to data (Eq. 2-4, 17).

A velocity field is any callable ``v(x, u)`` of points ``x`` (..., B, D) and flow times ``u`` that
broadcast against ``x``; conditioning on the state happens before, so ``v`` reads v(s, ., .).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


class Recorded:
    """A field that keeps its values, with their gradient also where a path is followed without.

    So a loss on the field along the path does not evaluate it again.

    Args:
        field: any field.
    """

    def __init__(self, field: Field) -> None:
        self._field, self._values = field, list[Tensor]()

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the field's value."""
        with torch.enable_grad():
            self._values.append(self._field(x, u))
        return self._values[-1]

    @property
    def values(self) -> Tensor:
        """All N values so far, (N, B, D)."""
        return torch.stack(self._values)


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


def flow_times(steps: int, like: Tensor) -> Tensor:
    """Return the grid u_i = i / T, i = 0..T-1, of shape (T,) on the device of ``like``."""
    return torch.arange(steps, device=like.device, dtype=like.dtype) / steps


def integrate(v: Field, x_0: Tensor, steps: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Return x_1 by ``steps`` Euler steps of dx = v(x, u) du from ``x_0`` (Eq. 38, unclipped).

    Args:
        v: velocity field.
        x_0: (B, D) starting points.
        steps: T >= 1, the steps from u = 0 to u = 1.
        start: the first step to take, from 0; ``x_0`` is then the point at u = start / T.
        stop: the step to stop before; all are taken if it is left out.
    """
    x, h = x_0, 1.0 / steps
    for u in flow_times(steps, x_0)[start:stop]:
        x = torch.add(x, v(x, u), alpha=h)
    return x


def sample_action(v: Field, z: Tensor, steps: int) -> Tensor:
    """Return clip(ODE(v; z)), (B, D) in [-1, 1]: T Euler steps, clipped once at the end.

    Args:
        v: velocity field at the states to act in.
        z: (B, D) standard normal.
        steps: T >= 1.
    """
    return integrate(v, z, steps).clamp(-1.0, 1.0)
