"""DSRL: reinforcement learning in the noise space of a cloned flow (Eq. 80-83).

Citation
    Wagenmaker et al., "Steering your diffusion policy with latent space reinforcement learning",
    arXiv:2506.15799, 2025.

Trained by what
    critic Q_φ          TD with pessimistic EMA backup (Eq. 26, 83), a' as it acts
    behaviour v_θ       flow matching on dataset chunks (Eq. 17)
    latent critic Q_ψ   regression of Q^z(s, z) on Q(s, ODE(EMA v_θ; s, z)), z ~ N (Eq. 82)
    noise policy π_ω    -mean_K Q^z(s, σ_z z') + ent_coef · log π_ω(z' | s), z' ~ π_ω(s) (Eq. 81)
    entropy coefficient its log, towards entropy -D/2 (Eq. 80)

Acts with ODE(EMA v_θ; s, σ_z z').

Differences from the paper's text
    Eq. 82 and 83 write v_θ; the text after them replaces it by its EMA, for stability online.
    Eq. 80 and 81 leave out σ_z, the bound of the noise (Sec. C.2).
    Each latent critic regresses on the critic of its own number; chunks cut short take part, since
    only their states are read.
"""

from typing import Any

import torch
from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.flow_policy import ClonedFlow
from qam_lightning.nets.frozen import frozen
from qam_lightning.nets.soft_policy import SoftPolicy
from qam_lightning.util.errors import require


class DSRL(Method):
    """A cloned flow steered by a Gaussian policy over its noise.

    Args:
        noise_scale: σ_z > 0, the L∞ radius of the noise that the flow starts from.
        shared: what every method takes.
    """

    actor: ClonedFlow

    def __init__(self, noise_scale: float, **shared: Any) -> None:
        """Build the flow, the noise policy and the latent critics."""
        super().__init__(**shared)
        finite = 0 < noise_scale < float("inf")
        require(finite, type(self), "noise_scale", noise_scale, "above 0 and finite")
        self.noise_scale = noise_scale
        obs_dim, dim, width, depth = self.sizes
        self.actor = ClonedFlow(*self.sizes, self.flow_steps, ema=True)
        self.noise_policy = SoftPolicy(*self.sizes)
        self.latent_critic = CriticEnsemble(obs_dim + dim, width, depth, self.critic.members)

    def actor_draws(self) -> dict[str, Draw]:
        """The flow's draws, the noise policy's, and the distillation's z."""
        own = {"latent/z": Draw((self.dim,))}
        return {**super().actor_draws(), **self.noise_policy.draws(), **own}

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip ODE(EMA v_θ; s, σ_z z') with z' ~ π_ω(s)."""
        return self.actor.act(s, self.noise_scale * self.noise_policy.act(s, noise["z"]))

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching (Eq. 17), latent distillation (Eq. 82) and the noise policy's (Eq. 81)."""
        s, latent = batch.observations, frozen(self.latent_critic)
        losses, metrics = self.noise_policy.losses(
            s, noise, lambda z: latent(s, self.noise_scale * z).mean(0)
        )
        losses["actor/flow_loss"] = self.actor.cloning_loss(batch, noise)
        losses["latent/loss"] = self._latent_loss(s, noise["latent/z"])
        return losses, metrics

    def _latent_loss(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the mean over K and B of (Q^z_k(s, z) - sg Q_k(s, clip ODE(EMA v_θ; s, z)))²."""
        with torch.no_grad():
            target = self.critic(s, self.actor.act(s, z))
        return (self.latent_critic(s, z) - target).square().mean()
