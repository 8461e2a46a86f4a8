"""Flows between Gaussians, and what linear maps make of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from qam_lightning.core.flow import Field


def gaussian_field(mu: float, variance: float) -> Field:
    """Return the exact velocity whose flow carries N(0, 1) to N(mu, variance)."""

    def v(x: Tensor, u: Tensor) -> Tensor:
        spread = u * u * variance + (1 - u) ** 2
        return mu + (u * variance - (1 - u)) / spread * (x - u * mu)

    return v


def moments(end: Callable[[Tensor, Tensor], Tensor], steps: int) -> tuple[float, float]:
    """Return exact mean and variance of ``end(x_0, z)`` where it is linear in the noise.

    The response to no noise is the mean; that to each unit of noise alone adds to the variance.
    """
    unit = torch.cat([torch.zeros(1, steps), torch.eye(steps)]).double()
    response = end(unit[:, :1], unit[:, 1:].T[..., None])[:, 0]
    return response[0].item(), (response[1:] - response[0]).square().sum().item()
