"""DSRL: reinforcement learning in the noise space of a cloned flow (Eq. 80-83).

Citation
    Wagenmaker et al., "Steering your diffusion policy with latent space reinforcement learning",
    arXiv:2506.15799, 2025.

Trained by what
    critic Q_φ          TD with pessimistic EMA backup (Eq. 26, 83), a' from the acting policy
    behaviour v_θ       flow matching on dataset chunks (Eq. 17)
    latent critic Q^z   regression of Q^z(s, z) on Q_φ(s, ODE(EMA v_θ; s, z)), z ~ N(0, I) (Eq. 82)
    noise policy π_ω    -mean_K Q^z(s, σ_z z') + c · log π_ω(z' | s), z' ~ π_ω(s) (Eq. 81),
                        where c is the entropy coefficient
    coefficient c       its log, towards entropy -D/2 (Eq. 80)

Acts with ODE(EMA v_θ; s, σ_z z').

Differences from the paper's text
    Eq. 82 and 83 write v_θ; the text after them replaces it by its EMA, for stability online.
    Eq. 80 and 81 leave out σ_z, the bound of the noise (Sec. C.2).
    The k-th latent critic regresses on the k-th critic; chunks cut short take part, since only
    their states are read.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.losses import soft_actor_losses
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.critic import CriticEnsemble
from qam_lightning.nets.frozen import ema_copy, frozen
from qam_lightning.nets.policies import EntropyCoefficient, TanhGaussian


class DSRLNoise(NamedTuple):
    """What DSRL's actor losses draw.

    Attributes:
        cloning: x_0 and u of flow matching; None where the behaviour flow is frozen.
        policy: (B, D) standard normal, of the noise policy's sample.
        latent_z: (B, D) standard normal, where the latent critic is distilled.
    """

    cloning: CloningNoise | None
    policy: Tensor
    latent_z: Tensor


class DSRL(FlowMethod):
    """A cloned flow steered by a Gaussian policy over its noise."""

    noise_scale: float = setting(above=0)
    """σ_z, the L∞ radius of the noise that the flow starts from."""

    # Its flow starts from the noise policy's z.
    acting_settings = ("best_of_n", "flow_steps", "sampler")

    def build(self) -> None:
        super().build()
        obs_dim, width, depth = self.spaces.obs_dim, self.width, self.depth
        self.behavior = self.velocity_field()
        self.behavior_ema = ema_copy(self.behavior)
        self.noise_policy = TanhGaussian(obs_dim, self.dim, width, depth)
        self.entropy_coefficient = EntropyCoefficient()
        self.latent_critic = CriticEnsemble(obs_dim + self.dim, width, depth, self.num_critics)

    def actor_noise(self, draw: NoiseSource) -> DSRLNoise:
        cloning = self.behavior_noise(draw)
        return DSRLNoise(cloning, policy=draw.normal(self.dim), latent_z=draw.normal(self.dim))

    def actor_losses(self, batch: Batch, noise: DSRLNoise) -> tuple[Losses, Metrics]:
        s = batch.observations
        latent = frozen(self.latent_critic)
        z, log_prob = self.noise_policy(s, noise.policy)
        losses, metrics = soft_actor_losses(  # Eq. 81
            self.entropy_coefficient,
            z,
            log_prob,
            value=lambda z: latent(s, self.noise_scale * z).mean(0),
        )
        losses |= self.behavior_losses(self.behavior.at(s), batch, noise.cloning)
        losses["latent/loss"] = self.latent_loss(s, noise.latent_z)
        return losses, metrics

    def latent_loss(self, s: Tensor, z: Tensor) -> Tensor:
        """Return mean_{K,B} (Q^z_k(s, z) - sg Q_k(s, clip ODE(EMA v_θ; s, z)))² (Eq. 82)."""
        with torch.no_grad():
            target = self.critic(s, self.flow_action(s, z))
        return (self.latent_critic(s, z) - target).square().mean()

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        """Return clip ODE(EMA v_θ; s, σ_z z') with z' ~ π_ω(s)."""
        return self.flow_action(s, self.noise_scale * self.noise_policy(s, noise.z)[0])

    def behavior_policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.flow_action(s, noise.z)

    def flow_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return clip(ODE(EMA v_θ; s, z)), (B, D)."""
        return self.sample(self.behavior_ema.at(s), z)
