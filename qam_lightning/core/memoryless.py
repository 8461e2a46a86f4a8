"""The memoryless stochastic process that adjoint matching is trained on (Eq. 19, 24).

With step h = 1/T, the drift's 1/u and the noise scale are shifted by h so that u = 0 stays finite.
The last step is a deterministic Euler step of the behaviour flow alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qam_lightning.core.flow import Field, TimeGrid


def noise_scale(u: Tensor, h: float) -> Tensor:
    """Return σ(u) = sqrt(2 (1 - u + h) / (u + h)), Eq. 7 shifted by the step ``h``."""
    return torch.sqrt(2.0 * (1.0 - u + h) / (u + h))


class Path(NamedTuple):
    """One simulated path per sample.

    Attributes:
        states: (T, B, D), the points a_0..a_{T-1}.
        end: (B, D), the final point a_T.
        times: (T,), u_0..u_{T-1}.
        sigma: (T,), σ_i.
        jacobian_times: (T,), where the lean adjoint takes the behaviour's Jacobian at a_i.
    """

    states: Tensor
    end: Tensor
    times: Tensor
    sigma: Tensor
    jacobian_times: Tensor


def simulate(v: Field, behavior: Field, x_0: Tensor, z: Tensor) -> Path:
    """Simulate the memoryless SDE of ``v`` (Eq. 24) and return its path.

    Differentiable with respect to everything ``v`` and ``behavior`` depend on; wrap in
    ``torch.no_grad`` where the path alone is wanted.

    Args:
        v: the combined velocity f_β + f_θ, used in the first T - 1 steps.
        behavior: the behaviour velocity f_β, used in the last step.
        x_0: (B, D) standard normal starting points.
        z: (T - 1, B, D) standard normal increments; T is read from here.
    """
    steps = len(z) + 1
    h = 1.0 / steps
    times = TimeGrid(steps).times(x_0)
    sigma = noise_scale(times, h)
    states = [x_0]
    for u, s, z_i in zip(times[:-1], sigma[:-1], z, strict=True):
        a = states[-1]
        drift = 2.0 * v(a, u) - a / (u + h)
        states.append(a + h * drift + (h**0.5 * s) * z_i)
    end = states[-1] + h * behavior(states[-1], times[-1])
    return Path(torch.stack(states), end, times, sigma, times + h)


def control_cost(control: Tensor, sigma: Tensor) -> Tensor:
    """Return Σ_{i<N} 2 ‖f_θ(a_i, u_i)‖² / σ_i² per sample, (B,): the running cost of Eq. 18.

    Times the step h, it is the KL of a path from the behaviour's: each of its steps adds that of
    two Gaussians of variance h σ_i² whose means are 2 h f_θ apart.

    Args:
        control: (N, B, D), the residual velocity f_θ (or v - f_β) at a_0..a_{N-1}, N <= T.
        sigma: (T,) noise scales.
    """
    scale = sigma[: len(control), None].square()
    return (2.0 * control.square().sum(-1) / scale).sum(0)
