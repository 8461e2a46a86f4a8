"""Policy losses on top of a flow: one-step distillation and entropy-tuned Gaussians (Eq. 29-30)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return mean_{B,D} (student - sg teacher)², a scalar; both (B, D) (Eq. 29)."""
    return F.mse_loss(student, teacher.detach())


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample tanh(N(mean, std²)) and its log-density.

    Args:
        mean: (B, D).
        log_std: (B, D).
        noise: (B, D) standard normal.

    Returns:
        The sample in (-1, 1), (B, D), and log π, (B,), with the exact tanh correction
        2 (log 2 - x - softplus(-2x)) per dimension.
    """
    x = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    correction = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
    return torch.tanh(x), (normal - correction).sum(-1)


def entropy_coefficient_loss(coefficient: Tensor, log_prob: Tensor, target: float) -> Tensor:
    """Return mean_B coefficient · (sg(-log π) - target), which lifts the entropy to ``target``.

    Args:
        coefficient: scalar exp(log α), with gradient.
        log_prob: (B,).
        target: target entropy in nats.
    """
    return coefficient * (-log_prob.detach().mean() - target)
