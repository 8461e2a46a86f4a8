"""The diffusion policy of QSM and DAC."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qam_lightning.core.diffusion import NoiseModel, Schedule, variance_preserving
from qam_lightning.nets.mlp import MLP

FREQUENCIES = 32
FREQUENCY_STD = 0.2


class FourierFeatures(nn.Module):
    """cos and sin of 2π f i with 32 learned frequencies f, initially N(0, 0.2²)."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(FREQUENCY_STD * torch.randn(FREQUENCIES))

    def forward(self, i: Tensor) -> Tensor:
        """Return the features (..., 64) of step numbers (..., 1)."""
        angle = 2.0 * math.pi * i * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class NoisePredictor(nn.Module):
    """ε_θ(s, a^i, i): an MLP on concat(a^i, s, embedding of i), with Mish.

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width, also of the embedding.
        depth: number of hidden layers; the embedding has as many layers, the last of them linear.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.features = FourierFeatures()
        self.embedding = MLP([2 * FREQUENCIES, *[width] * depth], activation=F.mish)
        self.trunk = MLP([dim + obs_dim + width, *[width] * depth, dim], activation=F.mish)
        self.parts = [dim, obs_dim, width]

    def embed(self, i: Tensor) -> Tensor:
        """Return the share (..., width) of step numbers 1..T, (..., 1), in the first layer."""
        return F.linear(self.embedding(self.features(i)), self._first_weights()[2])

    def at(self, s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``predict(a, e)`` for actions (B, D) and what `embed` gives, for each or for all.

        The state's share of the first layer is computed once and reused for all steps.
        """
        w_a, w_s, _ = self._first_weights()
        from_s = F.linear(s, w_s, self.trunk.linears[0].bias)
        return lambda a, e: self.trunk.finish(F.linear(a, w_a) + from_s + e)

    def _first_weights(self) -> tuple[Tensor, ...]:
        return self.trunk.linears[0].weight.split(self.parts, dim=1)


class DiffusionPolicy(nn.Module):
    """A noise predictor with its schedule; acts by removing noise in T steps.

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        steps: T >= 1 diffusion steps.
        sampler: the reverse process, from :mod:`qam_lightning.core.diffusion`.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        obs_dim: int,
        dim: int,
        width: int,
        depth: int,
        steps: int,
        sampler: Callable[[NoiseModel, Schedule, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.predictor = NoisePredictor(obs_dim, dim, width, depth)
        self.schedule, self.sampler = variance_preserving(steps), sampler
        self.register_buffer("alpha_bar", torch.tensor(self.schedule.alpha_bar), persistent=False)

    def forward(self, s: Tensor, a: Tensor, i: Tensor) -> Tensor:
        """Return ε_θ(s, a^i, i), (B, D), at noisy actions a (B, D) of steps i in 1..T, (B, 1)."""
        numbers, embedded = self._embed_all(s)
        # There are more samples than steps: each picks its step's embedding by a product.
        picked = (i == numbers).to(embedded.dtype)
        return self.predictor.at(s)(a, picked @ embedded)

    def step_of(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step i in 1..T and its ᾱ_i, (B, 1) each, that u (B, 1) in [0, 1) picks."""
        i = 1.0 + (u * self.schedule.steps).floor()
        return i, self.alpha_bar[i.long()]

    @torch.no_grad()
    def sample(self, s: Tensor, z: Tensor) -> Tensor:
        """Return actions in [-1, 1], (B, D), at states (B, O) from normal z (B, T, D)."""
        _, embedded = self._embed_all(s)
        predict = self.predictor.at(s)
        return self.sampler(lambda a, i: predict(a, embedded[i]), self.schedule, z.transpose(0, 1))

    def _embed_all(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers 0..T, (T + 1,), and what `NoisePredictor.embed` makes of them."""
        numbers = torch.arange(len(self.alpha_bar), device=like.device, dtype=like.dtype)
        return numbers, self.predictor.embed(numbers[:, None])
