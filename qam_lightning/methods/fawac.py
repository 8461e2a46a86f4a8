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

from typing import Any

import torch
from torch import Tensor

from qam_lightning.core.critic import advantage_weight, td_loss
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_policy import FlowPolicy
from qam_lightning.nets.value import ValueNetwork
from qam_lightning.util.errors import require


class FAWAC(Method):
    """Critic, value network and one flow that clones good actions harder.

    Args:
        tau: inverse temperature τ >= 0 of the weights; 0 is cloning.
        shared: what every method takes.
    """

    actor: FlowPolicy

    def __init__(self, tau: float, **shared: Any) -> None:
        """Build the flow and the value network."""
        super().__init__(**shared)
        require(0 <= tau < float("inf"), type(self), "tau", tau, "at least 0 and finite")
        self.tau = tau
        obs_dim, _, width, depth = self.sizes
        self.actor = FlowPolicy(*self.sizes, self.flow_steps)
        self.value = ValueNetwork(obs_dim, width, depth)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Weighted flow matching for v_θ (Eq. 73), regression for V_ξ."""
        s, a = batch.observations, batch.actions
        value = self.value(s)
        with torch.no_grad():
            weight = advantage_weight(self.critic(s, a).mean(0) - value, self.tau)
            target = self.critic_ema(s, a)
        losses = {
            "actor/flow_loss": self.actor.cloning_loss(batch, noise, weight),
            "value/loss": td_loss(value, target, batch.valid),
        }
        metrics = {
            "value/mean": value.detach().mean(),
            "actor/weight_mean": weight.mean(),
            "actor/weight_max": weight.max(),
        }
        return losses, metrics
