"""The diffusion policy of QSM and DAC: noise predictor, acting, and what its losses start from."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.diffusion import (
    NoiseModel,
    Schedule,
    diffuse,
    prediction_loss,
    variance_preserving,
)
from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.mlp import MLP

FREQUENCIES = 32
FREQUENCY_STD = 0.2


class FourierFeatures(nn.Module):
    """cos and sin of 2π f i with 32 learned frequencies f, initially N(0, 0.2²)."""

    def __init__(self) -> None:
        """Draw the frequencies."""
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
        """Build features, embedding and trunk."""
        super().__init__()
        self.features = FourierFeatures()
        self.embedding = MLP([2 * FREQUENCIES, *[width] * depth], activation=F.mish)
        self.trunk = MLP([dim + obs_dim + width, *[width] * depth, dim], activation=F.mish)
        self.parts = [dim, obs_dim, width]

    def embed(self, i: Tensor) -> Tensor:
        """Return the embedding (..., width) of step numbers 1..T, (..., 1)."""
        return self.embedding(self.features(i))

    def given(self, s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``predict(a, e)`` for actions (B, D) and embeddings that broadcast to (B, width).

        The state's share of the first layer is computed once for all the steps asked about.
        """
        first = self.trunk.linears[0]
        w_a, w_s, w_e = first.weight.split(self.parts, dim=1)
        from_s = F.linear(s, w_s, first.bias)
        return lambda a, e: self.trunk.finish(F.linear(a, w_a) + from_s + F.linear(e, w_e))


class Noised(NamedTuple):
    """One noisy action per sample, and what the losses compare there.

    Attributes:
        epsilon: (B, D), the noise that was added.
        predicted: (B, D), ε_θ(s, a^i, i), with gradient.
        slope: (B, D), ∇_a mean_K Q(s, a^i), a constant.
        alpha_bar: (B, 1), ᾱ_i.
    """

    epsilon: Tensor
    predicted: Tensor
    slope: Tensor
    alpha_bar: Tensor

    def denoising_loss(self, weight: Tensor) -> Tensor:
        """Return mean_B weight · mean_D (ε_θ - ε)², a scalar (Eq. 49); weight (B,)."""
        return prediction_loss(self.predicted, self.epsilon, weight)

    def metrics(self) -> dict[str, Tensor]:
        """Return the size of the slope, per dimension."""
        return {"actor/q_slope_rms": self.slope.square().mean().sqrt()}


class DiffusionPolicy(nn.Module):
    """Acts by removing noise in T steps.

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        steps: T >= 1 diffusion steps.
        sampler: the reverse process of :mod:`qam_lightning.core.diffusion` it acts with.
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
        """Build the network and the schedule."""
        super().__init__()
        self.predictor = NoisePredictor(obs_dim, dim, width, depth)
        self.schedule, self.dim, self.sampler = variance_preserving(steps), dim, sampler
        self.register_buffer("alpha_bar", torch.tensor(self.schedule.alpha_bar), persistent=False)

    def policy_draws(self) -> dict[str, Draw]:
        """Name what :meth:`act` takes per state: a^T and the noise of all steps but the last."""
        return {"z": Draw((self.schedule.steps, self.dim))}

    @torch.no_grad()
    def act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return actions in [-1, 1], (B, D), at states (B, O) from normal z (B, T, D)."""
        numbers = torch.arange(len(self.alpha_bar), device=s.device, dtype=s.dtype)
        embedded = self.predictor.embed(numbers[:, None])
        predict = self.predictor.given(s)
        return self.sampler(lambda a, i: predict(a, embedded[i]), self.schedule, z.transpose(0, 1))

    def draws(self) -> dict[str, Draw]:
        """Name what the losses take per sample: the noise and a uniform that picks the step."""
        return {"epsilon": Draw((self.dim,)), "step": Draw((1,), uniform=True)}

    def noised(self, batch: Batch, noise: Mapping[str, Tensor], critic: CriticEnsemble) -> Noised:
        """Add noise to dataset actions and predict it; the critic's slope is taken there too.

        Args:
            batch: B chunks.
            noise: the quantities of :meth:`draws`, leading dimension B.
            critic: its mean over members is Q; never trained here.
        """
        s, epsilon = batch.observations, noise["epsilon"]
        i = 1.0 + (noise["step"] * self.schedule.steps).floor()
        alpha_bar = self.alpha_bar[i.long()]
        a = diffuse(batch.actions, epsilon, alpha_bar)
        slope = action_gradient(lambda x: critic(s, x).mean(0), a)
        predicted = self.predictor.given(s)(a, self.predictor.embed(i))
        return Noised(epsilon, predicted, slope, alpha_bar)
