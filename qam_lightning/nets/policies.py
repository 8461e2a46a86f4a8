"""Policy networks other than flows: Gaussian, edit, one-step and deterministic."""

import torch
from torch import Tensor, nn

from qam_lightning.core.policy import squash
from qam_lightning.nets.mlp import MLP

LOG_STD_RANGE = (-20.0, 2.0)


class TanhGaussian(nn.Module):
    """A tanh-Gaussian policy: MLP with activated last hidden layer, linear mean and log-std.

    Args:
        in_dim: size of the conditioning input.
        dim: D, size of a sample.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, in_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.trunk = MLP([in_dim, *[width] * depth], activate_last=True)
        self.mean = MLP([width, dim])
        self.log_std = MLP([width, dim])

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return a sample in (-1, 1), (B, D), and its log-density, (B,), from N(0, 1) noise."""
        hidden = self.trunk(x)
        return squash(self.mean(hidden), self.log_std(hidden).clamp(*LOG_STD_RANGE), noise)


class EntropyCoefficient(nn.Module):
    """The positive weight of the entropy, learned through its logarithm, initially 1."""

    def __init__(self) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """Return the coefficient, a scalar."""
        return self.log_value.exp()


class EditPolicy(nn.Module):
    """π_ω(Δa | s, ã): the Gaussian that edits a flow's action (Eq. 30, 78).

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        scale: σ_a > 0, the L∞ radius of an edit.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int, scale: float) -> None:
        super().__init__()
        self.gaussian = TanhGaussian(obs_dim + dim, dim, width, depth)
        self.scale = scale

    def forward(self, s: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return clip(ã + σ_a Δa), (B, D), and log π(Δa), (B,)."""
        edit, log_prob = self.gaussian(torch.cat([s, action], dim=-1), noise)
        return (action + self.scale * edit).clamp(-1.0, 1.0), log_prob


class OneStepPolicy(nn.Module):
    """μ_ω(s, z): the noise-conditioned one-step policy of FQL and QAM-FQL (Eq. 29, 42)."""

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.mlp = MLP([obs_dim + dim, *[width] * depth, dim])

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the unclipped action chunk (B, D)."""
        return self.mlp(torch.cat([s, z], dim=-1))


class DeterministicPolicy(nn.Module):
    """π(s) = tanh MLP(s), ReBRAC's actor."""

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.mlp = MLP([obs_dim, *[width] * depth, dim])

    def forward(self, s: Tensor) -> Tensor:
        """Return actions in [-1, 1], (B, D)."""
        return torch.tanh(self.mlp(s))
