"""FAWAC: a flow policy trained by advantage-weighted cloning (Eq. 73-76).

Citation
    Park, Li, Levine, "Flow Q-learning", arXiv:2502.02538, 2025, where it is a baseline.
    Nair et al., "AWAC: accelerating online reinforcement learning with offline datasets",
    arXiv:2006.09359, 2020.

Trained by what
    critic Q_φ   TD with pessimistic EMA backup (Eq. 26, 75), a' = ODE(v; s', z)
    value V_ξ    squared error on every member of the EMA critic at dataset actions
    flow v_θ     flow matching weighted by w = min(exp(τ (mean_K Q(s, a) - V(s))), 100) (Eq. 73)

Differences from the paper's text
    Eq. 76 regresses V on the TD target; the text after it names the critic's own value as the
    alternative, and that is what made the published scores.
    Eq. 74 misprints the sign of the flow's target.
"""

import torch
from torch import Tensor

from qam_lightning.core.critic import advantage_weight, td_loss
from qam_lightning.core.flow import flow_matching_loss
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.critic import ValueNetwork


class FAWAC(FlowMethod):
    """Critic, value network and one flow that clones good actions harder."""

    tau: float = setting(at_least=0)
    """Inverse temperature τ of the weights; 0 is cloning."""

    def build(self) -> None:
        super().build()
        self.flow = self.velocity_field()
        self.value = ValueNetwork(self.spaces.obs_dim, self.width, self.depth)

    def actor_noise(self, draw: NoiseSource) -> CloningNoise:
        return self.cloning_noise(draw)

    def actor_losses(self, batch: Batch, noise: CloningNoise) -> tuple[Losses, Metrics]:
        q = self.critic(batch.observations, batch.actions).detach()
        return self.actor_losses_given(batch, noise, q)

    def actor_losses_given(
        self, batch: Batch, noise: CloningNoise, q: Tensor
    ) -> tuple[Losses, Metrics]:
        s, a = batch.observations, batch.actions
        value = self.value(s)
        with torch.no_grad():
            weight = advantage_weight(q.mean(0) - value, self.tau)  # Eq. 73
            target = self.critic_ema(s, a)
        losses = {
            "actor/flow_loss": flow_matching_loss(
                self.flow.at(s), noise.x_0, a, noise.u, batch.valid * weight
            ),
            "value/loss": td_loss(value, target, batch.valid),
        }
        metrics = {
            "value/mean": value.detach().mean(),
            "actor/weight_mean": weight.mean(),
            "actor/weight_max": weight.max(),
        }
        return losses, metrics

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.flow.at(s), noise.z)
