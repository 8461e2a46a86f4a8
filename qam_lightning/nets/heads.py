"""Policies that refine a flow's actions: the one-step policy, the edit policy, their losses."""

import torch
from torch import Tensor, nn

from qam_lightning.core.policy import distillation_loss, entropy_coefficient_loss, squash
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.frozen import frozen
from qam_lightning.nets.mlp import MLP

LOG_STD_RANGE = (-20.0, 2.0)


class LogScalar(nn.Module):
    """A positive scalar, learned through its logarithm, initially 1."""

    def __init__(self) -> None:
        """Start at exp(0)."""
        super().__init__()
        self.log_value = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """Return the scalar."""
        return self.log_value.exp()


class TanhGaussian(nn.Module):
    """A tanh-Gaussian policy: MLP with activated last hidden layer, linear mean and log-std.

    Args:
        in_dim: size of the conditioning input.
        dim: D, size of a sample.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, in_dim: int, dim: int, width: int, depth: int) -> None:
        """Build trunk and the two linear outputs."""
        super().__init__()
        self.trunk = MLP([in_dim, *[width] * depth], activate_last=True)
        self.mean = MLP([width, dim])
        self.log_std = MLP([width, dim])

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return a sample in (-1, 1), (B, D), and its log-density, (B,), from N(0, 1) noise."""
        hidden = self.trunk(x)
        return squash(self.mean(hidden), self.log_std(hidden).clamp(*LOG_STD_RANGE), noise)


class SoftGaussian(nn.Module):
    """A tanh-Gaussian whose entropy is held at -D/2 by a learned coefficient (Eq. 77, 80).

    Args:
        in_dim: size of the conditioning input.
        dim: D, size of a sample.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, in_dim: int, dim: int, width: int, depth: int) -> None:
        """Build the tanh-Gaussian and its entropy coefficient."""
        super().__init__()
        self.gaussian = TanhGaussian(in_dim, dim, width, depth)
        self.entropy_coefficient = LogScalar()
        self.dim, self.target_entropy = dim, -0.5 * dim

    def entropy_losses(self, log_prob: Tensor, name: str) -> dict[str, Tensor]:
        """Return the entropy's and its coefficient's losses, both scalars.

        Args:
            log_prob: (B,), of samples, with gradient.
            name: what the losses' names start with.
        """
        coefficient = self.entropy_coefficient()
        return {
            f"{name}entropy_loss": coefficient.detach() * log_prob.mean(),
            f"{name}coefficient_loss": entropy_coefficient_loss(
                coefficient, log_prob, self.target_entropy
            ),
        }


class OneStepPolicy(nn.Module):
    """μ_ω(s, z): the noise-conditioned one-step policy of FQL and QAM-FQL (Eq. 29, 42)."""

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        """Build the MLP on concat(s, z)."""
        super().__init__()
        self.mlp = MLP([obs_dim + dim, *[width] * depth, dim])

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the unclipped action chunk (B, D)."""
        return self.mlp(torch.cat([s, z], dim=-1))

    def losses(
        self, critic: CriticEnsemble, s: Tensor, z: Tensor, teacher: Tensor, alpha: float
    ) -> dict[str, Tensor]:
        """Return -mean Q(s, clip μ(s, z)) and α · distillation on ``teacher``, both scalars.

        Args:
            critic: takes part frozen.
            s: (B, O).
            z: (B, D) standard normal, the noise that made ``teacher``.
            teacher: (B, D), the flow's action for ``z``, held constant.
            alpha: behaviour coefficient α >= 0.
        """
        action = self(s, z)
        return {
            "actor/q_loss": -frozen(critic)(s, action.clamp(-1.0, 1.0)).mean(),
            "actor/distill_loss": alpha * distillation_loss(action, teacher),
        }


class EditPolicy(SoftGaussian):
    """π_ω(Δa | s, ã): the Gaussian edit policy of FEdit and QAM-EDIT (Eq. 30).

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        scale: σ_a > 0, the L∞ radius of an edit.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int, scale: float) -> None:
        """Build the tanh-Gaussian on concat(s, ã)."""
        super().__init__(obs_dim + dim, dim, width, depth)
        self.scale = scale

    def forward(self, s: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return clip(ã + σ_a Δa), (B, D), and log π(Δa), (B,)."""
        edit, log_prob = self.gaussian(torch.cat([s, action], dim=-1), noise)
        return (action + self.scale * edit).clamp(-1.0, 1.0), log_prob

    def losses(
        self, critic: CriticEnsemble, s: Tensor, action: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the edit's value, entropy and entropy-coefficient losses, all scalars.

        Args:
            critic: takes part frozen.
            s: (B, O).
            action: (B, D), the flow's action ã, held constant.
            noise: (B, D) standard normal.
        """
        edited, log_prob = self(s, action.detach(), noise)
        return {
            "actor/edit_q_loss": -frozen(critic)(s, edited).mean(),
            **self.entropy_losses(log_prob, "actor/edit_"),
        }
