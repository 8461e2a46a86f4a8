"""CGQL: a behaviour flow guided by the critic's action gradient at noisy actions (Eq. 60-62).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021: guidance.

Trained by what
    critic Q_φ        TD with pessimistic EMA backup (Eq. 26), a' from the guided flow
    behaviour v_β     flow matching on dataset chunks (Eq. 17)

Acts with v_β + ϑ ((1 - u) τ ∇_a mean_K Q(s, a_u) + a_u) / u.
No gradient passes through the guidance. It changes the acting policy and the TD target.

Differences from the paper's text
    v_β is the flow's EMA; Q is the online critic.
    The first step, at u = 0, is not guided: Eq. 60 is singular there.
    The critic also reads the flow time, as in CGQL-MSE and CGQL-Linex; here it is always u = 1.
"""

from typing import Any

import torch
from torch import Tensor

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.flow import Field
from qam_lightning.core.guidance import integrate_guided
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.noise import NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.critic import TimeConditionedCritic
from qam_lightning.nets.frozen import ema_copy


class CGQL(FlowMethod):
    """A cloned flow, guided by a critic of clean actions."""

    tau: float = setting(at_least=0)
    """Inverse temperature τ of the guidance."""
    vartheta: float = setting(at_least=0)
    """Strength ϑ of the guidance; 0 is cloning."""

    acting_settings = (*FlowMethod.acting_settings, "vartheta")

    def build(self) -> None:
        super().build()
        self.behavior = self.velocity_field()
        self.behavior_ema = ema_copy(self.behavior)

    def make_critic(self) -> TimeConditionedCritic:
        in_dim = self.spaces.obs_dim + self.dim
        return TimeConditionedCritic(in_dim, self.width, self.depth, self.num_critics)

    def actor_noise(self, draw: NoiseSource) -> Any:
        return self.behavior_noise(draw)

    def actor_losses(self, batch: Batch, noise: Any) -> tuple[Losses, Metrics]:
        return self.behavior_losses(self.behavior.at(batch.observations), batch, noise), {}

    def guiding_value(self, s: Tensor) -> Field:
        """Return (a, u) to the value (B,) whose gradient guides; noisy actions count as clean."""
        q = self.critic.at(s)
        return lambda a, u: q(a).mean(0)

    @torch.no_grad()
    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        """Return clip(ODE(v_β + ϑ v̂; s, z)) (Eq. 61-62)."""
        value = self.guiding_value(s)

        def dq_da(a: Tensor, u: Tensor) -> Tensor:
            return action_gradient(lambda x: value(x, u), a)

        field, guidance = self.behavior_ema.at(s), (self.flow_steps, self.tau, self.vartheta)
        scheme = self.sampler, self.grid_power
        return integrate_guided(field, dq_da, noise.z, *guidance, *scheme).clamp(-1.0, 1.0)

    def behavior_policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.behavior_ema.at(s), noise.z)
