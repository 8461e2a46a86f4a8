"""Critic guidance of a flow, and the losses of critics at noisy actions (Eq. 58-72)."""

import torch
from torch import Tensor

from qam_lightning.core.flow import Field, Sampler, integrate

LINEX_RANGE = 5.0
"""The exponent Δ beyond which the Linex loss is linear."""


def guided(v: Field, dq_da: Field, tau: float, vartheta: float) -> Field:
    """Return the field v + ϑ ((1 - u) τ ∇_a Q(a) + a) / u, for u > 0 (Eq. 60-61, 72).

    Without ϑ, the added term is the velocity of a flow from noise whose score is τ ∇_a Q.

    Args:
        v: behaviour velocity.
        dq_da: (a, u) to ∇_a Q(s, a[, u]), shaped as a.
        tau: inverse temperature τ >= 0.
        vartheta: strength ϑ >= 0 of the guidance.
    """
    return lambda a, u: v(a, u) + (vartheta / u) * ((1.0 - u) * tau * dq_da(a, u) + a)


def integrate_guided(
    v: Field,
    dq_da: Field,
    x_0: Tensor,
    steps: int,
    tau: float,
    vartheta: float,
    sampler: Sampler = "euler",
    power: float = 1.0,
) -> Tensor:
    """Return x_1 along the guided field from ``x_0`` (Eq. 62, unclipped).

    The first step, at u = 0 where guidance is singular, follows ``v`` alone.

    Args:
        v: behaviour velocity.
        dq_da: as for :func:`guided`; evaluated at the u > 0 only.
        x_0: (B, D) noise.
        steps: T >= 1.
        tau: inverse temperature τ >= 0.
        vartheta: strength ϑ >= 0 of the guidance.
        sampler: see :func:`qam_lightning.core.flow.integrate`.
        power: see :class:`qam_lightning.core.flow.TimeGrid`.
    """
    return integrate(guided(v, dq_da, tau, vartheta), x_0, steps, sampler, power, first=v)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return (Q - y)² element-wise; its mean is least at Q = E y (Eq. 63)."""
    return (predicted - target).square()


def linex(predicted: Tensor, target: Tensor, tau: float) -> Tensor:
    """Return exp(Δ) + τ Q where Δ = τ (y - Q) <= 5, else Δ, element-wise (Eq. 64, 70).

    Within that range its mean is least at Q = (1/τ) log E exp(τ y). The branches do not meet: at
    Δ = 5 the derivative in Q falls from τ (1 - e⁵) to -τ, which bounds the gradient of distant
    targets.

    Args:
        predicted: Q, any shape.
        target: y, likewise.
        tau: inverse temperature τ >= 0.
    """
    delta = tau * (target - predicted)
    # The clamp keeps the branch that is not taken from overflowing into the gradient.
    curved = delta.clamp(max=LINEX_RANGE).exp() + tau * predicted
    return torch.where(delta > LINEX_RANGE, delta, curved)
