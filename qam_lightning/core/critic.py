"""Temporal-difference learning with a pessimistic ensemble (Eq. 23, 26)."""

import torch
from torch import Tensor


def pessimistic(q: Tensor, rho: float) -> Tensor:
    """Return mean_K q - ρ · std_K q, (B,), with the population standard deviation (Eq. 26).

    Args:
        q: (K, B) member values.
        rho: pessimism ρ >= 0.
    """
    if rho == 0.0:
        return q.mean(0)
    std, mean = torch.std_mean(q, dim=0, correction=0)
    return mean - rho * std


def td_target(rewards: Tensor, masks: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """Return y = r + discount · mask · value(s'), (B,).

    Args:
        rewards: (B,) discounted reward of the chunk.
        masks: (B,), 0 at true termination, else 1.
        next_value: (B,) value of the next state.
        discount: γ^H, also where the chunk was cut short.
    """
    return rewards + discount * masks * next_value


def td_loss(q: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over K and B of valid · (Q_k - y)², a scalar (Eq. 26).

    Args:
        q: (K, B) values of members, or (B,) of a state's single value.
        target: held constant, (B,) for all members, or (K, B) one for each.
        valid: (B,) chunk weights.
    """
    return (valid * (q - target.detach()).square()).mean()


def expectile_loss(value: Tensor, target: Tensor, kappa: float) -> Tensor:
    """Return mean_B |κ - 1(δ < 0)| δ² with δ = target - value, a scalar (Eq. 85).

    Its minimiser is the κ-expectile of the targets: their mean at κ = 1/2, their maximum as κ -> 1.

    Args:
        value: (B,).
        target: (B,), held constant.
        kappa: κ in (0, 1).
    """
    delta = target.detach() - value
    return (torch.where(delta < 0, 1.0 - kappa, kappa) * delta.square()).mean()


def advantage_weight(advantage: Tensor, tau: float) -> Tensor:
    """Return min(exp(τ · advantage), 100), (B,), for advantages Q(s, a) - V(s) (Eq. 73)."""
    return (tau * advantage).exp().clamp(max=100.0)
