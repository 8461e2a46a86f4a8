"""A deterministic policy, its moving average, and the noise on its actions: ReBRAC's."""

import torch
from torch import Tensor, nn

from qam_lightning.core.draws import Draw
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.nets.mlp import MLP
from qam_lightning.util.errors import require

NOISE_BOUND = 0.5


class DeterministicActor(nn.Module):
    """π(s) = tanh MLP(s); acts with clip(π(s) + clip(σ z, ±0.5), ±1).

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        noise_scale: σ >= 0; 0 acts with π itself.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int, noise_scale: float) -> None:
        """Build the network; the EMA starts as a copy."""
        super().__init__()
        finite = 0 <= noise_scale < float("inf")
        require(finite, type(self), "noise_scale", noise_scale, "at least 0 and finite")
        self.mlp = MLP([obs_dim, *[width] * depth, dim])
        self.mlp_ema = ema_copy(self.mlp)
        self.noise_scale = noise_scale

    def forward(self, s: Tensor) -> Tensor:
        """Return π(s) in [-1, 1], (B, D)."""
        return torch.tanh(self.mlp(s))

    @torch.no_grad()
    def act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return noisy actions, (B, D), at states (B, O) from normal z (B, D)."""
        return self._disturbed(self.mlp(s), z)

    @torch.no_grad()
    def target_act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return noisy actions of the moving average, likewise."""
        return self._disturbed(self.mlp_ema(s), z)

    def draws(self) -> dict[str, Draw]:
        """Its losses take no noise."""
        return {}

    def _disturbed(self, raw: Tensor, z: Tensor) -> Tensor:
        noise = (self.noise_scale * z).clamp(-NOISE_BOUND, NOISE_BOUND)
        return (torch.tanh(raw) + noise).clamp(-1.0, 1.0)
